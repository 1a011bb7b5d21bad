"""What the two passes over an optimizer step promise; test_trainer.py shows that they equal one batch."""

import copy

import pytest
import tiny
import torch
from transformers import Trainer

from itra_hf.features import RandomState

STEP = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3, "max_steps": 2}


def test_both_passes_see_the_same_features(tmp_path):
    """With dropout, and a callback that draws random numbers between micro-batches."""
    seen = []
    model = tiny.Mlp(features=32, dropout=0.5)
    run = tiny.trainer(tmp_path, model, tiny.vectors(), matching_scope="optimizer_step", **STEP)
    model.head.register_forward_hook(
        lambda module, args, output: seen.append(args[0].detach()) if model.training else None
    )
    run.callback_handler.on_substep_end = lambda args, state, control: (torch.rand(3), control)[1]
    run.train()
    del seen[0]  # the pass that found the head
    assert len(seen) == 12
    for first in (0, 1, 2, 6, 7, 8):
        assert torch.equal(seen[first], seen[first + 3])
    assert not torch.equal(seen[0] == 0, seen[1] == 0)


def test_the_random_stream_stays_trainers(tmp_path):
    states, start = [], tiny.bert(0.3)
    for cls, changes in ((Trainer, {}), (tiny.ITRATrainer, {"matching_scope": "optimizer_step", "pairing": "random"})):
        tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), cls, **STEP, **changes).train()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


class Twins(tiny.Mlp):
    """Two layers give the logits before the first step, so that it goes without matching."""

    def __init__(self):
        super().__init__(features=32, dropout=0.5)
        self.twin = copy.deepcopy(self.head)

    def forward(self, x, labels=None):
        hidden = self.body(x)
        logits = self.head(hidden)
        self.twin(hidden)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_step_whose_features_are_still_open_has_the_dropout_masks_of_trainer(tmp_path):
    weights, start = [], Twins()
    for cls in (Trainer, tiny.ITRATrainer):
        options = STEP | {"max_steps": 1, "matching_scope": "optimizer_step", "pairing": "random"}
        run = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.vectors(), cls, **options)
        run.train()
        weights.append(tiny.weights(run.model))
    assert torch.equal(*weights)


def test_running_statistics_are_updated_once(tmp_path):
    model = tiny.resnet()
    tiny.trainer(tmp_path, model, tiny.images(), matching_scope="optimizer_step", **STEP).train()
    counts = {int(value) for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {6}


def test_a_device_may_hold_one_row_where_steps_are_matched_whole(tmp_path):
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), matching_scope="optimizer_step", **options)
    run.train()
    assert run.state.log_history[-2]["matching_loss"] > 0
    with pytest.raises(ValueError, match="optimizer_step"):
        tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), matching="class_conditional", **options)


def test_a_compiled_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="torch_compile=False"):
        tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), matching_scope="optimizer_step", torch_compile=True)


def test_every_generator_is_restored():
    import random

    import numpy as np

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    state = RandomState.capture(torch.device("cpu"))
    first = draw()
    state.restore(torch.device("cpu"))
    assert draw() == first
