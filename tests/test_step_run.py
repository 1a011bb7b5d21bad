"""The rules of a training step: what Trainer does, and only Trainer's forward pass, whatever a user mixes in."""

import copy
import functools
import inspect
import logging
import pickle
import random

import numpy as np
import pytest
import tiny
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import Trainer, TrainerCallback

from itra_hf import ITRATrainer
from itra_hf.features import HeadNotFoundError
from itra_hf.hub.saving import SavingTrainer

AT_ONCE = {"matching_warmup_ratio": 0.0, "logging_steps": 1}
NO_GUARDS = AT_ONCE | {"matching_max_grad_ratio": None}


def trained(tmp_path, model, rows=None, cls=ITRATrainer, keywords=None, **changes):
    run = tiny.trainer(tmp_path, model, tiny.vectors() if rows is None else rows, cls, keywords, **changes)
    run.train()
    return run


def matched_steps(run):
    return [entry["step"] for entry in run.state.log_history if "matching_loss" in entry]


# ---- Trainer's own methods


def test_every_overridden_method_has_trainers_parameters():
    ours = {name for cls in (ITRATrainer, SavingTrainer) for name in vars(cls)} & set(dir(Trainer))
    methods = {name for name in ours if callable(getattr(Trainer, name)) and not name.startswith("__")}
    assert "training_step" in methods
    for name in methods:
        parameters = [list(inspect.signature(getattr(cls, name)).parameters) for cls in (ITRATrainer, Trainer)]
        if name in ("_save", "_push_from_checkpoint", "_finish_current_push", "_save_rng_state"):
            continue  # private ones of saving hand everything on
        assert parameters[0] == parameters[1], name


def test_the_trainer_overrides_three_private_methods_of_trainers():
    private = [name for name in vars(ITRATrainer) if name.startswith("_") and not name.startswith("__")]
    assert sorted(name for name in private if name in dir(Trainer)) == [
        "_get_train_sampler",
        "_inner_training_loop",
        "_maybe_log_save_evaluate",
    ]


class Narrow(Trainer):
    def __init__(self, model, args, data_collator=None, train_dataset=None, gamma=2.0):
        super().__init__(model=model, args=args, data_collator=data_collator, train_dataset=train_dataset)
        self.gamma = gamma


def test_mixes_into_a_trainer_that_knows_fewer_keywords(tmp_path):
    class Mixed(ITRATrainer, Narrow):
        pass

    run = Mixed(tiny.Mlp(), tiny.ITRAConfig(**tiny.options(tmp_path)), train_dataset=tiny.vectors(), gamma=3.0)
    run.train()
    assert run.gamma == 3.0
    assert tiny.logs_of(run, "matching_loss")


# ---- a training step is what `training_step` runs


class MonteCarlo:
    """Evaluates with dropout."""

    def prediction_step(self, model, *args, **kwargs):
        model.train()
        try:
            return super().prediction_step(model, *args, **kwargs)
        finally:
            model.eval()


def test_an_evaluation_in_training_mode_is_trainers(tmp_path):
    losses = []
    for cls, changes in ((Trainer, {}), (ITRATrainer, NO_GUARDS | {"pairing": "random"})):
        torch.manual_seed(0)
        options = {"eval_strategy": "steps", "eval_steps": 2, "learning_rate": 0.0} | changes
        run = trained(tmp_path, tiny.Mlp(dropout=0.5), None, type("Mixed", (MonteCarlo, cls), {}), **options)
        losses.append(tiny.logs_of(run, "eval_loss"))
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]


