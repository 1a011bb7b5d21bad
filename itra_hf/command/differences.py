"""What a comparison says: scores, paired differences, a verdict."""

import math
from collections import Counter
from dataclasses import fields
from typing import Any

import numpy as np
from scipy import stats

from itra_hf.command.kept_runs import SettingsError
from itra_hf.command.tasks import Task
from itra_hf.config import ITRAConfig, MatchingArguments
from itra_hf.hub.public import public_arguments, public_name
from itra_hf.hub.scores import SIDES

FALLING = ("loss", "mse", "scatter_ratio")  # the scores of which less is better


def paired_differences(runs: list[dict[str, Any]], sides: tuple[str, str] = SIDES) -> dict[str, dict[str, Any]]:
    """For each score, ITRATrainer's minus Trainer's by seed, and the 95 % confidence interval of the mean.

    The interval is Student's: mean +- t * s / sqrt(n). s is the standard deviation of the n differences, and t the
    0.975 quantile of n - 1 degrees of freedom. The interval is None for fewer than two seeds, and if all differences
    are equal up to rounding: then nothing is known of their spread.

    Args:
        runs: as in `runs.jsonl`; seeds without both runs, and scores that are not finite, are left out.
        sides: the values of `trainer` that are compared; the second minus the first.

    Example:
        >>> runs = [{"seed": s, "trainer": name, "metrics": {"accuracy": value}}
        ...         for s, pair in enumerate([(0.5, 0.75), (0.5, 0.5), (0.25, 0.5)])
        ...         for name, value in zip(("Trainer", "ITRATrainer"), pair)]
        >>> found = paired_differences(runs)["accuracy"]
        >>> found["values"], round(found["low"], 3), round(found["high"], 3)
        ([0.25, 0.0, 0.25], -0.192, 0.525)
    """
    scores: dict[str, dict[tuple[str, int], float]] = {}
    for run in runs:
        for metric, value in run["metrics"].items():
            if value is not None:
                scores.setdefault(metric, {})[run["trainer"], run["seed"]] = value
    found = {}
    for metric, by_run in scores.items():
        seeds = sorted({seed for _, seed in by_run if all((name, seed) in by_run for name in sides)})
        if seeds:
            plain, itra = (np.array([by_run[name, seed] for seed in seeds]) for name in sides)
            values = itra - plain
            low = high = None
            if np.ptp(values) > 1e-9 * max(np.abs(plain).max(), np.abs(itra).max()):  # more than rounding
                half = stats.t.ppf(0.975, len(seeds) - 1) * stats.sem(values)
                low, high = float(values.mean() - half), float(values.mean() + half)
            means = {"trainer": float(plain.mean()), "itra": float(itra.mean()), "difference": float(values.mean())}
            found[metric] = {"seeds": seeds, "values": values.tolist(), **means, "low": low, "high": high}
    return found


def judge(metric: str, greater_is_better: bool, found: dict[str, Any] | None) -> tuple[str, str]:
    """The verdict, `"helps"`, `"hurts"` or `"cannot tell"`, and a sentence that says why.

    Example:
        >>> judge("loss", False, {"seeds": [1, 2, 3], "difference": -0.3, "low": -0.5, "high": -0.1})[0]
        'helps'
    """
    if found is None or found["low"] is None:
        count = len(found["seeds"]) if found else 0
        why = "all differences are the same" if count > 1 else "an interval needs two"
        return "cannot tell", f"It cannot tell from {_count(count)}: {why}. Take more --seeds."
    low, high, mean = found["low"], found["high"], found["difference"]
    interval = f"(95 % confidence interval {low:+.4f} to {high:+.4f})"
    seeds = _count(len(found["seeds"]))
    if low <= 0 <= high:
        told = f"the {metric} differs by {mean:+.4f} on average {interval}, which may be chance"
        return "cannot tell", f"It cannot tell from {seeds}: {told}. More --seeds narrow the interval."
    verdict, better = ("helps", "better") if (low > 0) == greater_is_better else ("hurts", "worse")
    return verdict, f"The matching {verdict}: over {seeds}, the {metric} is {better} by {abs(mean):.4f} {interval}."


def _count(seeds: int) -> str:
    return f"{seeds} seed" + "s" * (seeds != 1)


