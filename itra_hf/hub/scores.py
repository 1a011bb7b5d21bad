"""The scores of a task in the log: which they are, and which belong to the saved model."""

from typing import Any

from transformers import Trainer

SIDES = ("Trainer", "ITRATrainer")  # the two that a comparison compares
NO_FIGURES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "collapsed")
DIAGNOSTICS = ("scatter", "scatter_ratio", "nc1", "silhouette", "class_mean_separation")
MODES = ("mode_accuracy", "mode_chance", "mode_separation")


def is_figure(key: str) -> bool:
    """Whether a key of a log rates the model: a score of the task, or a diagnostic of an evaluation."""
    return key.startswith("eval_") and not key.endswith(NO_FIGURES)


def is_score(key: str) -> bool:
    """Whether a key of a log is a score of the task."""
    return is_figure(key) and not key.endswith(DIAGNOSTICS + MODES)


def scores_of(entry: dict[str, Any]) -> dict[str, float]:
    """The scores in an entry of the log, without their `eval_`."""
    numbers = {key: value for key, value in entry.items() if isinstance(value, (int, float))}
    return {key.removeprefix("eval_"): float(value) for key, value in numbers.items() if is_score(key)}


def log_of_saved_model(trainer: Trainer) -> list[dict[str, Any]]:
    """The log; if training has loaded the best checkpoint, without the later training steps."""
    log, best = trainer.state.log_history, trainer.state.best_global_step
    if not trainer.args.load_best_model_at_end or best is None:
        return log
    ended = max((index for index, entry in enumerate(log) if "train_runtime" in entry), default=len(log))
    return [entry for index, entry in enumerate(log) if index > ended or entry["step"] <= best]


def last_scores(log: list[dict[str, Any]]) -> dict[str, float]:
    """The task's scores on all evaluation sets at the last step that was evaluated."""
    scored = [(entry["step"], scores) for entry in log if (scores := scores_of(entry))]
    found: dict[str, float] = {}
    for step, scores in scored:
        if step == scored[-1][0]:
            found |= scores
    return found
