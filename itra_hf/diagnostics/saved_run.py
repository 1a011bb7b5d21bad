"""What the diagnostics leave in a run's folder for the report: features before and after, and the settings."""

import io
import json
from dataclasses import fields
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
from torch import Tensor
from transformers import Trainer

from itra_hf.config import MatchingArguments, matching_arguments
from itra_hf.files import reading, write_anew
from itra_hf.hub.public import public_arguments
from itra_hf.step import matching_share

FOLDER = "_diagnostics"  # Trainer pushes nothing that begins with an underscore

# Shown for every run, even at their defaults.
SETTINGS = (
    *("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "label_smoothing_factor"),
    *("bf16", "fp16", "seed"),
)


class SavedRun:
    """The folder `_diagnostics` in the `output_dir` of a run."""

    def __init__(self, output_dir: str | Path) -> None:
        self.folder = Path(output_dir) / FOLDER

    def save_features(self, when: str, rows: Tensor, labels: Tensor, model: Any) -> None:
        """Save the features `"before"` or `"after"` training, `[n, d]`, with labels and names of the classes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        id2label = getattr(getattr(model, "config", None), "id2label", None) or {}
        names = np.array([str(id2label.get(label, label)) for label in labels.tolist()])
        arrays = {"features": rows.float().numpy(), "labels": labels.numpy(), "names": names}
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        write_anew(self.folder / f"{when}.npz", content.getvalue())

    def features(self, when: str) -> dict[str, np.ndarray] | None:
        """What was saved under `"before"` or `"after"`; None if nothing was."""
        path = self.folder / f"{when}.npz"
        if not path.exists():
            return None
        with reading(path):
            if not is_zipfile(path):
                raise ValueError("it is empty, cut off or no npz file")
            with np.load(path, allow_pickle=False) as arrays:
                saved = dict(arrays)
            shapes = [saved[name].shape for name in ("features", "labels", "names")]
            if len(shapes[0]) != 2 or shapes[1:] != [shapes[0][:1]] * 2 or saved["features"].dtype.kind != "f":
                raise ValueError(f"features, labels and names are {shapes}, and should be [n, d] numbers, [n] and [n]")
        return saved

    def save_config(self, trainer: Trainer, others: dict[str, Any]) -> None:
        """Save the settings of the run without paths and tokens; those of the matching if features were matched."""
        args = trainer.args
        ours = {option.name for option in fields(MatchingArguments)}
        values = {name: getattr(args, name) for name in SETTINGS} | public_arguments(args)
        values = {name: value for name, value in values.items() if name not in ours} | {"processes": args.world_size}
        state: dict[str, Any] = {"steps": trainer.state.global_step, "planned_steps": trainer.state.max_steps}
        if any("matching_loss" in entry for entry in trainer.state.log_history):
            state["matching_share"] = matching_share(trainer)
            values |= {name: getattr(matching_arguments(args), name) for name in sorted(ours)}
        best = trainer.state.best_global_step if args.load_best_model_at_end else None
        facts = {"trainer": type(trainer).__name__, "model": type(trainer.model).__name__, "best_step": best}
        of_itra = ("matching_line", "hardly_matched")  # Trainer has neither
        state |= {name: getattr(trainer, name, None) for name in of_itra}
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(facts | state | others | {"settings": values}, indent=2, default=str)
        write_anew(self.folder / "config.json", text)

    def config(self) -> dict[str, Any]:
        """The saved settings; empty if there are none."""
        path = self.folder / "config.json"
        if not path.exists():
            return {}
        with reading(path):
            return dict(json.loads(path.read_text(encoding="utf-8")))
