"""What a run's setup means for its matching: what is refused at once, and the weight for so many rows."""

import pytest
import tiny
import torch

from itra_hf import ITRATrainer, labels
from itra_hf.step import setup


@pytest.mark.parametrize(
    ("rows", "changes", "whole"),
    [
        (tiny.vectors(48), {"max_steps": 12}, 24),
        (tiny.vectors(48), {"max_steps": 3}, 24),
        (tiny.vectors(48), {"max_steps": 6, "gradient_accumulation_steps": 2}, 24),
        (tiny.vectors(48), {"max_steps": -1, "num_train_epochs": 3.0}, 16),
        (tiny.Stream(tiny.vectors(48)), {"max_steps": 4}, 32),
    ],
    ids=["two epochs", "half an epoch", "accumulated", "epochs asked for", "stream, one epoch of 4 x 8 rows"],
)
def test_beyond_the_rows_of_full_weight_for_an_epoch_the_weight_falls_as_one_over_rows(tmp_path, rows, changes, whole):
    options = {"matching_warmup_ratio": 0.0, "matching_max_grad_ratio": None, "logging_steps": 1} | changes
    for full, expected in ((whole, 0.5), (whole + 1, 0.5), (whole // 4, 0.125)):
        trainer = tiny.trainer(
            tmp_path, tiny.Mlp(), rows, matching_weight=0.5, matching_full_weight_rows=full, **options
        )
        trainer.train()
        assert tiny.logs_of(trainer, "matching_weight") == pytest.approx([expected] * trainer.state.global_step)


def test_the_labels_of_all_rows_are_checked_at_construction_alone(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(setup, "label_column", lambda rows: read.append(rows) or labels.label_column(rows))
    trainer = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(16), matching="class_conditional", max_steps=1)
    trainer.train()
    assert len(read) == 1


@pytest.mark.parametrize("matching", ["class_conditional", "joint"])
def test_missing_labels_are_an_error_at_construction(tmp_path, matching):
    import datasets

    rows = datasets.Dataset.from_list([{"input_ids": [1, 2]}] * 8)
    with pytest.raises(ValueError, match=f"matching='{matching}'.*input_ids.*marginal"):
        tiny.trainer(tmp_path, tiny.bert(), rows, matching=matching)


@pytest.mark.parametrize(
    ("config", "label", "names"),
    [({"num_labels": 1}, 0.5, "targets"), ({}, [1.0, 0.0, 1.0], "vectors")],
)
def test_class_conditional_refuses_labels_that_are_no_classes(tmp_path, config, label, names):
    rows = [row | {"labels": label} for row in tiny.texts()]
    with pytest.raises(ValueError, match=f"class_conditional.*{names}.*joint"):
        tiny.trainer(tmp_path, tiny.bert(**config), rows, matching="class_conditional")


def test_labels_that_the_collator_makes_serve_a_form_that_was_asked_for(tmp_path):
    import datasets

    rows = datasets.Dataset.from_list([{"x": row["x"].tolist(), "fine": row["labels"]} for row in tiny.vectors()])

    def collate(rows):
        return {"x": torch.tensor([row["x"] for row in rows]), "labels": torch.tensor([row["fine"] for row in rows])}

    options = {"matching": "class_conditional", "remove_unused_columns": False, "logging_steps": 1}
    run = tiny.trainer(tmp_path, tiny.Mlp(), rows, keywords={"data_collator": collate}, **options)
    run.train()
    assert any(tiny.logs_of(run, "matching_loss"))


def test_a_batch_size_below_two_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"per_device_train_batch_size=1.*at least 2"):
        tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), per_device_train_batch_size=1)


def test_rows_that_ranks_split_among_them_are_counted_for_each(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny.ITRAConfig, "world_size", 2)
    options = {"accelerator_config": {"split_batches": True}, "per_device_train_batch_size": 2}
    with pytest.raises(ValueError, match=r"1 row in a batch of one device \(per_device_train_batch_size=2\)"):
        tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), **options)


def test_a_batch_size_that_is_set_to_one_later_is_an_error_when_training_begins(tmp_path):
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts())
    run.args.per_device_train_batch_size = run._train_batch_size = 1
    with pytest.raises(ValueError, match="leaves no pair"):
        run.train()


@pytest.mark.parametrize("layer", ["head", 1])
def test_reentrant_checkpointing_serves_the_head_and_is_refused_with_a_hidden_state(tmp_path, layer):
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    if layer == "head":
        run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), **reentrant)
        run.train()
        assert all(value > 0 for value in tiny.logs_of(run, "matching_loss"))
    else:
        with pytest.raises(ValueError, match=r"feature_layer=1.*'use_reentrant': False.*feature_layer='head'"):
            tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), feature_layer=layer, **reentrant)


def test_data_parallel_is_refused(tmp_path):
    args = tiny.ITRAConfig(**tiny.options(tmp_path))
    args._n_gpu = 2
    with pytest.raises(ValueError, match=r"2 devices.*accelerate launch"):
        ITRATrainer(tiny.bert(), args, train_dataset=tiny.texts())


def test_rebalanced_batches_are_refused_with_class_pairing_only(tmp_path):
    options = {"train_sampling_strategy": "batch_rebalance"}
    with pytest.raises(ValueError, match=r"batch_rebalance.*pairing='random'"):
        tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), **options)
    tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), pairing="random", **options).train()
