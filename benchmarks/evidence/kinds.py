"""What ITRA's defaults gain by kind of task, and what rivals gain."""

from collections import defaultdict
from statistics import mean

from pairs import Comparison, compare, verdict
from plan import MAIN, OTHERS, RIVALS
from tables import Results, column, family, gain_cell, relative_change, table
from tasks import Task

# The kinds in their order: a name, the networks, and what one of them is like.
KINDS = {
    "few photos": "ResNet-18",
    "few images, small CNN": "2 convolutions",
    "few images, small ResNet": "3 blocks",
    "few images, small ViT": "3 layers",
    "few queries, 77 intents": "MiniLM",
    "few reviews, 2 classes": "MiniLM",
    "few texts, LoRA": "MiniLM",
    "all rows there are": "each of these",
}


def kind_of(name: str) -> str:
    """The kind of a task; LoRA stands by itself, since it was seen to do worse on the intents."""
    task = Task(name)
    if task.size == "all":
        return "all rows there are"
    if task.network.endswith("-lora"):
        return "few texts, LoRA"
    if task.is_text:
        return "few queries, 77 intents" if task.data == "banking77" else "few reviews, 2 classes"
    return {
        "resnet18": "few photos",
        "cnn": "few images, small CNN",
        "resnet": "few images, small ResNet",
        "vit": "few images, small ViT",
    }[task.network]


def over_tasks(gains: list[float]) -> Comparison:
    """The mean of the tasks' gains; its interval counts each task as one draw."""
    return compare({i: gain / 100 for i, gain in enumerate(gains)}, dict.fromkeys(range(len(gains)), 0.0))


def gains_by_kind(results: Results) -> dict[str, dict[str, Comparison]]:
    """The comparisons of ITRA's defaults with Trainer, by kind and task."""
    found: dict[str, dict[str, Comparison]] = defaultdict(dict)
    for (task, _), (comparison, _) in family(results, MAIN).items():
        found[kind_of(task)][task] = comparison
    return {kind: found[kind] for kind in KINDS if kind in found}


def kinds_table(results: Results) -> list[str]:
    """A row for each kind: its mean gain over tasks, and what else changes on average."""
    rows = []
    for kind, tasks in gains_by_kind(results).items():
        pair = over_tasks([comparison.gain for comparison in tasks.values()])
        seeds = sum(comparison.seeds for comparison in tasks.values())
        rows.append(
            [kind, KINDS[kind], f"{len(tasks)} ({seeds})", gain_cell(pair)]
            + [f"{round(mean_change(results, list(tasks), measure)):+d} %" for measure in ("loss", "ece", "scatter")]
        )
    header = ["kind of task", "network", "tasks (pairs of runs)", "gain in points (95 %)"]
    return table([*header, "test loss", "calibration error", "scatter ratio"], rows)


def mean_change(results: Results, tasks: list[str], measure: str) -> float:
    """How much a measure changes from Trainer to ITRA, in percent, in the mean over tasks."""
    return 100 * mean(relative_change(results[task], "itra", "trainer", measure) for task in tasks)


def rivals_table(results: Results) -> list[str]:
    """A row for each rival: what it gains over Trainer, and ITRA's defaults over it, on the tasks that have it."""
    rows = []
    for rival in RIVALS:
        tasks = [task for task, methods in results.items() if rival in methods]
        if len(tasks) < 2:
            continue
        pairs = [
            over_tasks([gain(results, task, *of) for task in tasks]) for of in ((rival, "trainer"), ("itra", rival))
        ]
        rows.append([rival, str(len(tasks)), *map(gain_cell, pairs)])
    return table(["rival", "tasks", "gains over Trainer (95 %)", "ITRA's defaults over it (95 %)"], rows)


def gain(results: Results, task: str, ours: str, theirs: str) -> float:
    return compare(*(column(results[task][name], "accuracy") for name in (ours, theirs))).gain


def lead(results: Results) -> dict[str, str]:
    """The figures of the page's first sentences."""
    main = family(results, MAIN)
    words = [verdict(comparison, p) for comparison, p in main.values()]
    tasks = [task for task, _ in main]
    changes = {
        measure: [relative_change(results[task], "itra", "trainer", measure) for task in tasks]
        for measure in ("loss", "ece", "scatter")
    }
    texts = [comparison.gain for (task, _), (comparison, _) in main.items() if Task(task).is_text]
    few = [
        comparison.gain for (task, _), (comparison, _) in main.items() if kind_of(task).startswith(("few im", "few ph"))
    ]
    pairs = [pair for (_, method), (pair, _) in family(results, OTHERS).items() if method == "itra+label_smoothing"]
    return {
        "tasks": str(len(tasks)),
        "on top": str(len(pairs)),
        "on top won": str(sum(pair.gain > 0 for pair in pairs)),
        "better": str(words.count("better")),
        "worse": str(words.count("worse")),
        "few images": gain_cell(over_tasks(few)),
        "number of few": str(len(few)),
        "texts": gain_cell(over_tasks(texts)),
        "number of texts": str(len(texts)),
        **{f"lower {measure}": str(sum(each < 0 for each in values)) for measure, values in changes.items()},
    }
