"""Write docs/evidence.md, its picture and README's part: evidence.md, with the results put in.

python benchmarks/evidence/summarise.py
"""

import argparse
from collections import defaultdict
from pathlib import Path

from claims import claims_table
from forest import kinds_forest
from kinds import kinds_table, lead, rivals_table
from plan import ABLATION_METHODS, ALL_TASKS, FRESH_SEEDS, FRESH_TASKS, METHODS_REPORTED, tuning_seeds
from runs import HERE, Run, planned, read_results, read_tuned
from tables import Results, ablation_table, machines_table, main_table, methods_table, tuned_table

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


def fresh_results(path: Path) -> Results:
    """Trainer and ITRA's defaults on the fresh seeds."""
    found: Results = defaultdict(lambda: defaultdict(dict))
    for row in read_results(path).values():
        if row["task"] in FRESH_TASKS and row["method"] in ("trainer", "itra") and row["seed"] in FRESH_SEEDS:
            found[row["task"]][row["method"]][row["seed"]] = row
    return {task: found[task] for task in FRESH_TASKS if task in found}


def not_run(results: Results) -> list[str]:
    """The tasks of the plan that have no results yet."""
    missing = [task for task in ALL_TASKS if task not in results]
    return [f"Not run yet (`resnet18` and `bf16` need a GPU): {', '.join(missing)}.", ""] if missing else []


def readme_part(results: Results) -> str:
    """The kinds of tasks, and three sentences."""
    told = lead(results)
    return "\n".join(
        [
            *kinds_table(results)[:-1],
            "",
            f"ITRA's defaults against a tuned Trainer, {told['tasks']} tasks: significantly better on "
            f"{told['better']}, worse on {told['worse']}.",
            f"The features were more compact on {told['lower scatter']} of them, the test loss lower on "
            f"{told['lower loss']}, the calibration error on {told['lower ece']}.",
            "[The evidence](docs/evidence.md) has every task, the rivals and the paper's claims.",
        ]
    )


def page(results: Results, fresh: Results) -> str:
    text = (HERE / "evidence.md").read_text()
    tuned = {task: methods for task, methods in read_tuned().items() if task in results}
    parts = {
        "kinds": kinds_table(results),
        "claims": claims_table(results),
        "rivals": rivals_table(results),
        "ablations": ablation_table(results),
        "not run": not_run(results),
        "main": main_table(results),
        "fresh": main_table(fresh),
        "methods": methods_table(results),
        "machines": machines_table(results),
        "tuned": tuned_table(tuned, {task: len(tuning_seeds(task, "trainer")) for task in tuned}),
        **{name: [value] for name, value in lead(results).items()},
    }
    for name, lines in parts.items():
        text = text.replace(f"{{{name}}}", "\n".join(lines))
    return text


def readme_with(text: str, new: str) -> str:
    """The README with its part between its marks."""
    begin, end = MARKS
    if begin not in text or end not in text:
        raise ValueError(f"README.md has no marks {begin} and {end} for the evidence to stand between")
    return f"{text.split(begin)[0]}{begin}\n{new}\n{end}{text.split(end)[1]}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    results, fresh = current(parser.parse_args(argv).results), fresh_results(HERE / "fresh.jsonl")
    readme = ROOT / "README.md"
    readme.write_text(readme_with(readme.read_text(), readme_part(results)))
    (ROOT / "docs" / "evidence.md").write_text(page(results, fresh))
    kinds_forest(results).savefig(ROOT / "docs" / "evidence.png", dpi=100)


if __name__ == "__main__":
    main()
