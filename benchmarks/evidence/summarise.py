"""Write docs/evidence.md, its forest plots and README's headline: evidence.md, with the results put in.

python benchmarks/evidence/summarise.py
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import mean

from forest import main_forest, methods_forest
from kinds import kinds_table
from plan import ABLATION_METHODS, ALL_TASKS, LOW_DATA_IMAGES, MAIN, METHODS_REPORTED
from runs import HERE, Run, planned, read_results, read_tuned
from tables import Results, ablation_table, family, main_table, task_tables, tried_table, tuned_table
from targets import changes, mean_change, targets

ROOT = HERE.parents[1]
MARKS = ("<!-- evidence -->", "<!-- /evidence -->")


def current(path: Path) -> Results:
    """The results of reported seeds at today's settings, in the plan's order; all others are left out."""
    found: Results = defaultdict(lambda: defaultdict(dict))
    for row in read_results(path).values():
        run = Run(*(row[name] for name in Run._fields))
        if run in planned([run.task], [run.method], None, "test"):
            found[run.task][run.method][run.seed] = row
    order = [*ALL_TASKS, *METHODS_REPORTED, *ABLATION_METHODS]
    return {
        task: {method: found[task][method] for method in order if method in found[task]}
        for task in order
        if task in found
    }


def by_method(path: Path) -> Results:
    """All results of a file by task, method and seed; of several settings of a method, the last."""
    found: Results = defaultdict(lambda: defaultdict(dict))
    for row in read_results(path).values():
        found[row["task"]][row["method"]][row["seed"]] = row
    return found


def verdicts(results: Results) -> list[str]:
    """What the main comparison says about each task, in words; it leans where only its own interval leaves out 0."""
    groups: dict[str, list[str]] = {
        name: [] for name in ("better", "worse", "leans better", "leans worse", "no difference seen")
    }
    for (task, _), (comparison, p) in family(results, MAIN).items():
        side = "better" if comparison.gain > 0 else "worse"
        leans = comparison.low > 0 or comparison.high < 0
        verdict = side if p <= 0.05 else f"leans {side}" if leans else "no difference seen"
        groups[verdict].append(f"{task} ({comparison.gain:+.2f})")
    return [f"- {verdict}: {', '.join(tasks)}" for verdict, tasks in groups.items() if tasks]


def machines(results: Results) -> str:
    """The machine of most tasks, then every other one with the tasks, or their methods, that ran on it."""
    found: dict[str, list[str]] = defaultdict(list)
    for task, methods in results.items():
        of_machine: dict[str, list[str]] = defaultdict(list)
        for method, own in methods.items():
            for name in {row["machine"] for row in own.values()}:
                of_machine[name].append(method)
        for name, there in of_machine.items():
            found[name].append(task if len(there) == len(methods) else f"{task} ({', '.join(there)})")
    most, *others = sorted(found, key=lambda name: -len(found[name]))
    return "; ".join([most, *(f"{', '.join(found[name])} on {name}" for name in others)])


def headline(results: Results) -> str:
    """Two sentences on the settings with few labelled images, and what each kind of task gains."""
    low = {task: pair for (task, _), pair in family(results, MAIN).items() if task in LOW_DATA_IMAGES}
    if not low:
        raise ValueError("the results hold no low-data images at today's settings; run `make evidence` first")
    gains = [comparison.gain for comparison, _ in low.values()]
    better = sum(p <= 0.05 and comparison.gain > 0 for comparison, p in low.values())
    errors = changes(results, list(low), "ece")
    loss, scatter = (mean_change(results, list(low), measure) for measure in ("loss", "scatter"))
    return (
        f"With few labelled images (a small CNN, {len(low)} settings, ITRA's defaults against a tuned Trainer, paired\n"
        f"seeds) the test accuracy changes by {mean(gains):+.2f} points on average ({min(gains):+.2f} to "
        f"{max(gains):+.2f}),\nsignificantly better on {better} of {len(low)}; "
        f"the test loss by {loss:+.0f} %, the within/between scatter by\n"
        f"{scatter:+.0f} %, the calibration error by {min(errors):+.0f} to {max(errors):+.0f} %. "
        "By kind of task, each\ntask counting once and the interval over tasks:\n\n"
        + "\n".join(kinds_table(results))
        + "\nTask by task it stands in [docs/evidence.md](docs/evidence.md), which `make evidence` makes again."
    )


def page(results: Results) -> str:
    tuned = {task: methods for task, methods in read_tuned().items() if task in results}
    text = (HERE / "evidence.md").read_text()
    parts = {
        "machines": [machines(results)],
        "tried": tried_table(by_method(HERE / "tried.jsonl")),
        "verdicts": verdicts(results),
        "main": main_table(results),
        "kinds": kinds_table(results),
        "targets": targets(results),
        "tasks": task_tables(results),
        "ablations": ablation_table(results),
        "tuned": tuned_table(tuned, by_method(HERE / "tuning.jsonl")),
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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    results = current(parser.parse_args(argv).results)
    readme = ROOT / "README.md"
    readme.write_text(readme_with(readme.read_text(), headline(results)))
    (ROOT / "docs" / "evidence.md").write_text(page(results))
    main_forest(results).savefig(ROOT / "docs" / "evidence.png", dpi=100)
    methods_forest(results).savefig(ROOT / "docs" / "evidence-methods.png", dpi=100)


if __name__ == "__main__":
    main()
