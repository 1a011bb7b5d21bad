"""Tables of the results: for the page in Markdown, for the screen in columns."""

from collections import defaultdict
from math import isnan
from statistics import mean, stdev
from typing import Any

from pairs import Comparison, compare, holm
from plan import ABLATED, ABLATIONS, MAIN, OTHERS, RIVALS

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
    return "" if isnan(share) else f"{100 * share:+.0f} %"


def time_change(methods: dict[str, Any], ours: str, theirs: str) -> str:
    """By how much the time of a step changes, in percent; nothing where the two ran on different machines."""
    same = machines_of(methods[ours]) == machines_of(methods[theirs])
    return change(methods, ours, theirs, "step_seconds") if same else ""


def machines_of(rows: dict[int, dict[str, Any]]) -> set[str]:
    return {row["machine"] for row in rows.values()}


def spread(rows: dict[int, dict[str, Any]], measure: str, scale: float = 1.0, digits: int = 1) -> str:
    values = [scale * row[measure] for row in rows.values()]
    return f"{mean(values):.{digits}f} ± {stdev(values) if len(values) > 1 else 0:.{digits}f}"


def gain_cells(comparison: Comparison, p: float) -> list[str]:
    known = not isnan(comparison.low)
    interval = f" ({comparison.low:+.2f} to {comparison.high:+.2f})" if known else ""
    return [
        f"{comparison.gain:+.2f}{interval}",
        f"{p:.2g}",
        f"{comparison.wins} / {comparison.ties} / {comparison.losses}",
    ]


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)] + [""]


def main_table(results: Results) -> list[str]:
    rows = []
    for (task, ours), (comparison, p) in family(results, MAIN).items():
        methods = results[task]
        changes = [change(methods, ours, "trainer", name) for name in ("loss", "ece", "scatter", "nc1")]
        changes.append(time_change(methods, ours, "trainer"))
        accuracies = [spread(methods[name], "accuracy", 100) for name in ("trainer", ours)]
        rows.append([task, str(comparison.seeds), *accuracies, *gain_cells(comparison, p), *changes])
    header = ["task", "seeds", "Trainer", "ITRA", "gain in points (95 %)", "p (Holm)", "wins / ties / losses"]
    return table([*header, "test loss", "calibration error", "scatter ratio", "NC1", "CPU time per step"], rows)


def task_tables(results: Results) -> list[str]:
    compared = family(results, OTHERS) | family(results, MAIN)
    against = dict(OTHERS)
    lines = []
    for task, methods in results.items():
        rows, usual = [], machines_of(next(iter(methods.values())))
        for method, own in methods.items():
            if ":" in method:
                continue
            gain = gain_cells(*compared[task, method]) if (task, method) in compared else ["", "", ""]
            name = method if against.get(method, "trainer") == "trainer" else f"{method} (against {against[method]})"
            scores = [
                spread(own, "accuracy", 100, 2),
                *gain,
                spread(own, "macro_f1", 100, 2),
                spread(own, "loss", 1, 3),
                spread(own, "train_loss", 1, 3),
            ]
            features = [spread(own, "ece", 100, 1), spread(own, "scatter", 1, 3), spread(own, "nc1", 1, 3)]
            time = f"{1000 * mean(column(own, 'step_seconds').values()):.1f}"
            costs = [time * (machines_of(own) == usual), f"{mean(column(own, 'memory').values()):.0f}"]
            rows.append([name, str(len(own)), *scores, *features, *costs])
        header = ["method", "seeds", "accuracy", "gain (95 %)", "p (Holm)", "w / t / l", "macro F1", "test loss"]
        lines += [
            f"### {task}",
            "",
            *table([*header, "training loss", "ECE, %", "scatter ratio", "NC1", "ms per step", "memory, MB"], rows),
        ]
    return lines


def rivals_table(results: Results) -> list[str]:
    """What ITRA's defaults gain over each rival on the seeds that both have; a row for each task."""
    rows = []
    for task, methods in results.items():
        gains = [over(methods, "itra", rival) for rival in RIVALS]
        if any(gains):
            rows.append([task, *gains])
    return table(["task", *RIVALS], rows)


def ablation_table(results: Results) -> list[str]:
    names = {method: (name, reference) for name, (method, reference) in ABLATIONS.items()}
    rows = [
        [
            names[method][0],
            task,
            *gain_cells(comparison, p),
            *(change(results[task], method, names[method][1], m) for m in ("loss", "scatter", "train_loss")),
        ]
        for (task, method), (comparison, p) in family(results, ABLATED).items()
    ]
    header = ["change", "task", "gain over the default (95 %)", "p (Holm)", "w / t / l"]
    return table([*header, "test loss", "scatter ratio", "training loss"], rows)


def over(methods: dict[str, Any], ours: str, theirs: str) -> str:
    """What a method gains over another on the seeds that both have, uncorrected; nothing where there are none."""
    ours_and_theirs = [column(methods.get(name, {}), "accuracy") for name in (ours, theirs)]
    if not set(ours_and_theirs[0]) & set(ours_and_theirs[1]):
        return ""
    pair = compare(*ours_and_theirs)
    return gain_cells(pair, pair.p)[0]


def print_means(rows: list[dict[str, Any]]) -> None:
    """A table on the screen; gains are against the first method."""
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        groups[row["task"], row["method"]][row["seed"]] = row
    names = ("accuracy", "loss", "ece", "scatter", "nc1", "train_accuracy", "step_seconds", "memory")
    print(
        f"{'task':<24} {'method':<34}{'seeds':>6}"
        + "".join(f"{name:>15}" for name in names)
        + "   gain (95 %)  w / t / l"
    )
    for (task, method), own in groups.items():
        cells = "".join(f"{mean(column(own, name).values()):>15.4f}" for name in names)
        pair = compare(column(own, "accuracy"), column(groups[task, rows[0]["method"]], "accuracy"))
        gain, _, counts = gain_cells(pair, pair.p)
        print(f"{task:<24} {method:<34}{len(own):>6}{cells}   {gain}  {counts}")