@pytest.mark.parametrize("scope", ["micro_batch", "optimizer_step"])
def test_a_loss_that_a_callback_computes_is_trainers_and_is_in_no_mean(tmp_path, scope):
    computed, logged = [], []
    step = {"gradient_accumulation_steps": 2, "max_steps": 2, "matching_scope": scope}
    for probes in (False, True):

        class Probe(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **kwargs):
                if probes:  # noqa: B023
                    rows = tiny.vectors(8, seed=1)
                    batch = {"x": torch.stack([row["x"] for row in rows]), "labels": torch.arange(8) % 3}
                    expected = model(**batch)["loss"]
                    computed.append((run.compute_loss(model, dict(batch)).item(), expected.item()))  # noqa: B023

        torch.manual_seed(0)
        run = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), keywords={"callbacks": [Probe()]}, **step, **NO_GUARDS)
        run.train()
        logged.append([tiny.logs_of(run, key) for key in ("loss", "task_loss", "matching_loss", "matching_weight")])
    assert len(computed) == 2
    assert all(ours == theirs for ours, theirs in computed)
    assert logged[0] == logged[1]


def test_a_model_that_stays_in_evaluation_mode_is_matched(tmp_path):
    class Still(tiny.Mlp):
        def train(self, mode=True):
            return super().train(False)

    assert matched_steps(trained(tmp_path, Still(), **AT_ONCE)) == [1, 2, 3, 4]


# ---- no forward pass beyond Trainer's own


class Counting(tiny.Mlp):
    """Counts its calls and keeps its features, as a memory bank does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("bank", torch.zeros(0, 6))

    def forward(self, x, labels=None):
        self.calls += 1
        self.bank = torch.cat([self.bank, self.body(x).detach()])
        return super().forward(x, labels)


@pytest.mark.parametrize("layer", ["head", "hidden"])
def test_the_model_is_called_as_often_as_under_trainer(tmp_path, layer):
    if layer == "head":
        run = trained(tmp_path, Counting())
    else:
        model = tiny.bert()
        model.register_buffer("calls", torch.zeros(()))
        forward = model.forward

        @functools.wraps(forward)
        def counted(*args, **kwargs):
            model.calls += 1
            return forward(*args, **kwargs)

        model.forward = counted
        run = trained(tmp_path, model, tiny.texts(), feature_layer=1)
    assert run.model.calls == 4
    assert tiny.logs_of(run, "matching_loss")


def test_buffers_hold_one_pass_of_each_micro_batch_where_steps_are_matched_whole(tmp_path):
    step = {"gradient_accumulation_steps": 2, "max_steps": 2, "matching_scope": "optimizer_step"}
    run = trained(tmp_path, Counting(), **step)
    assert (run.model.calls, len(run.model.bank)) == (4, 32)
    assert tiny.logs_of(run, "matching_loss")


class Editing(Trainer):
    """Edits its batch in place, by random numbers of numpy's and Python's."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        inputs["x"].add_(np.random.rand() + random.random())
        self.seen = [*getattr(self, "seen", []), inputs["x"].clone()]
        return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)


class EditingITRATrainer(ITRATrainer, Editing):
    pass


@pytest.mark.parametrize("scope", ["micro_batch", "optimizer_step"])
def test_a_batch_is_edited_as_often_as_under_trainer(tmp_path, scope):
    step = {"gradient_accumulation_steps": 2, "max_steps": 2, "matching_scope": scope, "pairing": "random"}
    runs = [trained(tmp_path, tiny.Mlp(), None, cls, **step) for cls in (Editing, EditingITRATrainer)]
    states = random.getstate(), np.random.get_state()[1].tolist()
    trained(tmp_path, tiny.Mlp(), None, Editing, **step)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    theirs, ours = (run.seen for run in runs)
    for batch in theirs:
        assert any(torch.equal(batch, other) for other in ours)
    assert all(torch.equal(*pair) for pair in zip(theirs[-2:], ours[-2:], strict=True))
    if scope == "micro_batch":
        assert len(ours) == len(theirs)


class Merging(nn.Linear):
    """A low-rank adapter that is merged into the weight in evaluation mode."""

    def __init__(self):
        super().__init__(4, 6)
        self.a, self.b, self.merged = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(6, 2)), False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.b @ self.a)
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) if self.merged else super().forward(x) + x @ self.a.T @ self.b.T


def test_a_layer_that_merges_its_weights_has_a_gradient_in_the_first_step(tmp_path):
    seen = []

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            seen.append(model.body[0].a.grad is not None)

    model = tiny.Mlp()
    model.body = nn.Sequential(Merging(), nn.Tanh())
    trained(tmp_path, model, keywords={"callbacks": [Gradients()]})
    assert seen == [True] * 4


