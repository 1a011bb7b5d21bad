"""A run whose matching hardly took place says so when it ends, with the reason."""

import logging

import pytest
import tiny
import torch
from transformers import default_data_collator

from itra_hf.step.tally import Tally

WITHOUT_CAP = {"matching_max_grad_ratio": None, "matching_warmup_ratio": 0.0}


def told(tmp_path, caplog, rows, collator=None, **changes):
    """The reason that a run of six steps gives."""
    with caplog.at_level(logging.WARNING, "itra_hf"):
        options = {"max_steps": 6, "pairing": "random"} | changes
        run = tiny.trainer(tmp_path, tiny.Mlp(), rows, keywords={"data_collator": collator}, **options)
        run.train()
    found = [record.getMessage() for record in caplog.records if "hardly" in record.getMessage()]
    reason = run.hardly_matched
    assert found == ([] if reason is None else [f"The matching hardly took place: {reason}"])
    return reason


def one_row(rows):
    return default_data_collator(rows[:1])


def each_class_once(rows):
    return default_data_collator(rows[:3])


def test_the_cap_is_named_where_it_held_the_weight_down(tmp_path, caplog):
    assert "of the asked one. The cap (matching_max_grad_ratio)" in told(tmp_path, caplog, tiny.vectors())


@pytest.mark.parametrize(
    ("collator", "reason"), [(one_row, "most batches held one row"), (each_class_once, "had no two rows of one class")]
)
@pytest.mark.parametrize("scope", ["micro_batch", "optimizer_step"])
def test_batches_with_nothing_to_match_are_named(tmp_path, caplog, collator, reason, scope):
    options = {"train_sampling_strategy": "sequential", "matching_scope": scope}
    text = told(tmp_path, caplog, tiny.vectors(), collator, **options)
    assert "100% of the steps had nothing to match" in text
    assert reason in text


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("scope", ["micro_batch", "optimizer_step"])
def test_nothing_is_said_where_the_weight_was_the_asked_one(tmp_path, caplog, steps, scope):
    options = WITHOUT_CAP | {"gradient_accumulation_steps": steps, "matching_scope": scope}
    assert told(tmp_path, caplog, tiny.vectors(), **options) is None


def test_the_share_is_that_of_the_means_that_are_logged(tmp_path):
    options = {"max_steps": 9, "logging_steps": 1, "matching_weight": 2.0, "matching_warmup_ratio": 0.0}
    run = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), **options)
    run.train()
    mean = sum(tiny.logs_of(run, "matching_weight")) / 9
    assert f"its mean weight was {100 * mean / 2:.2g} % of the asked one" in run.hardly_matched


def test_a_second_run_begins_anew(tmp_path):
    run = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors())
    run.train()
    assert run.hardly_matched
    run.args.matching_max_grad_ratio, run.args.matching_warmup_ratio = None, 0.0
    run.train()
    assert run.hardly_matched is None


@pytest.mark.parametrize(
    ("weight", "matched", "told"), [(0.49, 10, True), (0.51, 10, False), (5, 4.9, True), (5, 5.1, False), (0, 0, True)]
)
def test_the_marks_are_a_twentieth_of_the_weight_and_half_of_the_steps(weight, matched, told):
    tally = Tally(torch.device("cpu"))
    for _ in range(10):
        tally.add(share=1.0)
    tally.reached = True
    assert (tally.reason(weight, 10.0, matched) is not None) is told


def test_a_run_without_matching_says_nothing(tmp_path):
    run = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), matching="none")
    run.train()
    assert run.hardly_matched is run.matching_line is None
    assert Tally(torch.device("cpu")).reason(0.0, 0.0, 0.0) is None
