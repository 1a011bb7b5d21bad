"""What a finished run left in its folder, read without loading a model or a pickle."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from itra_hf.diagnostics import class_scatter
from itra_hf.diagnostics.saved_run import SavedRun
from itra_hf.files import reading
from itra_hf.hub.checkpoints import STATE, last_whole_checkpoint
from itra_hf.hub.scores import is_figure

Series = tuple[list[int], list[float]]  # steps and values


class Run:
    """A run's log, settings and features.

    Args:
        folder: the run's `output_dir`; `trainer_state.json` is taken from it, or from its newest whole checkpoint.

    Raises:
        FileNotFoundError: if neither holds one.
        ValueError: where a file cannot be read, with the file.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / STATE
        checkpoint = None if path.exists() else last_whole_checkpoint(str(folder))
        if checkpoint is not None:
            path = Path(checkpoint) / STATE
        if not path.exists():
            raise FileNotFoundError(
                f"{folder} holds no {STATE}, and no whole checkpoint either; call trainer.save_state() after training, "
                "or put an ITRADiagnosticsCallback into the run"
            )
        saved = SavedRun(folder)
        self.name = folder.resolve().name
        with reading(path):
            entries = json.loads(path.read_text(encoding="utf-8"))["log_history"]
            self.history: list[dict[str, Any]] = [{**entry, "step": int(entry["step"])} for entry in entries]
        self.config = saved.config()
        self.before, self.after = (_finite_rows(saved.features(when)) for when in ("before", "after"))

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that were saved."""
        return dict(self.config.get("settings", {}))

    def series(self, name: str) -> Series:
        """The finite values logged under a name, and their steps; of several at one step the last."""
        numbers = (entry for entry in self.history if isinstance(entry.get(name), (int, float)))
        values = {entry["step"]: float(entry[name]) for entry in numbers}
        values = {step: value for step, value in sorted(values.items()) if math.isfinite(value)}
        return list(values), list(values.values())

    def feature_series(self, name: str) -> Series:
        """A measure of the features, on the evaluation set or else on the training set."""
        steps, values = self.series(f"eval_{name}")
        return (steps, values) if steps else self.series(f"train_{name}")

    def collapsed_at(self) -> list[int]:
        """The steps at which the features were found collapsed."""
        steps, values = self.feature_series("collapsed")
        return [step for step, value in zip(steps, values, strict=True) if value]

    def hardly_matched(self) -> list[str]:
        """A warning where the matching hardly took place."""
        reason = self.config.get("hardly_matched")
        return [f"The matching hardly took place: {reason}"] if reason else []

    def figures(self) -> list[tuple[str, float | None, float]]:
        """The name, the first and the last value of all figures of the evaluation set; a single one is the last."""
        names = dict.fromkeys(name for entry in self.history for name in entry if is_figure(name))
        found = [(name, self.series(name)[1]) for name in names]
        return [(name, values[0] if len(values) > 1 else None, values[-1]) for name, values in found if values]


def class_scatters(saved: dict[str, np.ndarray]) -> dict[str, float]:
    """The scatter within each class over the scatter between all classes, by the class's name."""
    names = dict(zip(saved["labels"].tolist(), saved["names"].tolist(), strict=True))
    return {names[label]: scatter for label, scatter in class_scatter(saved["features"], saved["labels"]).items()}


def _finite_rows(saved: dict[str, np.ndarray] | None) -> dict[str, np.ndarray] | None:
    """What was saved of the rows whose features are finite; None where there are none, as in a run that diverged."""
    if saved is None:
        return None
    finite = np.isfinite(saved["features"]).all(1)
    return {name: values[finite] for name, values in saved.items()} if finite.any() else None