# ---- what the model got and gave


class Softmaxed(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        loss = outputs["loss"]
        return (loss, {"logits": outputs["logits"].softmax(-1)}) if return_outputs else loss


class OnlyALoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        return model(**inputs)["loss"]


class Dropping(Trainer):
    """Leaves out the rows without a label."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        kept = inputs["labels"] >= 0
        return super().compute_loss(
            model, {key: value[kept] for key, value in inputs.items()}, return_outputs, **kwargs
        )


@pytest.mark.parametrize("mixin", [Softmaxed, OnlyALoss, Dropping])
def test_features_and_labels_are_those_that_the_model_got_and_gave(tmp_path, mixin):
    pairs = []

    def spy(source, target, source_labels, target_labels):
        pairs.append((len(source), len(target), source_labels.tolist(), target_labels.tolist()))
        return (source.mean(0) - target.mean(0)).square().sum()

    mixed = type("Mixed", (ITRATrainer, mixin), {})
    rows = tiny.vectors(16)
    for row in (1, 9):
        rows[row]["labels"] = -100
    options = {"train_sampling_strategy": "sequential", "max_steps": 2}
    trained(tmp_path, tiny.Mlp(), rows, mixed, {"matching_loss": spy}, **options)
    labels = [0, 2, 0, 1, 2, 0, 1] if mixin is Dropping else [0, -100, 2, 0, 1, 2, 0, 1]
    assert pairs[0] == (4, len(labels) // 2, labels[0::2], labels[1::2])


class NoLabels(Trainer):
    """Keeps the labels to itself, by name."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(inputs["x"], labels=None)
        loss = nn.functional.cross_entropy(outputs["logits"], inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class Auxiliary(Trainer):
    """Calls the head by itself after the model, from the second step on."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
        if self.state.global_step > 0:
            loss = loss + 0.01 * model.head(torch.ones(8, 6)).square().mean()
        return (loss, outputs) if return_outputs else loss


class Teacher(Trainer):
    """Runs the model as its own teacher, without gradient."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        with torch.no_grad():
            model(x=inputs["x"] + 3)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


@pytest.mark.parametrize("mixin", [NoLabels, Auxiliary, Teacher])
def test_other_calls_are_not_taken_for_the_pass_that_counts(tmp_path, mixin):
    start, weights = tiny.Mlp(), []
    for cls in (ITRATrainer, type("Mixed", (ITRATrainer, mixin), {})):
        seen = []

        def spy(source, target, *labels):
            seen.append((source.detach(), target.detach(), *labels))  # noqa: B023
            return (source.mean(0) - target.mean(0)).square().sum()

        options = {"train_sampling_strategy": "sequential", "learning_rate": 0.0}
        trained(tmp_path, copy.deepcopy(start), None, cls, {"matching_loss": spy}, **options)
        weights.append(seen)
    assert len(weights[1]) == 4
    for plain, mixed in zip(*weights, strict=True):
        assert all(torch.equal(*pair) for pair in zip(plain, mixed, strict=True))


def test_a_step_that_is_matched_whole_says_what_it_cannot_tell(tmp_path):
    step = {"gradient_accumulation_steps": 2, "matching_scope": "optimizer_step", "matching": "class_conditional"}

    class Twice(ITRATrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            first = super().compute_loss(model, dict(inputs))
            return (first + super().compute_loss(model, dict(inputs))) / 2

    with pytest.raises(ValueError, match="one loss of each micro-batch"):
        trained(tmp_path, tiny.Mlp(), None, Twice, **step)
    with pytest.raises(HeadNotFoundError, match="called without gradient"):
        trained(tmp_path, tiny.Mlp(), None, type("Mixed", (ITRATrainer, Teacher), {}), **step)


def test_a_whole_step_is_matched_with_its_own_batches_alone(tmp_path):
    """Also where a callback switches the matching on and off."""

    class Toggle(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            args.matching_weight = 0.0 if state.global_step % 2 else 1.0

    step = {"gradient_accumulation_steps": 2, "matching_scope": "optimizer_step", "learning_rate": 0.0, "max_steps": 6}
    options = step | NO_GUARDS | {"train_sampling_strategy": "sequential"}
    start = tiny.Mlp()
    always = trained(tmp_path, copy.deepcopy(start), **options)
    expected = {entry["step"]: entry["matching_loss"] for entry in always.state.log_history if "matching_loss" in entry}
    run = trained(tmp_path, copy.deepcopy(start), None, ITRATrainer, {"callbacks": [Toggle()]}, **options)
    whole = [entry for entry in run.state.log_history if "matching_loss" in entry]
    assert whole[0]["matching_loss"] == pytest.approx(expected[1])
    assert all(entry["step"] % 2 for entry in whole)
    micro = trained(tmp_path, copy.deepcopy(start), **options | {"matching_scope": "micro_batch"})
    assert whole[1]["matching_loss"] == pytest.approx(tiny.logs_of(micro, "matching_loss")[2])  # switched on too late


class Breaking(Trainer):
    """Fails once, in a loss near the beginning."""

    losses, at = 0, 3

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.losses += 1
        if self.losses == self.at:
            raise KeyError("a bad batch")
        return loss


class Skipping:
    def training_step(self, *args, **kwargs):
        try:
            return super().training_step(*args, **kwargs)
        except KeyError:
            return torch.zeros(())


@pytest.mark.parametrize("at", [2, 3])
@pytest.mark.parametrize("scope", ["micro_batch", "optimizer_step"])
def test_a_bad_batch_may_be_skipped(tmp_path, scope, at):
    mixed = type("Mixed", (Skipping, ITRATrainer, Breaking), {"at": at})
    options = {"gradient_accumulation_steps": 3, "matching_scope": scope, "logging_steps": 1}
    run = trained(tmp_path, tiny.Mlp(), None, mixed, **options)
    assert run.state.global_step == 4
    assert matched_steps(run)[-3:] == [2, 3, 4]


def test_a_training_step_of_the_users_own_is_told_how_to_be_matched(tmp_path, caplog):
    class Own(ITRATrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
            self.accelerator.backward(loss)
            return loss.detach()

    with caplog.at_level(logging.WARNING, "itra_hf"):
        trained(tmp_path, tiny.Mlp(), None, Own)
    assert caplog.text.count("no features were seen in the first step") == 1
    for steps in (1, 4):
        with pytest.raises(HeadNotFoundError, match=r"super\(\).training_step"):
            trained(tmp_path, tiny.Mlp(), None, Own, matching="marginal", max_steps=steps)


def test_a_model_that_was_compiled_and_called_before_is_matched(tmp_path):
    torch._dynamo.reset()
    model = torch.compile(tiny.bert(0.0), backend="aot_eager")
    batch = {"input_ids": torch.ones(8, 6, dtype=torch.long), "labels": torch.arange(8) % 3}
    model.train()(**batch, attention_mask=torch.ones(8, 6, dtype=torch.long)).loss.backward()
    model.zero_grad()
    run = trained(tmp_path, model, tiny.texts(), remove_unused_columns=False, **AT_ONCE)
    assert matched_steps(run) == [1, 2, 3, 4]


def test_a_graph_that_may_not_break_trains_as_under_trainer(tmp_path, caplog):
    torch._dynamo.reset()
    with caplog.at_level(logging.WARNING, "itra_hf"):
        model = torch.compile(tiny.bert(0.0), backend="aot_eager", fullgraph=True)
        run = trained(tmp_path, model, tiny.texts(), remove_unused_columns=False)
    assert run.state.global_step == 4
    assert caplog.text.count("fullgraph=True") == 1


class TwoViews(Trainer):
    """Doubles its batch; the model gets no labels."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(torch.cat([inputs["x"], inputs["x"] + 0.1]))
        loss = nn.functional.cross_entropy(outputs["logits"], inputs["labels"].repeat(2))
        return (loss, outputs) if return_outputs else loss


def test_rows_whose_labels_are_not_known_train_as_under_trainer_with_one_warning(tmp_path, caplog):
    mixed = type("Mixed", (ITRATrainer, TwoViews), {})
    start = tiny.Mlp()
    runs = []
    with caplog.at_level(logging.WARNING, "itra_hf"):
        for cls, changes in ((TwoViews, {}), (mixed, {"pairing": "random"})):
            runs.append(trained(tmp_path, copy.deepcopy(start), None, cls, **changes))
    assert torch.equal(*(tiny.weights(run.model) for run in runs))
    told = [record.message for record in caplog.records if record.name.startswith("itra_hf")]
    assert len(told) == 1
    assert "the model got 16 rows where the batch holds 8 labels" in told[0]
    with pytest.raises(HeadNotFoundError, match="16 rows"):
        trained(tmp_path, tiny.Mlp(), None, mixed, matching="class_conditional")
    assert matched_steps(trained(tmp_path, tiny.Mlp(), None, mixed, matching="marginal", **AT_ONCE)) == [1, 2, 3, 4]


# ---- the head


def test_a_head_that_is_called_by_keyword_is_matched(tmp_path):
    class ByKeyword(tiny.Mlp):
        def forward(self, x, labels=None):
            logits = self.head(input=self.body(x))
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    torch.manual_seed(0)
    start = tiny.Mlp()
    for scope in ("micro_batch", "optimizer_step"):
        model, ended = ByKeyword(), []
        for each in (copy.deepcopy(start), model):
            each.load_state_dict(start.state_dict())
            options = NO_GUARDS | {"matching_scope": scope, "gradient_accumulation_steps": 2}
            ended.append(tiny.weights(trained(tmp_path, each, **options).model))
        assert torch.equal(*ended)


class MultiSample(tiny.Mlp):
    """Averages the logits of several dropout masks, as multi-sample dropout does."""

    def __init__(self, samples, dropout):
        super().__init__()
        self.samples, self.dropout = samples, nn.Dropout(dropout)

    def forward(self, x, labels=None):
        body = self.body(x)
        logits = torch.stack([self.head(self.dropout(body) * 1.0) for _ in range(self.samples)]).mean(0)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_the_weight_does_not_depend_on_the_number_of_samples(tmp_path):
    weights, start = [], tiny.Mlp()
    with torch.no_grad():
        start.head.weight *= 8
    rows = tiny.guessed(start, tiny.vectors())
    for samples in (1, 2, 3, 8):
        model = MultiSample(samples, 0.0)
        model.load_state_dict(start.state_dict())
        run = trained(tmp_path, model, rows, learning_rate=0.0, **AT_ONCE)
        weights.append(tiny.logs_of(run, "matching_weight"))
        assert all(0 < weight < 1 for weight in weights[-1])  # the cap is at work
        assert weights[-1] == pytest.approx(weights[0], rel=1e-5)
    assert matched_steps(trained(tmp_path, MultiSample(5, 0.5), rows, **AT_ONCE)) == [1, 2, 3, 4]


class Tasks(tiny.Mlp):
    """One head a task."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({"a": nn.Linear(6, 3), "b": nn.Linear(6, 3)})

    def forward(self, x, task=None, labels=None):
        logits = self.heads[task](self.body(x))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Alternating:
    def __init__(self):
        self.batches = 0

    def __call__(self, rows):
        self.batches += 1
        x, labels = torch.stack([row["x"] for row in rows]), torch.tensor([row["labels"] for row in rows])
        return {"x": x, "labels": labels, "task": "ab"[self.batches % 2]}


class Swap(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        model.head.weight = nn.Parameter(model.head.weight.detach().clone())
        model.head = copy.deepcopy(model.head)


@pytest.mark.parametrize("kind", ["one a task", "replaced"])
def test_a_head_that_differs_from_batch_to_batch_trains(tmp_path, caplog, kind):
    keywords = {"data_collator": Alternating()} if kind == "one a task" else {"callbacks": [Swap()]}
    model = Tasks() if kind == "one a task" else tiny.Mlp()
    with caplog.at_level(logging.WARNING, "itra_hf"):
        options = {"max_steps": 8, "remove_unused_columns": False}
        run = trained(tmp_path, model, None, ITRATrainer, keywords, **options, **AT_ONCE)
    assert run.state.global_step == 8
    assert len(matched_steps(run)) >= 7  # the step that shows it goes without
    assert "compile" not in caplog.text


# ---- copies of the model


class Copies(TrainerCallback):
    def __init__(self):
        self.copies = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        averaged = AveragedModel(model)
        averaged.update_parameters(model)
        self.copies += [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), averaged.module]  # noqa: S301
        assert b"itra_hf" not in pickle.dumps(model)


@pytest.mark.parametrize("layer", ["head", 1])
def test_copies_of_the_model_hold_no_hook_and_can_be_copied_again(tmp_path, layer):
    callback = Copies()
    trained(tmp_path, tiny.bert(), tiny.texts(), ITRATrainer, {"callbacks": [callback]}, feature_layer=layer)
    assert len(callback.copies) == 12
    for each in callback.copies:
        again = copy.deepcopy(each)
        assert torch.equal(tiny.weights(again), tiny.weights(each))
        hooks = [hook for module in again.modules() for hook in (*module._forward_hooks.values(),)]
        hooks += [hook for module in again.modules() for hook in module._forward_pre_hooks.values()]
        assert not hooks  # nor those that transformers puts on where hidden states are asked for


# ---- logging


class LogsItsLoss(Trainer):
    """Logs a part of its loss under the name of the loss."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.is_in_train:
            self.log({"loss": loss.item()})
        return (loss, outputs) if return_outputs else loss


def test_a_log_of_the_users_own_takes_none_of_the_means(tmp_path):
    entries = []
    for cls in (ITRATrainer, type("Mixed", (ITRATrainer, LogsItsLoss), {})):
        torch.manual_seed(0)
        run = trained(tmp_path, tiny.Mlp(), None, cls, logging_steps=2, max_steps=8)
        entries.append([entry for entry in run.state.log_history if "task_loss" in entry])
    assert len(entries[0]) == 4
    for plain, own in zip(*entries, strict=True):
        assert {key: own[key] for key in plain} == plain


def test_steps_with_nothing_to_match_are_in_no_mean(tmp_path):
    rows = tiny.vectors(33)  # the fifth batch has one row
    run = trained(tmp_path, tiny.Mlp(), rows, max_steps=10, train_sampling_strategy="sequential", **AT_ONCE)
    assert matched_steps(run) == [1, 2, 3, 4, 6, 7, 8, 9]
    run = trained(tmp_path, tiny.Mlp(), rows, max_steps=5, train_sampling_strategy="sequential", **NO_GUARDS)
    each = [entry for entry in run.state.log_history if "matching_loss" in entry]
    options = NO_GUARDS | {"max_steps": 5, "logging_steps": 5, "train_sampling_strategy": "sequential"}
    torch.manual_seed(0)
    whole = trained(tmp_path, tiny.Mlp(), rows, **options).state.log_history[0]
    assert whole["matching_weight"] == pytest.approx(1.0)
    assert len(each) == 4
    alone = [row | {"labels": index} for index, row in enumerate(tiny.vectors(24))]  # no class in common
    model = tiny.Mlp()
    model.head = nn.Linear(6, 24)
    assert matched_steps(trained(tmp_path, model, alone, pairing="random", **AT_ONCE)) == []


# ---- from run to run


def test_a_second_run_on_other_data_forgets_the_refusal_of_the_first(tmp_path):
    class AnyLabels(tiny.Mlp):
        def forward(self, x, labels=None):
            outputs = super().forward(x)
            return {"loss": outputs["logits"].square().mean(), **outputs}

    run = tiny.trainer(tmp_path, AnyLabels(), [{"x": row["x"]} for row in tiny.vectors()], **AT_ONCE)
    run.train()
    assert not tiny.logs_of(run, "matching_loss")
    run.train_dataset = tiny.vectors()
    run.train()
    assert tiny.logs_of(run, "matching_loss")
