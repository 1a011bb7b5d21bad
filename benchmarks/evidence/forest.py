"""The picture of the evidence: gains over Trainer by kind of task."""

from kinds import gains_by_kind, over_tasks
from matplotlib.figure import Figure
from tables import Results


def kinds_forest(results: Results) -> Figure:
    """A row for each kind: a dot for each task, and the mean over tasks with its interval."""
    kinds = gains_by_kind(results)
    figure = Figure(figsize=(7.5, 1.2 + 0.5 * len(kinds)), layout="constrained")
    axis = figure.subplots()
    for place, tasks in enumerate(kinds.values()):
        gains = [comparison.gain for comparison in tasks.values()]
        pair = over_tasks(gains)
        axis.plot(gains, [place + 0.16] * len(gains), "o", color="C0", alpha=0.6, markersize=4)
        axis.plot([pair.low, pair.high], [place - 0.12] * 2, color="C1", linewidth=2)
        axis.plot(pair.gain, place - 0.12, "D", color="C1", markersize=5)
    axis.axvline(0, color="grey", linewidth=0.8)
    axis.set(yticks=range(len(kinds)), yticklabels=list(kinds), xlim=(-3, 4))
    axis.set_xlabel("gain over Trainer, points of test accuracy (dots: tasks; bars: mean, 95 %)")
    axis.invert_yaxis()
    return figure
