"""The scatter of each class before and after training."""

from matplotlib.figure import Figure

from itra_hf.report.drawing import Picture, plain_log_ticks
from itra_hf.report.maps import IN_PICTURE, class_styles, shortened
from itra_hf.report.runs import Run, class_scatters

IN_ONE_PICTURE = 24  # more classes than this are shown in two pictures side by side
MOST_CLASSES = 100  # with more classes, the widest are shown

CAPTION = "How far the rows of each class lie from their mean; further left is more compact."


def class_pictures(run: Run) -> list[Picture]:
    """A dot for each class, and one for its scatter before training if that was saved; the widest class on top."""
    if run.after is None:
        return []
    after = class_scatters(run.after)
    before = class_scatters(run.before) if run.before is not None else {}
    shown = sorted(after, key=after.__getitem__)[-MOST_CLASSES:]
    values = [value for each in (before, after) for name, value in each.items() if name in shown and value > 0]
    if not values:
        return []
    limits = (min(values) / 1.25, max(values) * 1.25)
    styles = class_styles(run.after)
    numbered = len(styles) > IN_PICTURE  # as on the map
    names = {style["name"]: f"{style['number']} {style['name']}" if numbered else style["name"] for style in styles}
    which = f"The {len(shown)} widest of {len(after)} classes. " if len(shown) < len(after) else ""
    half = len(shown) // 2 if len(shown) > IN_ONE_PICTURE else 0
    parts = [("classes", "Scatter of each class", shown)]
    if half:
        parts = [
            ("classes-wide", "Scatter of each class, the wider half", shown[half:]),
            ("classes-compact", "Scatter of each class, the more compact half", shown[:half]),
        ]
    return [_picture(*part, names, before, after, limits, which + CAPTION) for part in parts]


def _picture(
    name: str,
    title: str,
    shown: list[str],
    names: dict[str, str],
    before: dict[str, float],
    after: dict[str, float],
    limits: tuple[float, float],
    caption: str,
) -> Picture:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        rows = range(len(shown))
        new = [after[each] for each in shown]
        if before:
            old = [before.get(each, float("nan")) for each in shown]
            axes.hlines(rows, old, new, color="C7", linewidth=1, alpha=0.6)
            axes.plot(old, rows, "o", color="C7", markersize=4, fillstyle="none", label="before training")
        axes.plot(new, rows, "o", color="C0", markersize=4, label="after training")
        axes.set(xscale="log", xlim=limits, ylim=(-0.7, len(shown) - 0.3))
        figure.supxlabel("scatter within the class / between all classes", fontsize=10.5)
        plain_log_ticks(axes.xaxis)
        axes.set_yticks(rows, [shortened(names[each], 26) for each in shown])
        axes.tick_params(axis="y", labelsize=8.5)
        if before:
            figure.legend(loc="outside upper right", ncols=2, fontsize=9.5)

    ends = [f"{each} {after[each]:.3g}" for each in (shown[0], shown[-1])]
    alt = f"Dot plot of {len(shown)} classes. The most compact after training: {ends[0]}; the widest: {ends[1]}."
    return Picture(name, title, caption, alt, draw, height=1.3 + 0.19 * len(shown))
