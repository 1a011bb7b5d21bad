"""From the results file to docs/evidence.md."""

from collections import defaultdict
from statistics import mean, stdev
from typing import Any


def print_means(rows: list[dict[str, Any]]) -> None:
    groups = defaultdict(list)
    for row in rows:
        groups[row["task"], row["method"]].append(row)
    names = ("accuracy", "loss", "ece", "scatter", "nc1", "train_accuracy", "step_seconds", "memory")
    print(f"{'task':<24}{'method':<34}{'seeds':>6}" + "".join(f"{name:>15}" for name in names))
    for (task, method), own in groups.items():
        base = {row["seed"]: row for row in groups[task, rows[0]["method"]]}
        gains = [100 * (row["accuracy"] - base[row["seed"]]["accuracy"]) for row in own if row["seed"] in base]
        cells = "".join(f"{mean(row[name] for row in own):>15.4f}" for name in names)
        gain = f"  {mean(gains):+.2f} +- {stdev(gains) / len(gains) ** 0.5:.2f}" if len(gains) > 1 and any(gains) else ""
        print(f"{task:<24}{method:<34}{len(own):>6}{cells}{gain}")
