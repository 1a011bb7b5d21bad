"""What the paper claims for the method, measured within runs: early, in the middle and late.

    python benchmarks/evidence/claims.py --banking77 FOLDER     # what is missing of claims.jsonl

Gradient scatter and over-adaptation are measured on the training rows. For the modes, the classes are merged into
`MERGED` groups that are trained on, and the classes themselves are the modes, on test rows. Of all measures less is
better: of the modes what is missing to 1, which is a perfect separation.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from methods import find_method, settings
from one_run import arguments, quiet
from plan import CLAIM_SEEDS, CLAIM_TASKS, DEFAULT
from runs import HERE, processes, read_tuned
from scipy import stats
from tables import Results, table
from tasks import FILES, Task
from tqdm import tqdm
from transformers import PrinterCallback, set_seed

from itra_hf.diagnostics import ITRADiagnosticsCallback

CLAIMS = HERE / "claims.jsonl"
MERGED = 2  # groups of classes: those of an even and of an odd number
MOMENTS = {"early": 0.1, "middle": 0.5, "late": 0.9}  # shares of the steps; after the last one the learning rate is 0
CLAIMED = {
    "gradient_scatter": ("less over-adaptation", "gradient scatter"),
    "over_adaptation": ("less over-adaptation", "over-adaptation in a step"),
    "modes": ("modes survive", "modes that neighbours no longer tell"),
}
MEASURES = {"gradient_scatter": "gradient_scatter", "over_adaptation": "over_adaptation", "modes": "mode_separation"}


def measure_run(name: str, method: str, seed: int, measure: str, folders: dict[str, str]) -> dict[str, Any]:
    """One training; its measure at each moment."""
    quiet()
    task = Task(name)
    data = task.load(folders)
    train, test = task.draw(data, seed, validation=False)
    options = settings(task, method, read_tuned().get(name, {}), {})
    every = options["max_steps"] // 10
    callback: dict[str, Any] = {"measures": (measure,), "every": every, "max_share": 1.0}
    if measure == "modes":
        callback |= {"measures": ("compactness",), "dataset": merged(test), "modes": [row["labels"] for row in test]}
        train = merged(train)
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(folder, seed, options)
        trainer = find_method(method)[0].trainer(task.build(data), args, data.collator, train)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ITRADiagnosticsCallback(**callback, trainer=trainer))
        trainer.train()
    found = {
        entry["step"]: value
        for entry in trainer.state.log_history
        for key, value in entry.items()
        if MEASURES[measure] in key
    }
    steps = {moment: round(share * args.max_steps) for moment, share in MOMENTS.items()}
    values = {moment: 1 - found[step] if measure == "modes" else found[step] for moment, step in steps.items()}
    return {"task": name, "method": method, "seed": seed, "measure": measure} | values


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"labels": row["labels"] % MERGED} for row in rows]


def claims_table(results: Results, path: Path = CLAIMS) -> list[str]:
    """The paper's claims, a row for each measure and task, with the verdict at each moment."""
    rows = []
    for task in CLAIM_TASKS:
        own = [{seed: row["scatter"] for seed, row in results[task][method].items()} for method in DEFAULT]
        rows.append(["compact features", "scatter ratio, test rows", task, *_cells([own])])
    for measure, (claim, what) in CLAIMED.items():
        for task in CLAIM_TASKS:
            found = _measured(path, task, measure)
            if found:
                rows.append([claim, what, task, *_cells(found)])
    return table(["claim", "measure", "task", "Trainer", "ITRA", "difference (95 %)", "verdict"], rows)


def _measured(path: Path, task: str, measure: str) -> list[list[dict[int, float]]]:
    """At each moment Trainer's and ITRA's values by seed; nothing where they were not measured."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    own = [row for row in lines if (row["task"], row["measure"]) == (task, measure)]
    return [
        [{row["seed"]: row[moment] for row in own if row["method"] == method} for method in DEFAULT]
        for moment in MOMENTS
        if own
    ]


def _cells(found: list[list[dict[int, float]]]) -> list[str]:
    """Means, differences and verdicts, those of several moments after each other."""
    means = [" / ".join(f"{mean(pair[side].values()):.2g}" for pair in found) for side in (0, 1)]
    gaps = [[itra[seed] - trainer[seed] for seed in sorted(set(trainer) & set(itra))] for trainer, itra in found]
    intervals = [stats.ttest_1samp(gap, 0).confidence_interval(0.95) for gap in gaps]
    told = [
        f"{mean(gap):+.2g} ({each.low:+.2g} to {each.high:+.2g})" for gap, each in zip(gaps, intervals, strict=True)
    ]
    words = ["holds" if each.high < 0 else "the contrary" if each.low > 0 else "not seen" for each in intervals]
    return [*means, " / ".join(told), " / ".join(words)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=CLAIMS)
    parser.add_argument("--tasks", nargs="+", default=CLAIM_TASKS)
    parser.add_argument("--workers", type=int, default=1)
    for name in FILES:
        parser.add_argument(f"--{name}", metavar="FOLDER", help="read it from here, not from the Hub")
    args = parser.parse_args(argv)
    folders = {name: getattr(args, name) for name in FILES if getattr(args, name)}
    lines = args.results.read_text().splitlines() if args.results.exists() else []
    done = {tuple(json.loads(line)[key] for key in ("task", "method", "seed", "measure")) for line in lines}
    planned = itertools.product(args.tasks, DEFAULT, CLAIM_SEEDS, MEASURES)
    missing = [(*run, folders) for run in planned if run not in done]
    with processes(set(args.tasks), folders, args.workers) as pool, args.results.open("a") as file:
        for row in tqdm(pool.imap_unordered(_measure_run, missing), total=len(missing), unit="run"):
            file.write(json.dumps(row) + "\n")
            file.flush()


def _measure_run(run: tuple[Any, ...]) -> dict[str, Any]:
    return measure_run(*run)


if __name__ == "__main__":
    main()
