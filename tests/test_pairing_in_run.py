"""Whether the rows of a run are paired by class is seen in its batches, and told once where they are not."""

import logging
import re

import pytest
import tiny
import torch
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler
from transformers import Trainer, TrainerCallback, default_data_collator

from itra_hf import ClassPairedSampler, ITRATrainer
from itra_hf.pairing import Couples, Pairing, pair_rows

CLASSES = 12  # of which a batch of eight random rows holds few twice


def rows(number=96, classes=CLASSES):
    return [row | {"labels": index % classes} for index, row in enumerate(tiny.vectors(number))]


class Mlp(tiny.Mlp):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(6, CLASSES)


class Balanced(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return RandomSampler(self.train_dataset, replacement=True)


class Weighted(Trainer):
    def get_train_dataloader(self):
        sampler = WeightedRandomSampler(torch.ones(96), 96)
        return self.accelerator.prepare(DataLoader(self.train_dataset, 8, sampler=sampler))


class Unreadable(ITRATrainer):
    def get_train_labels(self, train_dataset):
        return None


class SwitchedOn(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        args.matching_weight = float(state.global_step >= 1)


def mixed(cls):
    return type(f"ITRA{cls.__name__}", (ITRATrainer, cls), {})


def sorts(examples):
    return default_data_collator(sorted(examples, key=lambda row: float(row["x"][0])))


def replaces(examples):
    return default_data_collator([row | {"labels": (row["labels"] + 5 * k) % 12} for k, row in enumerate(examples)])


def told(caplog, tmp_path, cls=ITRATrainer, data=None, keywords=None, **changes):
    """What a run of six steps warns of its pairs."""
    with caplog.at_level(logging.WARNING, "itra_hf"):
        tiny.trainer(tmp_path, Mlp(), data or rows(), cls, keywords, **({"max_steps": 6} | changes)).train()
    return [record.getMessage() for record in caplog.records if "not in effect" in record.getMessage()]


@pytest.mark.parametrize(
    ("cls", "keywords", "changes", "reason"),
    [
        (ITRATrainer, {}, {"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential' decides"),
        (mixed(Balanced), {}, {}, "Balanced._get_train_sampler decides"),
        (mixed(Weighted), {}, {}, "Weighted.get_train_dataloader takes no sampler"),
        (Unreadable, {}, {}, "cannot be told without loading .* override get_train_labels"),
        (ITRATrainer, {"data_collator": replaces}, {}, "collator gives other rows"),
        (ITRATrainer, {"data_collator": sorts}, {"matching": "marginal"}, "collator gives other rows"),
        (ITRATrainer, {}, {"matching": "marginal", "per_device_train_batch_size": 7}, "batches of 7 rows cut couples"),
        (ITRATrainer, {"callbacks": [SwitchedOn()]}, {"matching_weight": 0.0}, "matching was off .*warmup_ratio"),
        (ITRATrainer, {}, {"data": tiny.Stream(rows(192))}, "a stream"),
    ],
)
def test_rows_that_are_not_paired_are_told_once_with_the_reason_and_the_way_out(
    tmp_path, caplog, cls, keywords, changes, reason
):
    [text] = told(caplog, tmp_path, cls, keywords=keywords, **changes)
    assert re.search(f"% of the rows .* because .*{reason}.*, or set pairing='random'", text)


@pytest.mark.parametrize(
    ("cls", "changes"),
    [
        (ITRATrainer, {}),
        (ITRATrainer, {"keywords": {"data_collator": sorts}}),
        (ITRATrainer, {"per_device_train_batch_size": 7}),
        (ITRATrainer, {"matching": "marginal"}),
        (ITRATrainer, {"data": rows(60, 12), "matching": "joint"}),  # five rows of each class, one is left over
        (ITRATrainer, {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 24}),
        (ITRATrainer, {"train_sampling_strategy": "group_by_length", "data": rows(96, 2), "train_batch": 16}),
        (ITRATrainer, {"train_sampling_strategy": "sequential", "matching": "none"}),
        (mixed(Balanced), {"pairing": "random"}),
        (mixed(Weighted), {"pairing": "random"}),
    ],
)
def test_nothing_is_said_where_couples_share_a_class_or_none_were_asked_for(tmp_path, caplog, cls, changes):
    changes = dict(changes)
    if "train_batch" in changes:
        changes["per_device_train_batch_size"] = changes.pop("train_batch")
        changes["data"] = [row | {"input_ids": [1] * (1 + index % 5)} for index, row in enumerate(changes["data"])]
        changes["remove_unused_columns"] = False
        changes["keywords"] = {"data_collator": lambda rows: default_data_collator([_without_ids(r) for r in rows])}
    assert told(caplog, tmp_path, cls, **changes) == []


def _without_ids(row):
    return {name: value for name, value in row.items() if name != "input_ids"}


class Own(ITRATrainer):
    def _get_train_sampler(self, train_dataset=None):
        return RandomSampler(self.train_dataset, replacement=True)


class Rebuilds(ITRATrainer):
    def get_train_dataloader(self):
        super().get_train_dataloader()
        return self.accelerator.prepare(DataLoader(self.train_dataset, 8, shuffle=True))


class Keeps(ITRATrainer):
    def get_train_dataloader(self):
        self.kept = getattr(self, "kept", None) or super().get_train_dataloader()
        return self.kept


class Counted(tiny.Stream):
    def __len__(self):
        return len(self.rows)


@pytest.mark.parametrize(
    ("cls", "changes", "reason"),
    [
        (Own, {}, r"because Own\._get_train_sampler takes no sampler"),
        (Rebuilds, {}, r"because Rebuilds\.get_train_dataloader or the data set or the data collator gives"),
        (ITRATrainer, {"data": Counted(rows(192))}, "because a stream has"),
        (ITRATrainer, {"keywords": {"data_collator": replaces}, "per_device_train_batch_size": 7}, "collator gives"),
    ],
)
def test_the_reason_is_the_method_of_the_users_own(tmp_path, caplog, cls, changes, reason):
    [text] = told(caplog, tmp_path, cls, **changes)
    assert re.search(reason, text)


def test_a_loader_that_is_kept_for_a_second_run_is_still_paired(tmp_path, caplog):
    data = [row | {"labels": index % 12} for index, row in enumerate(tiny.vectors(36))]  # three of each class
    run = tiny.trainer(tmp_path, Mlp(), data, Keeps, max_steps=9, per_device_train_batch_size=4)
    with caplog.at_level(logging.WARNING, "itra_hf"):
        run.train()
        run.train()
    assert "not in effect" not in caplog.text


@pytest.mark.parametrize(("classes", "each", "batch"), [(150, 3, 2), (150, 3, 3), (10, 25, 2), (40, 5, 4), (3, 101, 2)])
def test_small_batches_with_rows_that_are_left_over_raise_no_alarm(classes, each, batch):
    labels = torch.arange(classes * each) % classes
    for seed in range(100):
        sampler, couples = ClassPairedSampler(labels, seed=seed), Couples()
        for part in torch.tensor(list(sampler)).split(batch):
            couples.look_at(labels[part])
        assert couples.are_seen
        assert couples.missing(Pairing(sampler)) is None


def test_a_short_run_is_told_at_its_end(tmp_path, caplog):
    assert len(told(caplog, tmp_path, mixed(Weighted), max_steps=1)) == 1


@pytest.mark.parametrize(
    ("changes", "pairs"),
    [
        ({}, True),
        ({"train_sampling_strategy": "sequential"}, False),
        ({"pairing": "random"}, False),
        ({"matching": "none"}, False),
    ],
)
def test_the_sampler_is_taken_where_nothing_else_orders_the_rows(tmp_path, changes, pairs):
    run = tiny.trainer(tmp_path, Mlp(), rows(), **changes)
    assert isinstance(run._get_train_sampler(), ClassPairedSampler) is pairs


def test_the_seed_is_that_of_the_data_where_it_is_given(tmp_path):
    labels = torch.arange(48) % 3
    for changes, seed in (({"seed": 3}, 3), ({"seed": 3, "data_seed": -1}, -1)):
        run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), **changes)
        pairing = pair_rows(run, run.train_dataset, super(ITRATrainer, run)._get_train_sampler)
        assert list(pairing.sampler) == list(ClassPairedSampler(labels, seed=seed))
    assert list(ClassPairedSampler(labels, seed=-1)) != list(ClassPairedSampler(labels, seed=1))


def test_collating_rows_to_see_their_labels_moves_no_random_state(tmp_path):
    def draws(examples):
        return default_data_collator([row | {"x": row["x"] + torch.rand(4)} for row in examples])

    data = [row | {"label": index // 8} for index, row in enumerate(rows())]
    run = tiny.trainer(tmp_path, Mlp(), data, keywords={"data_collator": draws})
    before = torch.get_rng_state()
    assert run.get_train_labels(data).tolist() == [row["labels"] for row in data]
    assert torch.equal(torch.get_rng_state(), before)
