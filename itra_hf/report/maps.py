"""Maps of the features in two dimensions, and their legend."""

from importlib.util import find_spec
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from itra_hf.report.drawing import COLOURS, WIDTH, Picture
from itra_hf.report.runs import Run

MARKERS = {  # and the same shapes in the page's legend, in a square of 16
    "o": "M8 2a6 6 0 1 0 0 12a6 6 0 1 0 0-12",
    "s": "M3 3h10v10h-10z",
    "^": "M8 2l6.5 11.5h-13z",
    "D": "M8 1l6 7l-6 7l-6-7z",
    "v": "M8 14l6.5-11.5h-13z",
    "P": "M6 2h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
    "X": "M2 4.5l2.5-2.5l3.5 3.5l3.5-3.5l2.5 2.5l-3.5 3.5l3.5 3.5l-2.5 2.5l-3.5-3.5l-3.5 3.5l-2.5-2.5l3.5-3.5z",
    "*": "M8 1l2 4.8l5.2.4l-4 3.4l1.2 5l-4.4-2.7l-4.4 2.7l1.2-5l-4-3.4l5.2-.4z",
}
UMAP_ROWS = 4  # UMAP needs this many
IN_PICTURE = 10  # with more classes, the page has the legend

Saved = dict[str, np.ndarray]


