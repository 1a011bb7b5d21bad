"""Write docs/evidence.md, its forest plot and README's headline from the results file, and from nothing else.

python benchmarks/evidence/summarise.py
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure
from pairs import Comparison, compare, holm
from plan import ABLATED, ABLATIONS, LOW_DATA_IMAGES, MAIN, OTHERS
from runs import HERE, Run, planned, read_results, read_tuned

ROOT = HERE.parents[1]
MARKS = ("<!-- evidence -->", "<!-- /evidence -->")
Results = dict[str, dict[str, dict[int, dict[str, Any]]]]  # task, method, seed


def current(path: Path) -> Results:
    """The results on test rows whose settings are today's; what other settings gave is left out."""
    results: Results = defaultdict(lambda: defaultdict(dict))
    for row in read_results(path).values():
        run = Run(*(row[name] for name in Run._fields))
        if run.split == "test" and run in planned([run.task], [run.method], [run.seed], "test"):
            results[run.task][run.method][run.seed] = row
    return results


def column(rows: dict[int, dict[str, Any]], measure: str) -> dict[int, float]:
    return {seed: row[measure] for seed, row in rows.items()}


def family(results: Results, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], tuple[Comparison, float]]:
    """Each task's comparisons of this family, and their p-values after Holm's correction over all of them."""
    found = {
        (task, ours): compare(column(methods[ours], "accuracy"), column(methods[theirs], "accuracy"))
        for task, methods in results.items()
        for ours, theirs in pairs
        if ours in methods and theirs in methods
    }
    corrected = holm([comparison.p for comparison in found.values()])
    return {key: (comparison, p) for (key, comparison), p in zip(found.items(), corrected, strict=True)}


def change(methods: dict[str, Any], ours: str, theirs: str, measure: str) -> str:
    """By how much a measure's mean over the common seeds changes, in percent."""
    seeds = sorted(set(methods[ours]) & set(methods[theirs]))
    means = [mean(methods[name][seed][measure] for seed in seeds) for name in (ours, theirs)]
    return f"{100 * (means[0] / means[1] - 1):+.0f} %"


def spread(rows: dict[int, dict[str, Any]], measure: str, scale: float = 1.0, digits: int = 1) -> str:
    values = [scale * row[measure] for row in rows.values()]
    return f"{mean(values):.{digits}f} ± {stdev(values) if len(values) > 1 else 0:.{digits}f}"


def gain_cells(comparison: Comparison, p: float) -> list[str]:
    interval = f"{comparison.gain:+.2f} ({comparison.low:+.2f} to {comparison.high:+.2f})"
    return [interval, f"{p:.2g}", f"{comparison.wins} / {comparison.ties} / {comparison.losses}"]


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)] + [""]


def main_table(results: Results) -> list[str]:
    rows = []
    for (task, ours), (comparison, p) in family(results, MAIN).items():
        methods = results[task]
        changes = [change(methods, ours, "trainer", name) for name in ("loss", "ece", "scatter", "nc1", "step_seconds")]
        accuracies = [spread(methods[name], "accuracy", 100) for name in ("trainer", ours)]
        rows.append([task, str(comparison.seeds), *accuracies, *gain_cells(comparison, p), *changes])
    header = ["task", "seeds", "Trainer", "ITRA", "gain in points (95 %)", "p (Holm)", "wins / ties / losses"]
    return table([*header, "test loss", "calibration error", "scatter ratio", "NC1", "CPU time per step"], rows)


def task_tables(results: Results) -> list[str]:
    compared = family(results, OTHERS) | family(results, MAIN)
    against = dict(OTHERS)
    lines = []
    for task, methods in results.items():
        rows = []
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
            ]
            features = [spread(own, "ece", 100, 1), spread(own, "scatter", 1, 3), spread(own, "nc1", 1, 3)]
            costs = [
                f"{1000 * mean(column(own, 'step_seconds').values()):.1f}",
                f"{mean(column(own, 'memory').values()):.0f}",
            ]
            rows.append([name, str(len(own)), *scores, *features, *costs])
        header = ["method", "seeds", "accuracy", "gain (95 %)", "p (Holm)", "w / t / l", "macro F1", "test loss"]
        lines += [
            f"### {task}",
            "",
            *table([*header, "ECE, %", "scatter ratio", "NC1", "ms per step", "memory, MB"], rows),
        ]
    return lines


