"""Tables of what is compared with Trainer at the same options, and of what was tuned."""

from statistics import mean
from typing import Any

from pairs import compare
from tables import Results, change, column, gain_cells, over, table
from tune import grid_of, rows_at


def tried_table(results: Results) -> list[str]:
    """What was tried against Trainer at the same learning rate, and with the label smoothing that it has itself."""
    rows = []
    for task, methods in results.items():
        for method, own in methods.items():
            base = reference(method)
            if base == method or base not in methods:
                continue
            pair = compare(column(own, "accuracy"), column(methods[base], "accuracy"))
            gain, _, counts = gain_cells(pair, pair.p)
            changes = [change(methods, method, base, name) for name in ("loss", "ece", "scatter", "train_loss")]
            is_form = base == "trainer" and method.startswith("itra:")
            last = over(methods, method, "itra") if is_form else ""
            rows.append([task, f"`{method}`", f"`{base}`", str(pair.seeds), gain, counts, *changes, last])
    header = ["task", "method", "against", "seeds", "gain (95 %)", "w / t / l", "test loss", "calibration error"]
    return table([*header, "scatter ratio", "training loss", "gain over `itra`"], rows)


def reference(method: str) -> str:
    """Trainer with those options of a method that Trainer has, too; of Trainer with options, Trainer."""
    name, _, options = method.partition(":")
    if name == "trainer":
        return name
    shared = ("learning_rate", "weight_decay", "max_steps", "label_smoothing_factor", "dropout")
    kept = [option for option in options.split(",") if option.startswith(shared)]
    return "trainer" + ":" * bool(kept) + ",".join(kept)


def tuned_table(
    tuned: dict[str, dict[str, dict[str, float]]], tuning: dict[tuple[str, str], list[dict[str, Any]]]
) -> list[str]:
    """What was chosen for each task and method, over how many seeds, and by how many points the most accurate setting
    was above it; it says what is the end of its grid."""

    def chosen(task: str, method: str) -> str:
        grid = grid_of(task, method)
        ends = {name: (min(point[name] for point in grid), max(point[name] for point in grid)) for name in grid[0]}
        return ", ".join(
            f"{name} {value:g}" + " (end)" * (value in ends[name] and len(set(ends[name])) > 1)
            for name, value in tuned[task][method].items()
        )

    rows = []
    for task, methods in tuned.items():
        for method, values in methods.items():
            grid, own = grid_of(task, method), tuning[task, method]
            accuracies = [mean(row["accuracy"] for row in rows_at(own, point)) for point in grid]
            behind = 100 * (max(accuracies) - accuracies[grid.index(values)])
            rows.append([task, method, chosen(task, method), str(len({row["seed"] for row in own})), f"{behind:.2f}"])
    return table(["task", "method", "chosen", "seeds", "points below the most accurate"], rows)
