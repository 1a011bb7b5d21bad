"""Gradient scatter and over-adaptation: against plain numpy and a real step, and without a trace."""

import copy
import math
import random

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from itra_hf.diagnostics import gradient_scatter, over_adaptation


def batches(number: int = 5, rows: int = 6) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    size = (rows, 4)
    labels = torch.arange(rows) % tiny.NUM_LABELS
    return [{"x": torch.randn(size, generator=generator), "labels": labels} for _ in range(number)]


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple:
    optimizer_state = copy.deepcopy(optimizer.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    randomness = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    return tiny.weights(model), optimizer_state, gradients, modes, randomness


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    return a == b


class Noisy(nn.Module):
    """A model whose forward pass draws random numbers of every kind, and has a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, tiny.NUM_LABELS))

    def forward(self, x, labels):
        x = x * (1 + 0.01 * random.random()) + 0.01 * float(np.random.rand()) + 0.01 * torch.rand(())
        return {"loss": nn.functional.cross_entropy(self.body(x), labels)}


class TestGradientScatter:
    def test_equals_the_covariance_of_the_gradients(self):
        model = tiny.Mlp().double()
        gradients = []
        data = [batch | {"x": batch["x"].double()} for batch in batches()]
        for batch in data:
            model.zero_grad()
            model(**batch)["loss"].backward()
            gradients.append(np.concatenate([p.grad.numpy().ravel() for p in model.parameters()]))
        model.zero_grad()
        gradients = np.stack(gradients)
        variance, mean = np.trace(np.cov(gradients.T)), gradients.mean(0)
        result = gradient_scatter(model, data)
        assert result["gradient_variance"] == pytest.approx(variance, rel=1e-9)
        assert result["gradient_norm"] == pytest.approx(np.linalg.norm(mean), rel=1e-9)
        assert result["gradient_scatter"] == pytest.approx(variance / (mean @ mean), rel=1e-9)

    def test_equal_batches_do_not_scatter(self):
        assert gradient_scatter(tiny.Mlp(), batches(1) * 3)["gradient_scatter"] == 0

    def test_only_what_is_trained_counts(self):
        model = tiny.Mlp()
        whole = gradient_scatter(model, batches())
        model.body.requires_grad_(False)
        head = gradient_scatter(model, batches())
        assert head["gradient_variance"] < whole["gradient_variance"]
        model.requires_grad_(False)
        with pytest.raises(ValueError, match="Mlp has no parameter that is trained"):
            gradient_scatter(model, batches())

    def test_no_gradient_at_all_is_not_zero_scatter(self):
        def flat(model, batch):
            return model(**batch)["loss"] * 0

        assert math.isnan(gradient_scatter(tiny.Mlp(), batches(), flat)["gradient_scatter"])

    def test_one_batch_is_refused(self):
        with pytest.raises(ValueError, match="1 batch has no scatter"):
            gradient_scatter(tiny.Mlp(), batches(1))


class TestOverAdaptation:
    @pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
    def test_equals_a_real_step_of_a_copy(self, cls):
        torch.manual_seed(0)
        model, (first, batch, fresh) = tiny.Mlp(), batches(3)
        optimizer = cls(model.parameters(), lr=0.1)
        model(**first)["loss"].backward()
        optimizer.step()  # so that it has a state
        optimizer.zero_grad()
        measured = over_adaptation(model, optimizer, batch, fresh)

        before = [model(**each)["loss"].item() for each in (batch, fresh)]
        model(**batch)["loss"].backward()
        optimizer.step()
        after = [model(**each)["loss"].item() for each in (batch, fresh)]
        assert measured["fall_on_batch"] == pytest.approx(before[0] - after[0], rel=1e-5)
        assert measured["fall_on_fresh"] == pytest.approx(before[1] - after[1], rel=1e-5)
        assert measured["over_adaptation"] == measured["fall_on_batch"] - measured["fall_on_fresh"]

    def test_the_same_batch_twice_is_no_over_adaptation(self):
        model, (batch,) = tiny.Mlp(), batches(1)
        assert over_adaptation(model, torch.optim.SGD(model.parameters(), lr=1.0), batch, batch)["over_adaptation"] == 0


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(stepped, fails):
    torch.manual_seed(0)
    model, (first, *others) = Noisy(), batches(4)
    model.body[2].eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(**first)["loss"].backward()
    if stepped:
        optimizer.step()
    calls = []

    def loss(model, batch):
        calls.append(batch)
        if fails and len(calls) == 4:  # after the trial step
            raise InterruptedError
        return model(**batch)["loss"]

    before = state_of(model, optimizer)
    try:
        over_adaptation(model, optimizer, *others[:2], loss)
    except InterruptedError:
        assert fails
    assert len(calls) == (4 if fails else 5)
    if not fails:
        gradient_scatter(model, others)
    assert same(state_of(model, optimizer), before)
