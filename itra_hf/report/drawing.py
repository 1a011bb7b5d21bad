"""How every picture of the report is drawn: light and dark, and large enough for a phone."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from itra_hf.files import write_anew

WIDTH = 4.6  # inches: a phone shows it at about three quarters of this, a desktop at its size
DPI = 200

COLOURS = ("#3b82d0", "#e0862a", "#2fa36b", "#d1495b", "#8f6bc9", "#a97142", "#d66fb0", "#808a93", "#a3a52e", "#2aa5b8")

THEMES: dict[str, dict[str, Any]] = {
    "light": {"back": "#ffffff", "text": "#1c2330", "faint": "#d5dae1"},
    "dark": {"back": "#161b22", "text": "#e3e8ef", "faint": "#39414d"},
}


STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "font.size": 10.5,
    "text.parse_math": False,  # a class may be called "$10 to $20"
}


@dataclass
class Picture:
    """A picture and its texts."""

    name: str  # of its file
    title: str
    caption: str  # how to read it
    alt: str  # what it shows, for those who do not see it
    draw: Callable[[Figure], None]  # into an empty figure
    height: float = 3.2  # inches
    width: float = WIDTH

    def png(self, theme: str) -> bytes:
        """The picture in a theme, `"light"` or `"dark"`."""
        colours = THEMES[theme]
        style = STYLE | dict.fromkeys(("figure.facecolor", "axes.facecolor"), colours["back"])
        style |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), colours["text"])
        style |= dict.fromkeys(("axes.edgecolor", "grid.color"), colours["faint"])
        with mpl.rc_context(style):
            figure = Figure(figsize=(self.width, self.height), dpi=DPI, layout="constrained")
            figure.get_layout_engine().set(w_pad=0.07, h_pad=0.05)  # type: ignore[union-attr, call-arg]
            self.draw(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
        return buffer.getvalue()

    def save(self, folder: Path) -> dict[str, Any]:
        """Save the light version as a PNG file; return the content of the page."""
        folder.mkdir(parents=True, exist_ok=True)
        pictures = {theme: self.png(theme) for theme in THEMES}
        write_anew(folder / f"{self.name}.png", pictures["light"])
        encoded = {theme: base64.b64encode(png).decode("ascii") for theme, png in pictures.items()}
        size = {"width": round(self.width * 100), "height": round(self.height * 100)}
        return {"title": self.title, "caption": self.caption, "alt": self.alt, **encoded, **size}


def curve(axes: Axes, series: tuple[list[int], list[float]], label: str | None, **style: Any) -> None:
    """A line through the values of a series, with dots if there are few."""
    steps, values = series
    if steps:
        dots = {"marker": "o", "markersize": 3.5} if len(steps) <= 30 else {}
        axes.plot(steps, values, label=label, **{"linewidth": 1.6, **dots, **style})


def finish(axes: Axes, ylabel: str, *, log: bool = False) -> None:
    """The labels of the axes, and a legend if there are several lines; `log` needs positive values."""
    axes.set(xlabel="step", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlim(left=0)
    if log and all(np.min(line.get_ydata()) > 0 for line in axes.lines):
        axes.set_yscale("log")
        plain_log_ticks(axes.yaxis)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(loc="best", fontsize=9.5)


def plain_log_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers: 0.1, 0.2, 0.5, 1, ..., and fewer over many decades."""
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def told(label: str, series: tuple[list[int], list[float]]) -> str:
    """A series in words."""
    steps, values = series
    if not steps:
        return ""
    if len(steps) == 1:
        return f"{label}: {values[0]:.3g} at step {steps[0]}."
    return f"{label}: from {values[0]:.3g} at step {steps[0]} to {values[-1]:.3g} at step {steps[-1]}."