def table(result: dict[str, Any]) -> str:
    """The scores side by side, for a terminal; for further arms, only the main metric and the loss."""
    parts = [_lines("Trainer", "ITRATrainer", result["differences"])]
    chosen = (result["metric"], "loss")
    for pair in result["also"]:
        found = {name: entry for name, entry in pair["differences"].items() if name in chosen}
        parts.append([f"{pair['second']} against {pair['first']}:", *_lines("reference", "arm", found)])
    return "\n\n".join("\n".join(lines) for lines in parts)


def _lines(first: str, second: str, differences: dict[str, Any]) -> list[str]:
    lines = [f"{'':<16}{first:>12}{second:>13}{'difference':>12}   95 % interval"]
    for metric, found in differences.items():
        interval = "" if found["low"] is None else f"{found['low']:+.4f} to {found['high']:+.4f}"
        means = f"{found['trainer']:>12.4f}{found['itra']:>13.4f}{found['difference']:>+12.4f}"
        lines.append(f"{metric:<16}{means}   {interval}")
    return lines


def described(task: Task, args: ITRAConfig, samples_per_class: int | None) -> dict[str, Any]:
    """The data, the model and the options of a comparison, for its report."""
    told = {"model": public_name(task.model_name), "dataset": public_name(task.dataset_name)}
    rows = {"training rows": len(task.train), "evaluation rows": len(task.test)}
    length = {"max_length": task.source["max_length"]} if task.kind == "text" and "max_length" in task.source else {}
    ours = {option.name: getattr(args, option.name) for option in fields(MatchingArguments)}
    drawn = {} if samples_per_class is None else {"samples_per_class": samples_per_class}
    return told | rows | drawn | length | public_arguments(args) | ours


def _of_like(differences: dict[str, dict[str, Any]], *arms: str) -> dict[str, dict[str, Any]]:
    """The differences without the loss, where label smoothing makes another loss in one of the arms."""
    smoothed = {"label_smoothing_factor=" in arm for arm in arms}
    return {name: entry for name, entry in differences.items() if name != "loss" or len(smoothed) == 1}


def summarise(
    task: Task, args: ITRAConfig, settings: dict[str, Any], runs: list[dict[str, Any]], pairs: list[tuple[str, str]]
) -> dict[str, Any]:
    """The content of `comparison.json`; `pairs` names further arms to compare."""
    metric = _metric(args, runs)
    greater = metric not in FALLING  # `greater_is_better` is True by default for all but losses
    differences = paired_differences(runs)
    verdict, sentence = judge(metric, greater, differences.get(metric))
    further = [
        {"first": one, "second": other, "differences": _of_like(paired_differences(runs, (one, other)), one, other)}
        for one, other in pairs
    ]
    hardly = [
        f"Seed {run['seed']}, {run['trainer']}: the matching hardly took place: {run['hardly']}"
        for run in runs
        if run.get("hardly")
    ]
    return {
        "task": f"{task.kind}-classification",
        "model": settings["model"],
        "dataset": settings["dataset"],
        "metric": metric,
        "greater_is_better": greater,
        "settings": settings,
        "runs": runs,
        "differences": differences,
        "also": further,
        "verdict": verdict,
        "sentence": sentence,
        "matched": next((run["matched"] for run in runs if run.get("matched")), None),
        "warnings": hardly + _learned_nothing(task, differences),
    }


def _metric(args: ITRAConfig, runs: list[dict[str, Any]]) -> str:
    """The score that decides the verdict."""
    known = runs[0]["metrics"]
    wanted = (args.metric_for_best_model or ("accuracy" if "accuracy" in known else "loss")).removeprefix("eval_")
    if wanted not in known:
        raise SettingsError(f"metric_for_best_model={wanted!r} is unknown; choose one of {', '.join(known)}")
    return wanted


def _learned_nothing(task: Task, differences: dict[str, dict[str, Any]]) -> list[str]:
    """A warning if both accuracies are only those of guessing the most frequent class, up to sampling noise."""
    if task.names is None or "accuracy" not in differences:
        return []
    rows = len(task.test)
    share = Counter(task.test["labels"]).most_common(1)[0][1] / rows
    noise = 1.96 * math.sqrt(share * (1 - share) / rows)
    found = differences["accuracy"]
    if max(found["trainer"], found["itra"]) > share + noise:
        return []
    return [
        f"Neither model has learned: guessing the most frequent class has an accuracy of {share:.4f} +- {noise:.4f}. "
        "Train longer, or with another learning rate."
    ]
