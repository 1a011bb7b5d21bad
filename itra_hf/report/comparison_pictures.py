"""The pictures of a comparison: paired differences, every pair, curves of all seeds, and both feature maps."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from itra_hf.hub.scores import SIDES
from itra_hf.report.drawing import Picture, curve, finish
from itra_hf.report.maps import page_legend, pca_map
from itra_hf.report.runs import Run

STYLES = dict(zip(SIDES, (("C1", "--"), ("C0", "-")), strict=True))

# Of the runs that logged them, in this order.
CURVES = {
    "eval_loss": "evaluation loss",
    "eval_scatter_ratio": "within / between scatter",
    "eval_silhouette": "silhouette",
    "gradient_scatter": "gradient scatter, variance / |mean|²",
    "over_adaptation": "over-adaptation in a step",
}
LOGARITHMIC = ("eval_loss", "eval_scatter_ratio", "gradient_scatter")


def difference_picture(content: dict[str, Any]) -> Picture | None:
    """The paired difference of every metric: a dot for each seed, the mean and its interval; None without a pair."""
    differences = content["differences"]
    if not differences:
        return None

    def draw(figure: Figure) -> None:
        rows = figure.subplots(len(differences), 1, squeeze=False)[:, 0]
        for axes, (name, entry) in zip(rows, differences.items(), strict=True):
            values = entry["values"]
            axes.axvline(0, color="C7", linewidth=1)
            axes.plot(values, np.full(len(values), 0.3), "o", color="C0", alpha=0.7, markersize=5)
            if entry["low"] is not None:
                axes.plot([entry["low"], entry["high"]], [-0.3, -0.3], color="C3", linewidth=2)
            axes.plot(entry["difference"], -0.3, "D", color="C3", markersize=5)
            reach = 1.15 * max(abs(each) for each in (*values, entry["low"] or 0, entry["high"] or 0)) or 1.0
            axes.set(xlim=(-reach, reach), ylim=(-0.8, 0.8), yticks=[])
            axes.set_title(name, loc="left", fontsize=10.5, fontweight="bold")
            axes.tick_params(labelsize=9)
            axes.spines["left"].set_visible(False)
            axes.locator_params(axis="x", nbins=6)
        rows[-1].set_xlabel("ITRATrainer minus Trainer")

    caption = (
        "Every dot is a seed; diamond and bar are their mean and its 95 % interval. Left of 0, ITRATrainer has less."
    )
    told = [f"{name}: {entry['difference']:+.3g} in the mean." for name, entry in differences.items()]
    alt = f"Paired differences, ITRATrainer minus Trainer, by seed. {' '.join(told)}"
    return Picture("comparison", "Differences", caption, alt, draw, height=0.6 + 0.85 * len(differences))


def comparison_pictures(content: dict[str, Any], folder: Path) -> list[Picture]:
    """Every pair of runs, and the curves of those runs whose folders are there."""
    runs = [(entry, _run(folder, entry)) for entry in content["runs"] if entry["trainer"] in SIDES]
    pictures = [_pairs(content), *(_curves(runs, name, label) for name, label in CURVES.items())]
    return [picture for picture in pictures if picture is not None]


def map_pictures(content: dict[str, Any], folder: Path) -> tuple[list[Picture], list[dict[str, Any]]]:
    """The maps after training of the first seed whose runs saved their features, and the legend of the classes."""
    for seed in dict.fromkeys(entry["seed"] for entry in content["runs"]):
        runs = {entry["trainer"]: _run(folder, entry) for entry in content["runs"] if entry["seed"] == seed}
        found = {trainer: runs.get(trainer) for trainer in SIDES}
        saved = {trainer: run.after for trainer, run in found.items() if run is not None and run.after is not None}
        if len(saved) == len(SIDES):
            pictures = [
                pca_map(saved[trainer], f"map-{trainer}", f"{trainer}, seed {seed}, after training")
                for trainer in SIDES
            ]
            return pictures, page_legend(saved[SIDES[0]])
    return [], []


def _run(folder: Path, entry: dict[str, Any]) -> Run | None:
    try:
        return Run(folder / Path(entry["folder"]).name)  # nothing outside, whatever the file says
    except FileNotFoundError:
        return None


def _pairs(content: dict[str, Any]) -> Picture | None:
    """The main metric of both trainers, a line for each seed; None without a pair."""
    name = content["metric"]
    if name not in content["differences"]:
        return None
    values = {(entry["trainer"], entry["seed"]): entry["metrics"].get(name) for entry in content["runs"]}
    pairs = {seed: [values[trainer, seed] for trainer in SIDES] for seed in content["differences"][name]["seeds"]}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for pair in pairs.values():
            axes.plot([0, 1], pair, "o-", color="C0", alpha=0.6, markersize=5, linewidth=1.3)
        axes.set(xlim=(-0.3, 1.3), ylabel=name)
        axes.set_xticks([0, 1], SIDES)

    alt = f"Line for each of {len(pairs)} seeds from the {name} of Trainer to that of ITRATrainer."
    better = "Up" if content["greater_is_better"] else "Down"
    return Picture("pairs", f"Pairs: {name}", f"A line joins the two runs of a seed. {better} is better.", alt, draw)


def _curves(runs: list[tuple[dict[str, Any], Run | None]], name: str, label: str) -> Picture | None:
    """A series of every run, one colour for each trainer."""
    series = [(entry["trainer"], run.series(name)) for entry, run in runs if run is not None]
    series = [(trainer, (steps, values)) for trainer, (steps, values) in series if len(steps) > 1]
    if not series:
        return None

    def draw(figure: Figure) -> None:
        axes, seen = figure.subplots(), set[str]()
        for trainer, (steps, values) in series:
            colour, dashes = STYLES[trainer]
            legend = None if trainer in seen else trainer
            curve(axes, (steps, values), legend, color=colour, linestyle=dashes, alpha=0.75, linewidth=1.3)
            seen.add(trainer)
        finish(axes, label, log=name in LOGARITHMIC and all(value > 0 for _, (_, values) in series for value in values))

    ends = {trainer: [values[-1] for each, (_, values) in series if each == trainer] for trainer in SIDES}
    told = [f"{trainer} ends at {np.mean(values):.3g} in the mean." for trainer, values in ends.items() if values]
    alt = f"Line chart of the {label} over the steps, a line for each run. {' '.join(told)}"
    return Picture(name, label[0].upper() + label[1:], "A line for each run; dots are what was measured.", alt, draw)
