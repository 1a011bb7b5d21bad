"""What ITRA's defaults were asked to reach, beside what came out."""

from statistics import mean

from plan import LOW_DATA_IMAGES, MAIN, OTHERS, TEXTS
from tables import Results, column, family, table

INTENTS = tuple(task for task in TEXTS if task.startswith(("banking77-5shot/", "banking77-10shot/")))
ON_TOP = ("itra+label_smoothing", "itra+dropout")


def changes(results: Results, tasks: list[str], measure: str) -> list[float]:
    """How much a measure's mean changes from Trainer to ITRA, in percent, on each of the tasks."""
    means = [[mean(column(results[task][name], measure).values()) for name in ("itra", "trainer")] for task in tasks]
    return [100 * (ours / theirs - 1) for ours, theirs in means]


def mean_change(results: Results, tasks: list[str], measure: str) -> float:
    """The mean over tasks of these changes."""
    return mean(changes(results, tasks, measure))


def targets(results: Results) -> list[str]:
    """A row for each target of which runs exist: what was asked, what came out, and whether it was reached."""
    main = {task: pair for (task, _), pair in family(results, MAIN).items()}
    low = [task for task in LOW_DATA_IMAGES if task in main]
    rows: list[tuple[str, str, bool]] = []
    if low:
        gain = mean(main[task][0].gain for task in low)
        better = sum(p <= 0.05 and comparison.gain > 0 for comparison, p in (main[task] for task in low))
        loss, scatter = (mean_change(results, low, name) for name in ("loss", "scatter"))
        rows += [
            ("few labelled images: significantly better on at least 4 of 5", f"{better} of {len(low)}", better >= 4),
            ("few labelled images: at least +0.5 points on average", f"{gain:+.2f}", gain >= 0.5),
            ("few labelled images: test loss at least 15 % lower on average", f"{loss:+.1f} %", loss <= -15),
            ("few labelled images: scatter ratio at least 25 % lower on average", f"{scatter:+.1f} %", scatter <= -25),
        ]
    gains = {task: comparison.gain for task, (comparison, _) in main.items()}
    rows += [
        (f"{task}: at least +1.0 points", f"{gains[task]:+.2f}", gains[task] >= 1) for task in INTENTS if task in gains
    ]
    for (task, method), (comparison, _) in family(results, OTHERS).items():
        if task in INTENTS and method == "itra+label_smoothing":
            rows.append((f"{task}, on top of label smoothing: +1.0", f"{comparison.gain:+.2f}", comparison.gain >= 1))
        elif method in ON_TOP:
            rows.append((f"{task}, {method}: a gain", f"{comparison.gain:+.2f}", comparison.low > 0))
    no_loss = {task: gain for task, gain in gains.items() if task.startswith("sst2") or "-all/" in task}
    rows += [(f"{task}: no loss beyond 0.3 points", f"{gain:+.2f}", gain >= -0.3) for task, gain in no_loss.items()]
    return table(
        ["target", "measured", "reached"], [[what, value, "yes" if done else "no"] for what, value, done in rows]
    )
