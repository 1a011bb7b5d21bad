"""The pictures of one run's curves: losses, guards, compactness, gradients, steps."""

from statistics import fmean

from matplotlib.figure import Figure

from itra_hf.report.drawing import Picture, curve, finish, told
from itra_hf.report.runs import Run, Series
from itra_hf.step import ramp


def run_pictures(run: Run) -> list[Picture]:
    """The curves of everything that the run logged."""
    pictures = [_losses(run), _matching(run), _guards(run), _ratios(run), _silhouette(run), _modes(run)]
    pictures += [_gradients(run), _over_adaptation(run)]
    return [picture for picture in pictures if picture is not None]


def _lines(
    name: str, title: str, caption: str, lines: dict[str, Series], ylabel: str, log: bool = False
) -> Picture | None:
    """A picture of some series on common axes; None if none of them has a value."""
    lines = {label: series for label, series in lines.items() if series[0]}
    if not lines:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for label, series in lines.items():
            curve(axes, series, label)
        finish(axes, ylabel, log=log)

    alt = f"Line chart over the steps. {' '.join(told(label, series) for label, series in lines.items())}"
    return Picture(name, title, caption, alt, draw)


def _losses(run: Run) -> Picture | None:
    task = run.series("task_loss")
    lines = {"task loss, training": task if task[0] else run.series("loss"), "evaluation loss": run.series("eval_loss")}
    caption = "The task loss alone, without the matching, on training batches and on the evaluation set."
    return _lines("loss", "Loss", caption, lines, "loss")


def _matching(run: Run) -> Picture | None:
    caption = "The squared maximum mean discrepancy between the halves of a batch, before its weight."
    return _lines("matching", "Matching loss", caption, {"MMD²": run.series("matching_loss")}, "MMD²")


def _guards(run: Run) -> Picture | None:
    applied, settings = run.series("matching_weight"), run.settings
    lines = {"applied, after ramp and cap": applied}
    if applied[0] and "matching_weight" in settings:
        weight = settings["matching_weight"] * run.config["matching_share"]
        logged = sorted({entry["step"] for entry in run.history if {"loss", "matching_weight"} & set(entry)})
        asked = _mean_ramp(logged, weight, run.config["planned_steps"], settings["matching_warmup_ratio"])
        lines = {"asked for by the ramp": (applied[0], [asked[step] for step in applied[0]]), **lines}
    caption = (
        "The weight of the matching loss, means since the step logged before. Where the two lines part, the cap on the "
        "matching's gradient holds the weight down."
    )
    return _lines("guards", "The guards at work", caption, lines, "weight")


def _mean_ramp(logged: list[int], weight: float, planned: int, warmup: float) -> dict[int, float]:
    """The mean weight that the ramp asks for since the last logged step, even if nothing was matched then."""
    pairs = zip([0, *logged], logged, strict=False)
    return {step: weight * fmean(ramp(each, planned, warmup) for each in range(start, step)) for start, step in pairs}


def _ratios(run: Run) -> Picture | None:
    lines = {"within / between scatter": run.feature_series("scatter_ratio"), "NC1": run.feature_series("nc1")}
    caption = "How far rows lie from their class mean, against how far class means lie apart. Lower is more compact."
    return _lines("compactness", "Compactness", caption, lines, "ratio", log=True)


def _silhouette(run: Run) -> Picture | None:
    lines = {
        "mean silhouette": run.feature_series("silhouette"),
        "separation of the nearest class means": run.feature_series("class_mean_separation"),
    }
    caption = (
        "The silhouette is at most 1, and below 0 if rows lie nearer to another class. The separation is the "
        "distance of the two nearest class means, in units of the rows' root mean squared deviation. Higher is better."
    )
    return _lines("separation", "Separation", caption, lines, "silhouette, separation")


def _modes(run: Run) -> Picture | None:
    lines = {"10 nearest neighbours": run.feature_series("mode_accuracy"), "chance": run.feature_series("mode_chance")}
    caption = "How often the nearest neighbours of a row predict its sub-class, which the training did not know."
    return _lines("modes", "Sub-classes that survive", caption, lines, "share of right guesses")


def _gradients(run: Run) -> Picture | None:
    relative, absolute = run.series("gradient_scatter"), run.series("gradient_variance")
    if not relative[0]:
        return None

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True)
        curve(above, relative, "relative")
        curve(below, absolute, "absolute", color="C1")
        finish(above, "variance / |mean|²", log=True)
        finish(below, "variance", log=True)
        above.set_xlabel("")

    caption = (
        "The variance of the task loss's gradients over mini-batches: over the squared norm of their mean (above), and "
        "as it is (below). Where training is near its end the mean is nearly 0, and the relative scatter may rise."
    )
    alt = f"Two line charts. {told('Relative', relative)} {told('Absolute', absolute)}"
    return Picture("gradients", "Scatter of mini-batch gradients", caption, alt, draw, height=4.2)


def _over_adaptation(run: Run) -> Picture | None:
    own, fresh = run.series("fall_on_batch"), run.series("fall_on_fresh")
    if not own[0]:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        curve(axes, own, "on the batch stepped on")
        curve(axes, fresh, "on a fresh batch")
        axes.fill_between(own[0], own[1], fresh[1], color="C0", alpha=0.15, linewidth=0)
        finish(axes, "fall of the loss in a step")

    caption = (
        "By how much a trial step on the task loss of a batch lowers the loss on that batch, and on another. The "
        "shaded gap is over-adaptation. It shrinks with the learning rate; compare runs of the same schedule."
    )
    alt = f"Line chart. {told('On the batch stepped on', own)} {told('On a fresh batch', fresh)}"
    return Picture("over_adaptation", "Over-adaptation", caption, alt, draw)
