"""Tables of the results: for the page in Markdown, for the screen in columns."""

from collections import Counter, defaultdict
from math import isnan
from statistics import mean, stdev
from typing import Any

from pairs import Comparison, compare, holm
from plan import ABLATED, ABLATIONS, MAIN, OTHERS
from tasks import Task

Results = dict[str, dict[str, dict[int, dict[str, Any]]]]  # task, method, seed


def column(rows: dict[int, dict[str, Any]], measure: str) -> dict[int, float]:
    return {seed: row[measure] for seed, row in rows.items()}


def family(results: Results, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], tuple[Comparison, float]]:
    """Each task's comparisons over two seeds or more, and their p-values after Holm's correction over all of these."""
    found = {
        (task, ours): compare(column(methods[ours], "accuracy"), column(methods[theirs], "accuracy"))
        for task, methods in results.items()
        for ours, theirs in pairs
        if len(set(methods.get(ours, ())) & set(methods.get(theirs, ()))) > 1
    }
    corrected = holm([comparison.p for comparison in found.values()])
    return {key: (comparison, p) for (key, comparison), p in zip(found.items(), corrected, strict=True)}


def relative_change(methods: dict[str, Any], ours: str, theirs: str, measure: str) -> float:
    """By which share of theirs a measure's mean over the common seeds is above theirs."""
    seeds = sorted(set(methods[ours]) & set(methods[theirs]))
    means = [mean(methods[name][seed][measure] for seed in seeds) for name in (ours, theirs)]
    return means[0] / means[1] - 1


def change(methods: dict[str, Any], ours: str, theirs: str, measure: str) -> str:
    """That in percent; nothing where features collapsed."""
    share = relative_change(methods, ours, theirs, measure)
    return "" if isnan(share) else f"{round(100 * share):+d} %"


def spread(rows: dict[int, dict[str, Any]], measure: str, scale: float = 1.0, digits: int = 1) -> str:
    values = [scale * row[measure] for row in rows.values()]
    return f"{mean(values):.{digits}f} ± {stdev(values) if len(values) > 1 else 0:.{digits}f}"


def gain_cell(comparison: Comparison) -> str:
    interval = "" if isnan(comparison.low) else f" ({comparison.low:+.2f} to {comparison.high:+.2f})"
    return f"{round(comparison.gain, 2) + 0.0:+.2f}{interval}"  # 0.0 makes -0 a 0


def won(comparison: Comparison) -> str:
    """Seeds won, ties counting as half, of all."""
    return f"{comparison.wins + comparison.ties / 2:g} of {comparison.seeds}"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)] + [""]


def main_table(results: Results) -> list[str]:
    """ITRA's defaults against Trainer, a row for each task; in bold what is significant after Holm's correction."""
    rows = []
    for (task, _), (comparison, p) in family(results, MAIN).items():
        methods = results[task]
        accuracies = [spread(methods[name], "accuracy", 100) for name in ("trainer", "itra")]
        gain = f"**{gain_cell(comparison)}**" if p <= 0.05 else gain_cell(comparison)
        changes = [change(methods, "itra", "trainer", name) for name in ("loss", "ece", "scatter")]
        rows.append([task, *accuracies, gain, won(comparison), *changes])
    header = ["task", "Trainer", "ITRA", "gain (95 %)", "seeds won"]
    return table([*header, "test loss", "calibration error", "scatter ratio"], rows)


def methods_table(results: Results) -> list[str]:
    """What each method gains over Trainer, or over what it stands on, where more than the defaults were run."""
    compared, rows = family(results, MAIN + OTHERS), []
    methods = [ours for ours, _ in MAIN + OTHERS if any((task, ours) in compared for task in results)]
    for task in results:
        found = [compared.get((task, method)) for method in methods]
        if sum(pair is not None for pair in found) > 1:
            cells = ["" if pair is None else f"{pair[0].gain:+.2f}" + " *" * (pair[1] <= 0.05) for pair in found]
            rows.append([task, *cells])
    return table(["task", *methods], rows)


def ablation_table(results: Results) -> list[str]:
    names = {method: (name, reference) for name, (method, reference) in ABLATIONS.items()}
    rows = []
    for (task, method), (comparison, p) in family(results, ABLATED).items():
        name, reference = names[method]
        gain = f"**{gain_cell(comparison)}**" if p <= 0.05 else gain_cell(comparison)
        changes = [change(results[task], method, reference, measure) for measure in ("loss", "scatter")]
        rows.append([name, task, gain, won(comparison), *changes])
    return table(["change", "task", "gain over the defaults (95 %)", "seeds won", "test loss", "scatter ratio"], rows)


def machines_table(results: Results) -> list[str]:
    """How many runs of which tasks each machine did."""
    runs: Counter[str] = Counter()
    tasks: dict[str, set[str]] = defaultdict(set)
    for task, methods in results.items():
        for row in (row for own in methods.values() for row in own.values()):
            runs[row["machine"]] += 1
            tasks[row["machine"]].add("GPU" if Task(task).for_gpu else "CPU")
    rows = [[name, ", ".join(sorted(tasks[name])), f"{number:,}"] for name, number in runs.most_common()]
    return table(["machine", "tasks for a", "runs"], rows)


def tuned_table(tuned: dict[str, dict[str, dict[str, float]]], seeds: dict[str, int]) -> list[str]:
    """The learning rate and the weight decay of every method, and the validation seeds that they were chosen on."""
    rows = [
        [task, *(f"{values['trainer'][name]:g}" for name in ("learning_rate", "weight_decay")), str(seeds[task])]
        for task, values in tuned.items()
    ]
    return table(["task", "learning rate", "weight decay", "seeds"], rows)


def print_means(rows: list[dict[str, Any]]) -> None:
    """A table on the screen; gains are against the first method."""
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        groups[row["task"], row["method"]][row["seed"]] = row
    names = ("accuracy", "loss", "ece", "scatter", "nc1", "train_accuracy", "step_seconds", "memory")
    print(f"{'task':<24} {'method':<34}{'seeds':>6}" + "".join(f"{name:>15}" for name in names) + "   gain (95 %)")
    for (task, method), own in groups.items():
        cells = "".join(f"{mean(column(own, name).values()):>15.4f}" for name in names)
        pair = compare(column(own, "accuracy"), column(groups[task, rows[0]["method"]], "accuracy"))
        print(f"{task:<24} {method:<34}{len(own):>6}{cells}   {gain_cell(pair)}  won {won(pair)}")
