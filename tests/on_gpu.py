"""What runs on a GPU alone; test_gpu.py runs this file where there is one, in a process that sees it."""

import copy
import warnings

import pytest
import test_losses_kernel as kernel
import tiny
import torch
from transformers import Trainer, TrainerCallback

from itra_hf import ITRATrainer
from itra_hf.losses import launch, mmd

GPU = {"use_cpu": False, "per_device_train_batch_size": 16, "matching_warmup_ratio": 0.0}
SGD = {"optim": "sgd", "learning_rate": 0.2, "max_grad_norm": 0.0, "matching_weight": 50.0}


def run(folder, model, rows=None, cls=ITRATrainer, **options):
    torch.manual_seed(0)
    trainer = tiny.trainer(folder, copy.deepcopy(model), rows or tiny.texts(96), cls, **GPU | options)
    trainer.train()
    return trainer, tiny.weights(trainer.model).cpu()


def guessed():
    model = tiny.bert(0.0)
    return model, tiny.guessed(model, tiny.texts(96))


def test_the_kernel_is_the_formula():
    kernel.degenerate("cuda")
    kernel.compare("cuda")
    assert not launch._failed


@pytest.mark.parametrize("form", kernel.FORMS)
def test_a_small_batch_takes_one_launch(form):
    rows, sign, labels = kernel.batch(form, 32, 70, device="cuda")
    if form.label_kernel not in (None, "delta"):
        labels = labels.float()
    mmd(rows, sign, labels, form)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        mmd(rows, sign, labels, form)
        torch.cuda.synchronize()
    kernels = [event.name for event in profile.events() if "Memcpy" not in event.name and "Memset" not in event.name]
    assert len(kernels) == 1 + (form.label_kernel == "gaussian"), kernels  # the first label is taken from all


@pytest.mark.parametrize("scope", ["micro_batch", "optimizer_step"])
def test_a_run_on_the_gpu_is_that_on_the_cpu(tmp_path, scope):
    model, rows = guessed()
    options = SGD | {"matching_scope": scope, "gradient_accumulation_steps": 2, "max_steps": 9, "logging_steps": 1}
    results = [run(tmp_path, model, rows, **options | {"use_cpu": use_cpu}) for use_cpu in (False, True)]
    (ours, on_gpu), (theirs, on_cpu) = results
    assert 1e-3 < max(tiny.logs_of(ours, "matching_weight")) < 50  # the cap is at work, and open
    for key in ("task_loss", "matching_loss", "matching_weight"):
        assert tiny.logs_of(ours, key) == pytest.approx(tiny.logs_of(theirs, key), rel=1e-3), key
    assert (on_gpu - on_cpu).norm() < 1e-4 * (on_cpu - tiny.weights(model)).norm()


def test_a_real_gradient_scaler_changes_little(tmp_path):
    model, rows = guessed()
    options = SGD | {"max_steps": 12, "logging_steps": 1}
    logs = [run(tmp_path, model, rows, **options | precision)[0] for precision in ({}, {"fp16": True})]
    for key in ("task_loss", "matching_loss"):
        whole, half = (tiny.logs_of(trainer, key) for trainer in logs)
        assert half == pytest.approx(whole, rel=0.05), key


@pytest.mark.parametrize("scope", ["micro_batch", "optimizer_step"])
def test_a_run_with_dropout_resumes_to_the_same_bits(tmp_path, scope):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "matching_scope": scope}
    options |= {"gradient_accumulation_steps": 2, "learning_rate": 1e-3}
    _, whole = run(tmp_path / "whole", tiny.bert(0.3), **options)
    torch.manual_seed(1)
    again = tiny.trainer(tmp_path / "again", tiny.bert(0.3), tiny.texts(96), **GPU | options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert torch.equal(tiny.weights(again.model).cpu(), whole)


def test_a_batch_that_does_not_fit_is_made_smaller(tmp_path):
    class Hungry(tiny.Mlp):
        def forward(self, x, labels=None):
            if self.training and len(x) > 8:
                torch.empty(2**50, device=x.device)  # more than any card has
            return super().forward(x, labels)

    options = {"auto_find_batch_size": True, "per_device_train_batch_size": 32, "max_steps": 4, "logging_steps": 1}
    trainer, _ = run(tmp_path, Hungry(), tiny.vectors(64), **options)
    assert trainer._train_batch_size <= 8
    assert all(value > 0 for value in tiny.logs_of(trainer, "matching_loss"))


def test_inductor_trains_as_eager_does(tmp_path):
    model, rows = guessed()
    options = SGD | {"max_steps": 6, "logging_steps": 1}
    eager, compiled = (run(tmp_path, model, rows, **options | {"torch_compile": on})[0] for on in (False, True))
    for key in ("task_loss", "matching_loss", "matching_weight"):
        assert tiny.logs_of(compiled, key) == pytest.approx(tiny.logs_of(eager, key), rel=1e-2), key


class Halts(TrainerCallback):
    """Notes what makes the host wait for the device, in many steps in which nothing is logged."""

    def __init__(self):
        self.where = []

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            self._recorded = warnings.catch_warnings(record=True)
            self._warnings = self._recorded.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 140:
            torch.cuda.set_sync_debug_mode("default")
            self._recorded.__exit__(None, None, None)
            found = (f"{w.filename}:{w.lineno}" for w in self._warnings if "called a synchronizing" in str(w.message))
            self.where = [place for place in found if "itra_hf" in place]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"matching": "marginal"},
        {"matching": "joint"},
        {"matching_max_grad_ratio": None},
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2, "matching_scope": "optimizer_step"},
        {"per_device_train_batch_size": 256},
        {"problem_type": "regression"},
    ],
    ids=str,
)
def test_no_step_waits_for_the_device(tmp_path, options):
    kind = options.pop("problem_type", None)
    model, rows = tiny.bert(), tiny.texts(512)
    if kind:
        model, rows = tiny.bert(num_labels=1), [row | {"labels": i / 70} for i, row in enumerate(rows)]
    halts = Halts()
    quiet = {"max_steps": 150, "logging_strategy": "no"}  # sums are taken every hundred steps
    torch.manual_seed(0)
    trainer = tiny.trainer(tmp_path, model, rows, keywords={"callbacks": [halts]}, **GPU | quiet | options)
    trainer.train()
    assert halts.where == []


@pytest.mark.parametrize(("rows", "options"), [(32, {}), (128, {}), (32, {"matching": "marginal"})])
def test_a_step_adds_at_most_30_launches(tmp_path, rows, options):
    class Launches(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                self.profile = torch.profiler.profile().__enter__()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 10:
                torch.cuda.synchronize()
                self.profile.__exit__(None, None, None)
                self.count = sum(e.count for e in self.profile.key_averages() if "Launch" in e.key) / 5

    counts = []
    for cls in (Trainer, ITRATrainer):
        launches = Launches()
        torch.manual_seed(0)
        quiet = {"max_steps": 12, "logging_strategy": "no", "per_device_train_batch_size": rows, **options}
        tiny.trainer(
            tmp_path, tiny.bert(), tiny.texts(512), cls, keywords={"callbacks": [launches]}, **GPU | quiet
        ).train()
        counts.append(launches.count)
    assert counts[1] - counts[0] <= 30
