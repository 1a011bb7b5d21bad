"""What a comparison says: scores, paired differences, a verdict."""

import math
from collections import Counter
from dataclasses import fields
from typing import Any

from itra_hf.command.differences import judge, paired_differences
from itra_hf.command.kept_runs import SettingsError
from itra_hf.command.tasks import Task
from itra_hf.config import ITRAConfig, MatchingArguments
from itra_hf.hub.public import public_arguments, public_name

FALLING = ("loss", "mse", "scatter_ratio")  # the scores of which less is better


def described(task: Task, args: ITRAConfig, samples_per_class: int | None) -> dict[str, Any]:
    """What a comparison tells of its runs: data, model, and options."""
    told = {"model": public_name(task.model_name), "dataset": public_name(task.dataset_name)}
    rows = {"training rows": len(task.train), "evaluation rows": len(task.test)}
    length = {"max_length": task.source["max_length"]} if task.kind == "text" and "max_length" in task.source else {}
    ours = {option.name: getattr(args, option.name) for option in fields(MatchingArguments)}
    drawn = {} if samples_per_class is None else {"samples_per_class": samples_per_class}
    return told | rows | drawn | length | public_arguments(args) | ours


def summarise(
    task: Task, args: ITRAConfig, settings: dict[str, Any], runs: list[dict[str, Any]], pairs: list[tuple[str, str]]
) -> dict[str, Any]:
    """The content of `comparison.json`; `pairs` of further arms are compared, too."""
    metric = _metric(args, runs)
    greater = metric not in FALLING  # `greater_is_better` is True by default for all but losses
    differences = paired_differences(runs)
    verdict, sentence = judge(metric, greater, differences.get(metric))
    return {
        "task": f"{task.kind}-classification",
        "model": settings["model"],
        "dataset": settings["dataset"],
        "metric": metric,
        "greater_is_better": greater,
        "settings": settings,
        "runs": runs,
        "differences": differences,
        "also": [
            {"first": pair[0], "second": pair[1], "differences": paired_differences(runs, pair)} for pair in pairs
        ],
        "verdict": verdict,
        "sentence": sentence,
        "matched": next((run["matched"] for run in runs if run.get("matched")), None),
        "warnings": [
            f"Seed {run['seed']}: the matching hardly took place: {run['hardly']}" for run in runs if run.get("hardly")
        ]
        + _learned_nothing(task, differences),
    }


def _metric(args: ITRAConfig, runs: list[dict[str, Any]]) -> str:
    """The score that decides."""
    known = runs[0]["metrics"]
    wanted = (args.metric_for_best_model or ("accuracy" if "accuracy" in known else "loss")).removeprefix("eval_")
    if wanted not in known:
        raise SettingsError(f"metric_for_best_model={wanted!r} is unknown; choose one of {', '.join(known)}")
    return wanted


def _learned_nothing(task: Task, differences: dict[str, dict[str, Any]]) -> list[str]:
    """A warning where both accuracies are those of always guessing the most frequent class, up to sampling noise."""
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
