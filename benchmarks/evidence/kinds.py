"""The main question asked of a kind of tasks as a whole: few images with one network, few texts with an encoder's own
weights in training or with LoRA's."""

from collections import defaultdict

from pairs import compare
from plan import MAIN
from tables import Results, family, gain_cells, table
from targets import mean_change
from tasks import Task

ALL_ROWS = "all rows"
FEW_TEXTS = {"banking77": "few queries, 77 intents", "sst2": "few reviews, two classes"}


def kind_of(name: str) -> str:
    """The kind of a task: all rows of any data, few texts of one data set (LoRA by itself), or few images with one
    network."""
    task = Task(name)
    if task.size == "all":
        return ALL_ROWS
    if not task.is_text:
        return f"few images, {task.network}"
    return FEW_TEXTS[task.data] + ", LoRA" * task.network.endswith("-lora")


def kinds_table(results: Results) -> list[str]:
    """Each kind's mean gain over its tasks, and the interval of that mean, in which a task counts as one draw."""
    kinds: dict[str, dict[str, float]] = defaultdict(dict)
    for (task, _), (comparison, _) in family(results, MAIN).items():
        kinds[kind_of(task)][task] = comparison.gain
    rows = []
    for kind, gains in sorted(kinds.items(), key=lambda item: item[0] == ALL_ROWS):  # these come last
        draws = {i: gain / 100 for i, gain in enumerate(gains.values())}
        pair = compare(draws, dict.fromkeys(draws, 0.0))
        gain, _, counts = gain_cells(pair, pair.p)
        changes = [f"{mean_change(results, list(gains), measure):+.0f} %" for measure in ("loss", "ece", "scatter")]
        rows.append([kind, str(len(gains)), gain, counts, *changes])
    header = ["kind", "tasks", "mean gain (95 %)", "better / equal / worse"]
    return table([*header, "test loss", "calibration error", "scatter ratio"], rows)
