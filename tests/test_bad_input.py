"""Whatever comes in, a clear exception or a right result comes out; test_distributed.py has the ranks' share."""

import math

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import Unsupervised
from torch import nn

from itra_hf.losses import LOSSES

CLEAR = (ValueError, TypeError)
VALUES = st.sampled_from([0.0, 1e-30, 1.0, -3.0, 1e18, math.nan, math.inf])


class AnyTask(nn.Module):
    """Has a loss for every kind of label, by the rule of transformers."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, outputs)

    def forward(self, x, labels=None):
        logits = self.head(self.body(x).tanh())
        if labels is None:
            return {"logits": logits}
        if labels.is_floating_point():
            loss = (logits - labels.reshape(len(logits), -1)).square().mean()
        else:
            loss = nn.functional.cross_entropy(logits, labels.long())
        return {"loss": loss, "logits": logits}


def make_labels(kind, rows, classes, generator):
    """One label a row, of any kind that somebody may have."""
    whole = torch.randint(classes, (rows,), generator=generator)
    return {
        "classes": whole.tolist(),
        "far-off classes": whole.tolist(),
        "floats": whole.float().tolist(),
        "vectors": list(nn.functional.one_hot(whole, classes).float()),
        "soft": list(torch.rand(rows, classes, generator=generator).softmax(1)),
        "bools": (whole > 0).tolist(),
        "none": [None] * rows,
    }[kind]


@settings(max_examples=25)
@given(
    st.sampled_from(["auto", "marginal", "class_conditional", "joint", "none"]),
    st.sampled_from(["classes", "floats", "vectors", "soft", "bools", "none"]),
    st.integers(1, 9),  # rows on a device
    st.integers(1, 23),  # rows in all
    st.integers(1, 6),  # classes
    st.integers(1, 3),  # accumulation
    st.fixed_dictionaries(
        {},
        optional={
            "matching_weight": st.sampled_from([0.0, 0.1, 100.0]),
            "matching_warmup_ratio": st.sampled_from([0.0, 1.0]),
            "matching_max_grad_ratio": st.sampled_from([None, 1e-3, math.inf]),
            "matching_scope": st.sampled_from(["micro_batch", "optimizer_step"]),
            "pairing": st.sampled_from(["class", "random"]),
            "num_bandwidths": st.sampled_from([1, 3]),
            "bandwidth": st.sampled_from([None, 1e-20, 1.0, 1e20]),
            "unbiased": st.booleans(),
            "dataloader_drop_last": st.booleans(),
        },
    ),
    st.integers(0, 1000),
)
def test_a_run_of_any_settings_is_finite_or_refused(form, kind, batch, rows, classes, steps, options, seed):
    import tempfile

    generator = torch.Generator().manual_seed(seed)
    data = tiny.vectors(rows, seed)
    for row, label in zip(data, make_labels(kind, rows, classes, generator), strict=True):
        row.pop("labels")
        row |= {} if label is None else {"labels": label}
    model = AnyTask(1 if kind == "floats" else max(classes, 2))
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps, "max_steps": 3}
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = tiny.trainer(folder, model, data, matching=form, logging_steps=1, **sizes, **options)
            run.train()
        except CLEAR:
            return
    logs = run.state.log_history[:-1]
    assert len(logs) == run.state.global_step
    assert torch.isfinite(tiny.weights(model)).all()
    for log in logs:
        assert all(
            math.isfinite(log.get(key, 0.0)) for key in ("loss", "task_loss", "matching_loss", "matching_weight")
        )


@pytest.mark.parametrize("scope", ["micro_batch", "optimizer_step"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_features_show_in_the_log(tmp_path, bad, scope):
    rows = tiny.vectors(16)
    rows[3]["x"] = torch.full((4,), bad)

    class Linear(tiny.Mlp):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 6)

    options = {"logging_nan_inf_filter": False, "max_steps": 2, "logging_steps": 1, "gradient_accumulation_steps": 2}
    run = tiny.trainer(tmp_path, Linear(), rows, matching_scope=scope, per_device_train_batch_size=4, **options)
    run.train()
    assert any(math.isnan(log["matching_loss"]) for log in run.state.log_history[:-1])
    assert any(math.isnan(log["loss"]) for log in run.state.log_history[:-1])


@pytest.mark.parametrize("scope", ["micro_batch", "optimizer_step"])
@pytest.mark.parametrize("form", ["auto", "joint", "marginal"])
def test_a_later_batch_without_labels_is_an_error_that_says_so(tmp_path, form, scope):
    """In a model that has a loss for it; test_distributed.py has the same on one rank of two."""
    rows = tiny.vectors(16)
    for row in rows[12:]:
        del row["labels"]
    options = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 4, "matching": form}
    options |= {"gradient_accumulation_steps": 2, "matching_scope": scope}
    run = tiny.trainer(tmp_path, Unsupervised(), rows, **options)
    if form == "marginal":
        run.train()
        assert run.state.log_history[0]["matching_loss"] > 0
    else:
        if form == "auto":  # such batches are trained as Trainer would
            run.train()
            assert run.state.global_step == run.state.max_steps
            return
        with pytest.raises(ValueError, match=r"needs labels, and a batch holds none.*give every row its label"):
            run.train()


@settings(max_examples=300)
@given(
    st.sampled_from(list(LOSSES)),
    st.tuples(st.integers(0, 6), st.integers(0, 6)),  # rows of source and target
    st.integers(1, 4),  # width
    st.integers(1, 4),  # classes
    st.lists(VALUES, min_size=1, max_size=12),
    st.booleans(),
)
def test_a_loss_of_any_values_is_right_or_nan_and_never_hides_one(form, sizes, width, classes, values, unbiased):
    def fill(rows, offset):
        entries = [values[(i + offset) % len(values)] for i in range(rows * width)]
        return torch.tensor(entries).view(rows, width).requires_grad_()

    source, target = fill(sizes[0], 0), fill(sizes[1], 5)
    labels = [torch.arange(rows) % classes for rows in sizes]
    loss = LOSSES[form](source, target, *(labels if form != "marginal" else ()), unbiased=unbiased)
    assert loss.ndim == 0
    clean = all(part.isfinite().all() for part in (source, target))
    if loss.requires_grad:
        loss.backward()
    if clean and max(map(abs, values)) < 1e10:
        assert loss.isfinite()
        assert all(part.grad is None or part.grad.isfinite().all() for part in (source, target))
    if not clean and min(sizes) > 1 and form == "marginal":
        assert loss.isnan()
