"""Run tasks x methods x seeds and keep every result as a line of a JSON lines file; a killed run goes on by itself.

    python benchmarks/evidence/run.py --tune      # learning rate, weight decay and knobs, on validation rows
    python benchmarks/evidence/run.py             # the runs that the page reports, on test rows
    python benchmarks/evidence/run.py --gpu --workers 4     # the tasks for a GPU: tuning and runs, task by task
    python benchmarks/evidence/run.py --tasks digits-300/cnn --methods trainer itra:matching_weight=3 \\
        --seeds 100 101 102 --validation --results outputs/try.jsonl

Tasks are names as in plan.py, or its groups: low-data, images, texts, gpu. Data are read from the Hub or from folders:

    --sst2 FOLDER         train.tsv and test.tsv, a sentence, a tab and 0 or 1 on each line
    --banking77 FOLDER    train.csv and test.csv, of the columns text and category
    --cifar10 FOLDER      train-CLASS.jpg and test-CLASS.jpg, mosaics of 32 x 32 images, row by row
"""

import argparse
from pathlib import Path

from plan import (
    ABLATIONS_OF,
    DEFAULT,
    FRESH_SEEDS,
    FRESH_TASKS,
    GPU_METHODS,
    GPU_TASKS,
    GROUPS,
    METHODS_OF,
    QUICK_METHODS,
    QUICK_TASKS,
)
from runs import HERE, planned, run_all
from tables import print_means
from tasks import FILES
from tune import tune

QUICK_RESULTS = Path("outputs/evidence-quick.jsonl")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["images", "texts"])
    parser.add_argument("--methods", nargs="+", help="default: those that the page reports, with the ablations")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--tune", action="store_true", help="choose the settings, and write them to tuned.json")
    parser.add_argument("--gpu", action="store_true", help="the tasks for a GPU: tune and run what is missing")
    parser.add_argument("--fresh", action="store_true", help="some tasks once more on other seeds, into fresh.jsonl")
    parser.add_argument("--quick", action="store_true", help="two tasks, seven methods, five seeds, into outputs/")
    parser.add_argument("--validation", action="store_true", help="measure on unused training rows, not the test set")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    for name in FILES:
        parser.add_argument(f"--{name}", metavar="FOLDER", help="read it from here, not from the Hub")
    args = parser.parse_args(argv)
    folders = {name: getattr(args, name) for name in FILES if getattr(args, name)}
    tasks = [task for name in args.tasks for task in GROUPS.get(name, [name])]
    plan = {task: args.methods or METHODS_OF.get(task, DEFAULT) for task in tasks}
    if args.gpu:
        for task in GPU_TASKS:
            tune(task, ["trainer"], None, HERE / "tuning.jsonl", folders, args.workers)
            runs = planned([task], GPU_METHODS, None, "test")
            print_means(run_all(runs, args.results or HERE / "results.jsonl", folders, args.workers))
        return
    if args.tune:
        for task, methods in plan.items():
            tune(task, methods, args.seeds, args.results or HERE / "tuning.jsonl", folders, args.workers)
        return
    seeds, results = args.seeds, args.results or HERE / "results.jsonl"
    if args.quick:
        plan, seeds, results = dict.fromkeys(QUICK_TASKS, QUICK_METHODS), list(range(5)), QUICK_RESULTS
    elif args.fresh:
        plan, seeds, results = dict.fromkeys(FRESH_TASKS, DEFAULT), FRESH_SEEDS, HERE / "fresh.jsonl"
    elif not args.methods:
        plan = {task: [*methods, *ABLATIONS_OF.get(task, [])] for task, methods in plan.items()}
    split = "validation" if args.validation else "test"
    runs = [run for task, methods in plan.items() for run in planned([task], methods, seeds, split)]
    print_means(run_all(runs, results, folders, args.workers))


if __name__ == "__main__":
    main()