def ablation_table(results: Results) -> list[str]:
    names = {method: name for name, method in ABLATIONS.items()}
    rows = [
        [
            names[method],
            task,
            *gain_cells(comparison, p),
            *(change(results[task], method, "itra", m) for m in ("loss", "scatter")),
        ]
        for (task, method), (comparison, p) in family(results, ABLATED).items()
    ]
    return table(
        ["change", "task", "gain over the default (95 %)", "p (Holm)", "w / t / l", "test loss", "scatter ratio"], rows
    )


def verdicts(results: Results) -> list[str]:
    """What the main comparison says about each task, in words."""
    groups: dict[str, list[str]] = {"better": [], "worse": [], "no difference seen": []}
    for (task, _), (comparison, p) in family(results, MAIN).items():
        verdict = "no difference seen" if p > 0.05 else "better" if comparison.gain > 0 else "worse"
        groups[verdict].append(f"{task} ({comparison.gain:+.2f})")
    return [f"- {verdict}: {', '.join(tasks)}" for verdict, tasks in groups.items() if tasks]


def headline(results: Results) -> str:
    """Two sentences on the settings with few labelled images."""
    low = {task: pair for (task, _), pair in family(results, MAIN).items() if task in LOW_DATA_IMAGES}
    gains = [comparison.gain for comparison, _ in low.values()]
    better = sum(p <= 0.05 and comparison.gain > 0 for comparison, p in low.values())
    losses, scatters = (
        mean(
            mean(column(results[task]["itra"], m).values()) / mean(column(results[task]["trainer"], m).values())
            for task in low
        )
        for m in ("loss", "scatter")
    )
    return (
        f"With few labelled images (a small CNN, {len(low)} settings, ITRA's defaults against a tuned Trainer, paired\n"
        f"seeds) the test accuracy changes by {mean(gains):+.2f} points on average ({min(gains):+.2f} to "
        f"{max(gains):+.2f}),\nsignificantly better on {better} of {len(low)}; "
        f"the test loss by {100 * (losses - 1):+.0f} %, the\nwithin/between scatter by {100 * (scatters - 1):+.0f} %.\n"
        "What else was run, where it does not gain included, is in [docs/evidence.md](docs/evidence.md), which\n"
        "`make evidence` makes again."
    )


def forest(results: Results, path: Path) -> None:
    """Every compared method's gain over Trainer with its 95 % interval, one panel a task."""
    compared = family(results, MAIN) | family(results, [pair for pair in OTHERS if pair[1] == "trainer"])
    tasks = [task for task in results if any(key[0] == task for key in compared)]
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(5 * columns, 0.8 + 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for task, axis in zip(tasks, axes, strict=False):
        own = [(method, pair[0]) for (name, method), pair in compared.items() if name == task][::-1]
        for height, (method, comparison) in enumerate(own):
            colour = "C1" if method.startswith("itra") else "C0"
            axis.plot([comparison.low, comparison.high], [height, height], color=colour)
            axis.plot(comparison.gain, height, "o", color=colour, markersize=4)
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set(title=task, yticks=range(len(own)), yticklabels=[method for method, _ in own])
    for axis in axes:
        axis.set_visible(False)
    figure.supxlabel("gain over Trainer, percentage points of test accuracy, 95 % intervals of paired differences")
    figure.savefig(path, dpi=100)


def page(results: Results) -> str:
    tuned = [
        [task, method, ", ".join(f"{name} {value:g}" for name, value in values.items())]
        for task, methods in read_tuned().items()
        if task in results
        for method, values in methods.items()
    ]
    text = (HERE / "evidence.md").read_text()
    parts = {
        "verdicts": verdicts(results),
        "main": main_table(results),
        "tasks": task_tables(results),
        "ablations": ablation_table(results),
        "tuned": table(["task", "method", "chosen"], tuned),
    }
    for name, lines in parts.items():
        text = text.replace(f"{{{name}}}", "\n".join(lines))
    return text


def readme_with(text: str, new: str) -> str:
    """The README with its headline between its marks."""
    begin, end = MARKS
    if begin not in text or end not in text:
        raise ValueError(f"README.md has no marks {begin} and {end} for the headline to stand between")
    return f"{text.split(begin)[0]}{begin}\n{new}\n{end}{text.split(end)[1]}"


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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    results = current(parser.parse_args(argv).results)
    (ROOT / "docs" / "evidence.md").write_text(page(results))
    forest(results, ROOT / "docs" / "evidence.png")
    readme = ROOT / "README.md"
    readme.write_text(readme_with(readme.read_text(), headline(results)))


if __name__ == "__main__":
    main()
