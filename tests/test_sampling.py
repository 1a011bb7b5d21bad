"""When rows are paired by class, and what is said where they are not."""

import logging

import pytest
import tiny
import torch
from torch.utils.data import RandomSampler
from transformers import Trainer

from itra_hf import ClassPairedSampler, ITRATrainer
from itra_hf.sampling import class_pairs


class Balanced(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return RandomSampler(self.train_dataset, replacement=True)


class BalancedITRATrainer(ITRATrainer, Balanced):
    pass


@pytest.mark.parametrize(
    ("cls", "changes", "told"),
    [
        (ITRATrainer, {"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy='group_by_length' dec"),
        (ITRATrainer, {"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential' decides"),
        (BalancedITRATrainer, {}, "Balanced._get_train_sampler decides"),
        (ITRATrainer, {"per_device_train_batch_size": 7}, "per_device_train_batch_size=7 is odd"),
        (ITRATrainer, {"per_device_train_batch_size": 7, "gradient_accumulation_steps": 2}, "=7 is odd"),
    ],
)
def test_rows_that_are_not_paired_by_class_are_told_once(tmp_path, caplog, cls, changes, told):
    with caplog.at_level(logging.WARNING, "itra_hf"):
        run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), cls, **changes)
        sampler = run._get_train_sampler()
    assert [told in record.message for record in caplog.records] == [True]
    assert isinstance(sampler, ClassPairedSampler) is ("odd" in told)


@pytest.mark.parametrize(
    ("cls", "changes"),
    [
        (ITRATrainer, {}),
        (BalancedITRATrainer, {"pairing": "random"}),
        (ITRATrainer, {"train_sampling_strategy": "sequential", "matching": "none"}),
        (
            ITRATrainer,
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "matching_scope": "optimizer_step"},
        ),
    ],
)
def test_nothing_is_said_where_nothing_else_was_asked_for(tmp_path, caplog, cls, changes):
    with caplog.at_level(logging.WARNING, "itra_hf"):
        tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), cls, **changes).get_train_dataloader()
    assert not caplog.records


def test_the_seed_is_that_of_the_data_where_it_is_given(tmp_path):
    labels = torch.arange(48) % 3
    for changes, seed in (({"seed": 3}, 3), ({"seed": 3, "data_seed": -1}, -1)):
        run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), **changes)
        sampler = class_pairs(run, run.train_dataset, super(ITRATrainer, run)._get_train_sampler)
        assert list(sampler) == list(ClassPairedSampler(labels, seed=seed))
    assert list(ClassPairedSampler(labels, seed=-1)) != list(ClassPairedSampler(labels, seed=1))
