"""Write docs/evidence.md, its forest plots and README's headline: evidence.md, with the results put in.

python benchmarks/evidence/summarise.py
"""

import argparse
from collections import Counter, defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from forest import main_forest, methods_forest
from kinds import kinds_table
from pairs import verdict
from plan import ABLATION_METHODS, ALL_TASKS, FRESH_TEXTS, LOW_DATA_IMAGES, MAIN, METHODS_REPORTED, tuning_seeds
from runs import HERE, Run, planned, read_results, read_tuned
from tables import Results, ablation_table, family, machines_of, main_table, rivals_table, task_tables
from targets import changes, mean_change, targets
from tried import tried_table, tuned_table
from tune import grid_of

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


def of(results: Results, tasks: list[str]) -> Results:
    """Those results that are of some tasks, whose comparisons are corrected by themselves."""
    return {task: results[task] for task in tasks if task in results}


def tuning_rows(tuned: dict[str, dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The runs that each task's and method's settings were chosen from."""
    found = read_results(HERE / "tuning.jsonl")
    return {
        (task, method): [
            found[run.key]
            for run in planned([task], [method], tuning_seeds(task, method), "validation", grid_of(task, method))
        ]
        for task, methods in tuned.items()
        for method in methods
    }


def verdicts(results: Results) -> list[str]:
    """What the main comparison says about each task, in words."""
    groups: dict[str, list[str]] = {
        name: [] for name in ("better", "worse", "leans better", "leans worse", "no difference seen")
    }
    for (task, _), (comparison, p) in family(results, MAIN).items():
        groups[verdict(comparison, p)].append(f"{task} ({comparison.gain:+.2f})")
    return [f"- {verdict}: {', '.join(tasks)}" for verdict, tasks in groups.items() if tasks]


def machines(results: Results) -> str:
    """The machine of most tasks' methods, then every other one with the tasks, or their methods, that ran on it."""
    found: dict[str, list[str]] = defaultdict(list)
    methods_on: Counter[str] = Counter()
    for task, methods in results.items():
        of_machine: dict[str, list[str]] = defaultdict(list)
        for method, own in methods.items():
            for name in machines_of(own):
                of_machine[name].append(method)
        for name, there in of_machine.items():
            found[name].append(task if len(there) == len(methods) else f"{task} ({', '.join(there)})")
            methods_on[name] += len(there)
    most, *others = (name for name, _ in methods_on.most_common())
    return "; ".join([most, *(f"{', '.join(found[name])} on {name}" for name in others)])


def few_images(results: Results) -> str:
    """What ITRA's defaults change on the settings with few labelled images, as one clause."""
    low = {task: pair for (task, _), pair in family(results, MAIN).items() if task in LOW_DATA_IMAGES}
    if not low:
        raise ValueError("the results hold no low-data images at today's settings; run `make evidence` first")
    gains = [comparison.gain for comparison, _ in low.values()]
    better = sum(verdict(comparison, p) == "better" for comparison, p in low.values())
    errors = changes(results, list(low), "ece")
    loss, scatter = (mean_change(results, list(low), measure) for measure in ("loss", "scatter"))
    return (
        f"accuracy {mean(gains):+.2f} points on average ({min(gains):+.2f} to {max(gains):+.2f}), significantly better "
        f"on {better} of {len(low)};\n  test loss {loss:+.0f} %, within/between scatter {scatter:+.0f} %, "
        f"calibration error {min(errors):+.0f} to {max(errors):+.0f} %"
    )


def headline(results: Results, fresh: Results) -> str:
    """The settings with few labelled images, once more on fresh seeds, and what each kind of task gains."""
    return (
        "ITRA's defaults against a tuned Trainer on test rows, paired by seed. Few labelled images, a small CNN, "
        f"{len(LOW_DATA_IMAGES)}\nsettings:\n\n- {few_images(results)};\n"
        f"- on fresh seeds: {few_images(of(fresh, LOW_DATA_IMAGES))}.\n\n"
        "By kind of task, each task counting once and the interval over tasks. The kinds were drawn after the results\n"
        "had been seen (LoRA stands by itself as it did worse); tasks of a kind share test sets and seeds:\n\n"
        + "\n".join(kinds_table(results))
        + "\nTask by task it stands in [docs/evidence.md](docs/evidence.md), which `make evidence` makes again."
    )


def page(results: Results, fresh: Results) -> str:
    tuned = {task: methods for task, methods in read_tuned().items() if task in results}
    text = (HERE / "evidence.md").read_text()
    parts = {
        "machines": [machines(results)],
        "tried": tried_table(by_method(HERE / "tried.jsonl")),
        "fresh": tried_table(fresh),
        "fresh_targets": targets(of(fresh, LOW_DATA_IMAGES)),
        "fresh_text_targets": targets(of(fresh, FRESH_TEXTS)),
        "verdicts": verdicts(results),
        "main": main_table(results),
        "kinds": kinds_table(results),
        "targets": targets(results),
        "rivals": rivals_table(results),
        "tasks": task_tables(results),
        "ablations": ablation_table(results),
        "tuned": tuned_table(tuned, tuning_rows(tuned)),
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
    results, fresh = current(parser.parse_args(argv).results), by_method(HERE / "fresh.jsonl")
    readme = ROOT / "README.md"
    readme.write_text(readme_with(readme.read_text(), headline(results, fresh)))
    (ROOT / "docs" / "evidence.md").write_text(page(results, fresh))
    main_forest(results).savefig(ROOT / "docs" / "evidence.png", dpi=100)
    methods_forest(results).savefig(ROOT / "docs" / "evidence-methods.png", dpi=100)


if __name__ == "__main__":
    main()