def class_styles(saved: Saved) -> list[dict[str, Any]]:
    """Colour, marker, number and name of every class; 80 classes look different."""
    labels, first = np.unique(saved["labels"], return_index=True)
    styles = []
    for index, (label, row) in enumerate(zip(labels, first, strict=True)):
        marker = list(MARKERS)[(index // 10 if len(labels) > IN_PICTURE else index) % 8]
        names = {"label": label, "number": int(label), "name": str(saved["names"][row])}
        styles.append(names | {"colour": COLOURS[index % 10], "marker": marker, "path": MARKERS[marker]})
    return styles


def page_legend(saved: Saved) -> list[dict[str, Any]]:
    """The classes that the page has to name, because the pictures have no room to."""
    styles = class_styles(saved)
    return styles if len(styles) > IN_PICTURE else []


def principal_axes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows `[n, d]` along their first two principal axes, `[n, 2]`, and the share of the scatter along each."""
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    left, scales, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(rows), 2))
    points[:, : len(scales[:2])] = left[:, :2] * scales[:2]
    shares = np.zeros(2)
    shares[: len(scales[:2])] = scales[:2] ** 2 / max(float((scales**2).sum()), 1e-300)
    return points, shares


def feature_maps(run: Run) -> list[Picture]:
    """Maps before and after training: by principal axes, and by UMAP if it is installed and there are enough rows."""
    sides = [(when, saved) for when, saved in (("before", run.before), ("after", run.after)) if saved is not None]
    best = f" (best checkpoint, step {run.config['best_step']})" if run.config.get("best_step") else ""
    pictures = [
        pca_map(saved, f"map-{when}", f"Features {when} training{best if when == 'after' else ''}")
        for when, saved in sides
    ]
    if find_spec("umap"):
        large = [(when, saved) for when, saved in sides if len(saved["features"]) >= UMAP_ROWS]
        pictures += [_umap_map(saved, f"umap-{when}", f"Features {when} training, by UMAP") for when, saved in large]
    return pictures


def both_maps(run: Run) -> Picture | None:
    """The maps before and after training in one picture, as a model card shows it."""
    if run.before is None or run.after is None:
        return None
    sides = {"before training": run.before, "after training": run.after}
    points = [principal_axes(saved["features"]) for saved in sides.values()]

    def draw(figure: Figure) -> None:
        for axes, (label, saved), (at, shares) in zip(figure.subplots(1, 2), sides.items(), points, strict=True):
            _scatter(axes, saved, at)
            axes.set(title=label, **_axis_names(shares))
        _legend(figure, sides["before training"])
        if page_legend(sides["before training"]):
            figure.supxlabel("Numbers, at class means where there is room: the labels of classes.", fontsize=9)

    alt = f"Maps of the features along their first two principal axes, {' and '.join(sides)}."
    title = "Features before and after training"
    return Picture("features", title, "", alt, draw, height=5.0, width=2 * WIDTH)


def pca_map(saved: Saved, name: str, title: str) -> Picture:
    """The map of features along their first two principal axes."""
    points, shares = principal_axes(saved["features"])
    caption = (
        f"{len(points):,} rows along the two directions of most scatter, {shares.sum():.0%} of it in all. Each map has "
        "axes of its own."
    )
    return _map(saved, points, name, title, caption, _axis_names(shares))


def _umap_map(saved: Saved, name: str, title: str) -> Picture:
    from umap import UMAP

    points = UMAP(n_neighbors=min(15, len(saved["features"]) - 1), random_state=0, n_jobs=1)
    caption = "UMAP keeps neighbours together; distances between groups and their sizes mean little."
    names = {"xlabel": "UMAP 1", "ylabel": "UMAP 2"}
    return _map(saved, points.fit_transform(saved["features"]), name, title, caption, names)


def _map(saved: Saved, points: np.ndarray, name: str, title: str, caption: str, names: dict[str, str]) -> Picture:
    styles = class_styles(saved)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _scatter(axes, saved, points)
        axes.set(**names)
        _legend(figure, saved)

    if len(styles) > IN_PICTURE:
        caption += " Numbers stand at class means, where there is room; the list of classes names them."
    alt = f"Scatter plot of {len(points)} rows of {len(styles)} classes, coloured by class. {caption}"
    return Picture(name, title, caption, alt, draw, height=4.6 if len(styles) > IN_PICTURE else 4.9)


def _scatter(axes: Axes, saved: Saved, points: np.ndarray) -> None:
    styles, finite = class_styles(saved), np.isfinite(points).all(1)
    size = float(np.clip(9000 / max(len(points), 1), 9, 24))
    for style in styles:
        x, y = points[(saved["labels"] == style["label"]) & finite].T
        axes.scatter(x, y, s=size, c=style["colour"], marker=style["marker"], alpha=0.7, linewidths=0)
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.6)
    axes.tick_params(labelsize=9)
    if len(styles) > IN_PICTURE:
        _number(axes, styles, saved, points)


def _number(axes: Axes, styles: list[dict[str, Any]], saved: Saved, points: np.ndarray) -> None:
    """Numbers at the class means, as many as do not cover each other."""
    room = np.ptp(points, 0).max() * 0.055
    placed: list[np.ndarray] = []
    halo = [patheffects.withStroke(linewidth=2.2, foreground=mpl.rcParams["axes.facecolor"])]
    for style in styles:
        mean = points[saved["labels"] == style["label"]].mean(0)
        if np.isfinite(mean).all() and all(np.abs(mean - other).max() > room for other in placed):
            placed.append(mean)
            axes.text(mean[0], mean[1], str(style["number"]), ha="center", va="center", fontsize=8.5, path_effects=halo)


def _legend(figure: Figure, saved: Saved) -> None:
    styles = class_styles(saved)
    if len(styles) <= IN_PICTURE:
        names = [shortened(style["name"], 22) for style in styles]
        dots = [Line2D([], [], color=each["colour"], marker=each["marker"], ls="", markersize=5) for each in styles]
        columns = 5 if max(map(len, names)) <= 7 else 2
        figure.legend(dots, names, loc="outside lower center", ncols=columns, fontsize=9.5, handletextpad=0.2)


def shortened(name: str, length: int) -> str:
    """The beginning of a name, with at most this many letters."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _axis_names(shares: np.ndarray) -> dict[str, str]:
    names = [f"{which} principal axis ({share:.0%})" for which, share in zip(("1st", "2nd"), shares, strict=True)]
    return {"xlabel": names[0], "ylabel": names[1]}
