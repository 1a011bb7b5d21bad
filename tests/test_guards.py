"""What the guards promise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from itra_hf.guards import CollapseWatch, capped_weight, learnt_share, log_loss, ramp


@given(st.integers(0, 200), st.integers(1, 200), st.floats(0, 1))
def test_the_ramp_is_linear_then_one(step, max_steps, ratio):
    expected = 1.0 if ratio * max_steps == 0 else min(1.0, step / (ratio * max_steps))
    assert ramp(step, max_steps, ratio) == pytest.approx(expected)


@given(st.floats(0, 10), st.floats(0.01, 10), st.floats(0, 1e3), st.floats(0, 1e3))
def test_the_weighted_gradient_stays_below_its_share(weight, ratio, task, matching):
    capped = capped_weight(weight, torch.tensor([task**2, matching**2], dtype=torch.float64), ratio).item()
    assert capped <= weight
    assert capped * matching <= ratio * task * (1 + 1e-6) or matching**2 == 0
    if weight * matching <= ratio * task:
        assert capped == pytest.approx(weight)


@given(st.integers(2, 100), st.integers(1, 50), st.floats(0, 50), st.integers(0, 1000))
def test_the_learnt_share_is_the_mean_probability_above_chance(classes, rows, sharpness, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * sharpness
    labels = torch.randint(classes, (rows,), generator=generator)
    own = logits.softmax(1)[torch.arange(rows), labels]
    expected = (own.log().mean().exp().item() - 1 / classes) / (1 - 1 / classes)
    share = learnt_share(log_loss(logits, labels), classes).item()
    assert share == pytest.approx(min(1, max(0.1, expected)), abs=1e-4)
    halves = log_loss(logits[: rows // 2], labels[: rows // 2]) + log_loss(logits[rows // 2 :], labels[rows // 2 :])
    assert learnt_share(halves, classes).item() == pytest.approx(share, abs=1e-4)


def test_rows_without_a_class_say_nothing_of_what_is_learnt():
    logits = torch.tensor([[3.0, 0.0], [0.0, 9.0]])
    with_one = log_loss(logits, torch.tensor([0, -100]))
    torch.testing.assert_close(with_one, log_loss(logits[:1], torch.tensor([0])))
    assert learnt_share(log_loss(logits, torch.tensor([-100, -100])), 2) == 1


def test_notices_features_that_shrink_a_thousandfold_and_no_less():
    rows = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    for shrink, collapsed in ((1e-2, False), (1e-4, True), (0.0, True)):
        watch = CollapseWatch()
        for _ in range(10):
            watch.update(rows)
        assert not watch.collapsed()
        watch.update(rows * shrink)
        assert watch.collapsed() is collapsed


def test_one_row_says_nothing_about_collapse():
    watch = CollapseWatch()
    watch.update(torch.randn(8, 4))
    assert not watch.collapsed()
    watch.update(torch.randn(1, 4))
    assert not watch.collapsed()
