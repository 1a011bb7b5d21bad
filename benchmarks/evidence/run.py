"""Run tasks x methods x seeds and keep every result as a line of a JSON lines file; a killed run goes on by itself.

    python benchmarks/evidence/run.py --tune      # learning rate, weight decay and knobs, on validation rows
    python benchmarks/evidence/run.py             # the reported runs, on test rows
    python benchmarks/evidence/run.py --tasks digits-300/cnn --methods trainer itra:matching_weight=3 \\
        --seeds 100 101 102 --validation --results outputs/try.jsonl

Tasks are names as in plan.py, or its groups: low-data, images, texts, hub.
"""

import argparse
from pathlib import Path

from plan import (
    ABLATIONS_OF,
    GROUPS,
    METHODS_REPORTED,
    QUICK_METHODS,
    QUICK_TASKS,
    TUNING_SEEDS,
)
from runs import HERE, planned, run_all
from tables import print_means
from tasks import FILES
from tune import tune


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["images"])
    parser.add_argument("--methods", nargs="+", help="default: all, with the ablations on their tasks")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--tune", action="store_true", help="choose the settings, and write them to tuned.json")
    parser.add_argument("--quick", action="store_true", help="two tasks, seven methods, five seeds, into outputs/")
    parser.add_argument("--validation", action="store_true", help="measure on unused training rows, not the test set")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    for name in FILES:
        parser.add_argument(f"--{name}", metavar="FOLDER", help="read it from here, not from the Hub")
    args = parser.parse_args(argv)
    folders = {name: getattr(args, name) for name in FILES if getattr(args, name)}
    tasks = [task for name in args.tasks for task in GROUPS.get(name, [name])]
    methods, seeds, results = args.methods or METHODS_REPORTED, args.seeds, HERE / "results.jsonl"
    if args.tune:
        results = args.results or HERE / "tuning.jsonl"
        tune(tasks, methods, seeds or TUNING_SEEDS, results, folders, args.workers)
        return
    if args.quick:
        tasks, methods, seeds, results = (
            QUICK_TASKS,
            QUICK_METHODS,
            list(range(5)),
            Path("outputs/evidence-quick.jsonl"),
        )
    split = "validation" if args.validation else "test"
    runs = [*planned(tasks, methods, seeds, split)]
    if not args.methods and not args.quick:
        runs += [run for task in tasks for run in planned([task], ABLATIONS_OF.get(task, []), seeds, split)]
    print_means(run_all(runs, args.results or results, folders, args.workers))


if __name__ == "__main__":
    main()
