"""Choose each task's learning rate and weight decay, then each method's knob, on validation rows."""

import itertools
import json
from math import inf
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from methods import (
    BASELINE,
    FULL_BASELINE,
    FULL_TEXT_BASELINE,
    GPU_BASELINE,
    LORA_BASELINE,
    LOW_TEXT_BASELINE,
    METHODS,
    MORE_RATES,
    RESNET_BASELINE,
    TEXT_BASELINE,
    VIT_BASELINE,
    WHOLE_TEXT_BASELINE,
)
from plan import tuning_seeds
from runs import TUNED, planned, read_tuned, run_all
from tasks import Task


def tune(
    task: str, methods: list[str], seeds: list[int] | None, results: Path, folders: dict[str, str], workers: int
) -> None:
    """Write to tuned.json what was best; Trainer's learning rate and weight decay hold for all methods."""
    for method in dict.fromkeys(["trainer", *methods]):
        if method != "trainer" and METHODS[method].knob is None:
            continue
        grid = grid_of(task, method)
        runs = planned([task], [method], seeds or tuning_seeds(task, method), "validation", grid)
        rows = run_all(runs, results, folders, workers)
        tuned = read_tuned()
        tuned.setdefault(task, {})[method] = best(rows, grid)
        TUNED.write_text(json.dumps(tuned, indent=1, sort_keys=True) + "\n")
        print(f"{task} {method}: {tuned[task][method]}", flush=True)


def grid_of(task: str, method: str) -> list[dict[str, Any]]:
    """The settings that a method is tuned over: those of its knob, of Trainer learning rate and weight decay."""
    knob, values = METHODS[method].knob, METHODS[method].grid
    return _baseline(task) if knob is None else [{knob: value} for value in values]


def _baseline(task: str) -> list[dict[str, Any]]:
    network, all_rows = Task(task).network, Task(task).size == "all"
    if Task(task).for_gpu:
        grid = GPU_BASELINE[network]
    elif network.endswith("-lora"):
        grid = LORA_BASELINE
    elif Task(task).is_text and network.endswith("-last2"):
        grid = FULL_TEXT_BASELINE if all_rows else TEXT_BASELINE
    elif Task(task).is_text:
        grid = LOW_TEXT_BASELINE if all_rows else WHOLE_TEXT_BASELINE
    elif network == "cnn":
        grid = FULL_BASELINE if all_rows else BASELINE
    else:
        grid = VIT_BASELINE if network == "vit" else RESNET_BASELINE
    rates = (*grid["learning_rate"], *MORE_RATES.get(task, ()))
    pairs = itertools.product(rates, grid["weight_decay"])
    return [{"learning_rate": rate, "weight_decay": decay} for rate, decay in pairs]


def rows_at(rows: list[dict[str, Any]], point: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows whose settings are those of a point of the grid."""
    return [row for row in rows if point.items() <= row["settings"].items()]


def best(rows: list[dict[str, Any]], grid: list[dict[str, Any]]) -> dict[str, Any]:
    """The one-standard-error rule: of the settings as accurate as the best, up to one standard error of the paired
    difference over seeds, that of the lowest mean loss."""
    own = [{row["seed"]: row for row in rows_at(rows, point)} for point in grid]
    top = max(own, key=lambda scores: mean(row["accuracy"] for row in scores.values()))

    def is_as_good(scores: dict[int, dict[str, Any]]) -> bool:
        behind = [top[seed]["accuracy"] - scores[seed]["accuracy"] for seed in top]
        return mean(behind) <= (stdev(behind) / len(behind) ** 0.5 if len(behind) > 1 else 0.0)

    losses = [mean(row["loss"] for row in scores.values()) if is_as_good(scores) else inf for scores in own]
    return grid[losses.index(min(losses))]
