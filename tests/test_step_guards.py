"""What the guards promise."""

import math

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import Trainer, set_seed

from itra_hf import ITRATrainer
from itra_hf.step.guards import CollapseWatch, capped_weight, excess_odds, ramp, share_for_rows


@given(st.integers(0, 200), st.integers(1, 200), st.floats(0, 1))
def test_the_ramp_is_linear_then_one(step, max_steps, ratio):
    expected = 1.0 if ratio * max_steps == 0 else min(1.0, step / (ratio * max_steps))
    assert ramp(step, max_steps, ratio) == pytest.approx(expected)


@given(st.integers(1, 10**7), st.floats(0.1, 100), st.integers(1, 10**5))
def test_beyond_so_many_rows_for_an_epoch_the_weight_falls_as_one_over_rows(rows, epochs, full):
    share = share_for_rows(rows, epochs, full)
    assert share == pytest.approx(1 if rows / epochs <= full else full / (rows / epochs))
    assert share_for_rows(10 * rows, epochs, full) <= share <= share_for_rows(rows, 10 * epochs, full)


@given(st.floats(0, 10), st.floats(0.01, 10), st.floats(0, 1e3), st.floats(0, 1e3), st.floats(-1, 1e3))
def test_the_weighted_gradient_stays_below_its_share_by_the_odds_of_the_right_class(
    weight, ratio, task, matching, excess
):
    norms = torch.tensor([task, matching], dtype=torch.float64)
    capped = capped_weight(weight, norms, torch.tensor([7 * excess, 7], dtype=torch.float64), ratio).item()
    opening = min(max(excess / 40, 0.0), 1.0)
    share = ratio * opening * task
    assert capped <= weight
    assert capped * matching <= share * (1 + 1e-6) or matching == 0
    if weight * matching <= share:
        assert capped == pytest.approx(weight)


def test_excess_odds_are_those_of_the_right_class_above_a_guess():
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9) % 4
    right = [math.exp(row[label]) / sum(map(math.exp, row)) for row, label in zip(logits.tolist(), labels, strict=True)]
    above, missing = (part.item() for part in excess_odds(logits, labels))
    mean = sum(right) / 9
    assert above / missing == pytest.approx(mean / (1 - mean) / (0.25 / 0.75) - 1, rel=1e-5)
    assert excess_odds(torch.zeros(9, 4), labels) == (pytest.approx(0, abs=1e-6), pytest.approx(9 * 3 / 4))
    assert excess_odds(100.0 * torch.eye(4)[labels], labels) == (pytest.approx(27), 0)


def test_rows_without_a_class_do_not_count_and_labels_that_are_no_classes_open_the_cap_by_a_quarter():
    logits = 100.0 * torch.eye(4)
    assert excess_odds(logits, torch.tensor([0, -100, 2, 9])) == (6, 0)
    norms = torch.tensor([1.0, 1.0])
    assert capped_weight(9.0, norms, excess_odds(logits, torch.arange(4)), 1.0) == 1.0  # sure and right
    for labels in (None, torch.rand(4), torch.rand(4, 4), torch.zeros(4, 3, dtype=torch.long)):
        assert capped_weight(9.0, norms, excess_odds(logits, labels), 1.0) == 0.25
    tokens, of_tokens = torch.arange(4).repeat(2, 1), logits.repeat(2, 1, 1)  # a language model predicts the next one
    assert capped_weight(9.0, norms, excess_odds(of_tokens, tokens), 1.0) == 0.25
    numbers = excess_odds(logits[:, :1], torch.tensor([3, 0, 2, 1]))  # whole numbers as regression targets
    assert capped_weight(9.0, norms, numbers, 1.0) == 0.25
    nothing = excess_odds(logits, torch.tensor([-100, -100, -100, 9]))
    assert capped_weight(9.0, norms, nothing, 1.0) == 0.25


def test_notices_features_that_shrink_a_thousandfold_and_no_less():
    spread = torch.tensor(3.0)
    for shrink, collapsed in ((1e-2, False), (1e-4, True), (0.0, True)):
        watch = CollapseWatch()
        for _ in range(10):
            watch.update(spread, rows=16)
        assert not watch.collapsed()
        watch.update(spread * shrink * 100, rows=160_000)
        assert watch.collapsed() is collapsed


def test_notices_a_collapse_that_began_long_before_it_is_asked():
    spread = torch.tensor(3.0)
    watch = CollapseWatch()
    for step in range(100):
        watch.update(spread * (1.0 if step < 50 else 1e-4), rows=16)
    assert watch.collapsed()
    watch.update(spread * 1e-4, rows=16)
    watch.update(spread, rows=16)
    assert not watch.collapsed()  # one step of two


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_a_step_that_overflowed_neither_hides_nor_feigns_a_collapse(broken):
    for shrink, collapsed in ((1.0, False), (1e-4, True)):
        watch = CollapseWatch()
        for spread in (*[3.0] * 9, broken, *[3.0 * shrink] * 10):
            watch.update(torch.tensor(spread), rows=16)
        assert watch.collapsed() is collapsed


def test_one_row_says_nothing_about_collapse():
    watch = CollapseWatch()
    watch.update(torch.tensor(3.0), rows=8)
    assert not watch.collapsed()
    watch.update(torch.tensor(0.0), rows=1)
    assert not watch.collapsed()


class ManyClasses(tiny.Mlp):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, classes)


def test_a_large_weight_does_little_harm_where_a_third_of_many_classes_labels_is_wrong(tmp_path):
    generator, classes = torch.Generator().manual_seed(0), 100
    centres = torch.randn(classes, 32, generator=generator) * 0.9
    right = torch.arange(3000) % classes
    x = centres[right] + torch.randn(3000, 32, generator=generator)
    wrong = torch.rand(1500, generator=generator) < 0.3
    labels = torch.where(wrong, torch.randint(classes, (1500,), generator=generator), right[:1500])
    rows = [{"x": row, "labels": int(label)} for row, label in zip(x[:1500], labels, strict=True)]
    accuracies = []
    for cls in (Trainer, ITRATrainer):
        set_seed(0)
        steps = {"max_steps": 600, "per_device_train_batch_size": 64, "logging_strategy": "no"}
        sgd = {"optim": "sgd", "learning_rate": 0.3, "matching_weight": 10.0}
        trainer = tiny.trainer(tmp_path, ManyClasses(classes), rows, cls, remove_unused_columns=False, **steps, **sgd)
        trainer.train()
        with torch.no_grad():
            guesses = trainer.model.eval()(x[1500:])["logits"].argmax(1)
        accuracies.append((guesses == right[1500:]).float().mean().item())
    plain, matched = accuracies
    assert plain > 0.4
    assert matched > plain - 0.1  # a cap that is fully open at a probability of 4 % costs 0.26
