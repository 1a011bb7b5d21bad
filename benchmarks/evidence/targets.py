"""What ITRA's defaults were asked to reach, beside what came out."""

from statistics import mean

from pairs import verdict
from plan import LOW_DATA_IMAGES, MAIN, OTHERS, TEXTS
from tables import Results, family, relative_change, table

INTENTS = tuple(task for task in TEXTS if task.startswith(("banking77-5shot/", "banking77-10shot/")))
ON_TOP = ("itra+label_smoothing", "itra+dropout")


def changes(results: Results, tasks: list[str], measure: str) -> list[float]:
    """How much a measure's mean changes from Trainer to ITRA, in percent, on each of the tasks."""
    return [100 * relative_change(results[task], "itra", "trainer", measure) for task in tasks]


def mean_change(results: Results, tasks: list[str], measure: str) -> float:
    """The mean over tasks of these changes."""
    return mean(changes(results, tasks, measure))


def targets(results: Results) -> list[str]:
    """A row for each target of which runs exist: what was asked, what came out, and whether it was reached; where a
    gain of no size was asked for, what the test says of it."""
    main = {task: pair for (task, _), pair in family(results, MAIN).items()}
    low = [task for task in LOW_DATA_IMAGES if task in main]
    rows: list[list[str]] = []
    if low:
        gain = mean(main[task][0].gain for task in low)
        better = sum(verdict(*main[task]) == "better" for task in low)
        loss, scatter = (mean_change(results, low, name) for name in ("loss", "scatter"))
        few = "few labelled images: "
        rows += [
            [f"{few}significantly better on at least 4 of 5", f"{better} of {len(low)}", reached(better >= 4)],
            [f"{few}at least +0.5 points on average", f"{gain:+.2f}", reached(gain >= 0.5)],
            [f"{few}test loss at least 15 % lower on average", f"{loss:+.1f} %", reached(loss <= -15)],
            [f"{few}scatter ratio at least 25 % lower on average", f"{scatter:+.1f} %", reached(scatter <= -25)],
        ]
    gains = {task: comparison.gain for task, (comparison, _) in main.items()}
    intents = {task: gains[task] for task in INTENTS if task in gains}
    rows += [[f"{task}: at least +1.0 points", f"{gain:+.2f}", reached(gain >= 1)] for task, gain in intents.items()]
    for (task, method), (comparison, p) in family(results, OTHERS).items():
        gain = f"{comparison.gain:+.2f}"
        if task in INTENTS and method == "itra+label_smoothing":
            rows.append([f"{task}, on top of label smoothing: +1.0", gain, reached(comparison.gain >= 1)])
        elif method in ON_TOP:
            rows.append([f"{task}, {method}: a gain", gain, verdict(comparison, p)])
    no_loss = {task: gain for task, gain in gains.items() if task.startswith("sst2") or "-all/" in task}
    rows += [
        [f"{task}: no loss beyond 0.3 points", f"{gain:+.2f}", reached(gain >= -0.3)] for task, gain in no_loss.items()
    ]
    return table(["target", "measured", "reached"], rows)


def reached(target: bool) -> str:
    return "yes" if target else "no"
