"""Forest plots: gains over Trainer with their 95 % intervals."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pairs import Comparison
from plan import MAIN, OTHERS
from tables import Results, family

UNIT = "gain over Trainer in percentage points of test accuracy, 95 % intervals of paired differences"
FEW_METHODS = 4  # a task with fewer gets no panel of its own


def main_forest(results: Results) -> Figure:
    """ITRA's defaults on every task; in colour what is significant after Holm's correction."""
    rows = [(task, gain, "C1" if p <= 0.05 else "grey") for (task, _), (gain, p) in family(results, MAIN).items()]
    figure = Figure(figsize=(9, 1 + 0.3 * len(rows)), layout="constrained")
    axis = figure.subplots()
    draw(axis, rows)
    axis.set(xlabel=UNIT, title="ITRA's defaults; orange: significant after Holm's correction")
    return figure


def methods_forest(results: Results) -> Figure:
    """All methods that are compared with Trainer, a panel for each task where they are several; ITRA's in colour."""
    compared = family(results, MAIN) | family(results, [pair for pair in OTHERS if pair[1] == "trainer"])
    panels: dict[str, list[tuple[str, Comparison, str]]] = {task: [] for task in results}
    for (task, method), (gain, _) in compared.items():
        panels[task].append((method, gain, "C1" if method.startswith("itra") else "C0"))
    panels = {task: rows for task, rows in panels.items() if len(rows) >= FEW_METHODS}
    height = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 0.8 + 3.6 * height), layout="constrained")
    axes = figure.subplots(height, 2, squeeze=False).flat
    for (task, rows), axis in zip(panels.items(), axes, strict=False):
        draw(axis, rows)
        axis.set_title(task)
    for axis in axes:
        axis.set_visible(False)
    figure.supxlabel(UNIT)
    return figure


def draw(axis: Axes, rows: list[tuple[str, Comparison, str]]) -> None:
    """Each row's name, gain and interval in its colour, the first on top."""
    for place, (_, gain, colour) in enumerate(rows):
        axis.plot([gain.low, gain.high], [place, place], color=colour)
        axis.plot(gain.gain, place, "o", color=colour, markersize=4)
    axis.axvline(0, color="grey", linewidth=0.8)
    axis.set(yticks=range(len(rows)), yticklabels=[name for name, _, _ in rows])
    axis.invert_yaxis()
