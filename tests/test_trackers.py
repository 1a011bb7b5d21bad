"""What a tracker is told, read from what it has written."""

import pytest
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from itra_hf.diagnostics import ITRADiagnosticsCallback

NAMES = {
    "train/task_loss": "task_loss",
    "train/matching_loss": "matching_loss",
    "train/matching_weight": "matching_weight",
    "train/loss": "loss",
    "eval/scatter_ratio": "eval_scatter_ratio",
    "eval/loss": "eval_loss",
    "train/over_adaptation": "over_adaptation",
}


def test_tensorboard_shows_the_losses_and_the_diagnostics(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    watch = ITRADiagnosticsCallback(("compactness", "over_adaptation"), num_batches=2, max_share=1.0)
    changes = {"report_to": "tensorboard", "eval_strategy": "steps", "eval_steps": 2}
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), keywords={"callbacks": [watch]}, **changes)
    run.train()
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    for tag, key in NAMES.items():
        written = [(event.step, event.value) for event in board.Scalars(tag)]
        logged = [(entry["step"], entry[key]) for entry in run.state.log_history if key in entry]
        assert logged
        assert [step for step, _ in written] == [step for step, _ in logged], tag
        assert [value for _, value in written] == pytest.approx([value for _, value in logged], nan_ok=True), tag
