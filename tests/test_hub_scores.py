"""Which figures of a log are scores of the task, and which of them the saved model has."""

from types import SimpleNamespace

import pytest
import torch

from itra_hf.diagnostics import compactness, mode_separation
from itra_hf.hub.scores import is_figure, is_score, last_scores, log_of_saved_model


def test_what_the_diagnostics_measure_is_no_score_and_neither_is_a_clock():
    features, labels = torch.randn(48, 3, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 2
    measured = [*compactness(features, labels), *mode_separation(features, torch.arange(48) % 4, labels)]
    assert len(measured) > 6
    assert not any(is_score(f"eval_{name}") for name in measured)
    assert not any(is_score(f"eval_{name}") for name in ("runtime", "samples_per_second", "steps_per_second"))
    assert all(is_score(name) for name in ("eval_loss", "eval_accuracy", "eval_pets_f1"))
    assert not is_score("loss")
    assert [name for name in measured if not is_figure(f"eval_{name}")] == ["collapsed"]
    assert not any(map(is_figure, ("eval_runtime", "eval_model_preparation_time", "grad_norm")))
    assert is_figure("eval_response_time")


def test_the_last_scores_are_those_of_all_evaluation_sets():
    first = [{"eval_cats_f1": 0.1, "step": 5}, {"eval_dogs_f1": 0.2, "step": 5}]
    last = [{"eval_cats_f1": 0.3, "eval_cats_runtime": 9.0, "step": 9}, {"eval_dogs_f1": 0.4, "step": 9}]
    assert last_scores([*first, *last, {"train_runtime": 1.0, "step": 9}]) == {"cats_f1": 0.3, "dogs_f1": 0.4}
    assert last_scores([{"loss": 1.0, "step": 1}]) == {}


@pytest.mark.parametrize(("loads_best", "steps"), [(True, [5, 9]), (False, [5, 7, 9, 9])])
def test_a_best_checkpoint_that_was_loaded_has_the_log_up_to_it_and_what_came_after_training(loads_best, steps):
    log = [{"eval_loss": loss, "step": step} for loss, step in ((1.0, 5), (2.0, 7))]
    log += [{"train_runtime": 1.0, "step": 9}, {"eval_loss": 1.0, "step": 9}]
    state = SimpleNamespace(log_history=log, best_global_step=5)
    trainer = SimpleNamespace(state=state, args=SimpleNamespace(load_best_model_at_end=loads_best))
    assert [entry["step"] for entry in log_of_saved_model(trainer)] == steps
