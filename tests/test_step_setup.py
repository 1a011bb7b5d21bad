"""What a run's setup means for its matching: what is refused at once, and the weight for so many rows."""

import copy
import logging

import pytest
import tiny
import torch
from transformers import Trainer

from itra_hf import ITRATrainer
from itra_hf.pairing import first_labels
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


def test_labels_are_checked_at_construction_alone(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(setup, "first_labels", lambda *given: read.append(given) or first_labels(*given))
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


ASKED = {"matching": "class_conditional"}


def as_under_trainer(tmp_path, caplog, message, **changes):
    """Train from the same start under both, and see the same weights and one warning."""
    start, args = tiny.bert(), changes.pop("args", None)
    runs = []
    with caplog.at_level(logging.WARNING, "itra_hf"):
        for cls in (Trainer, ITRATrainer):
            run = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), cls, **changes)
            if args is not None:
                vars(run.args).update(args)
                run._train_batch_size = run.args.train_batch_size
            run.train()
            runs.append(run)
    assert torch.equal(*(tiny.weights(run.model) for run in runs))
    told = [record.getMessage() for record in caplog.records if record.name.startswith("itra_hf")]
    assert [message in text and "without matching" in text for text in told] == [True]


def test_a_batch_of_one_row_is_an_error_where_a_form_was_asked_for_and_else_trainers_run(tmp_path, caplog):
    with pytest.raises(ValueError, match=r"per_device_train_batch_size=1.*at least 2"):
        tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), per_device_train_batch_size=1, **ASKED)
    as_under_trainer(tmp_path, caplog, "1 row in a batch of one device", per_device_train_batch_size=1)


def test_a_batch_size_that_is_set_to_one_later_is_an_error_when_training_begins(tmp_path):
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), **ASKED)
    run.args.per_device_train_batch_size = run._train_batch_size = 1
    with pytest.raises(ValueError, match="leaves no pair"):
        run.train()


def test_rows_that_ranks_split_among_them_are_counted_for_each(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny.ITRAConfig, "world_size", 2)
    options = {"accelerator_config": {"split_batches": True}, "per_device_train_batch_size": 2}
    with pytest.raises(ValueError, match=r"1 row in a batch of one device \(per_device_train_batch_size=2\)"):
        tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), **options, **ASKED)


def test_a_trainer_that_only_evaluates_says_nothing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "itra_hf"):
        run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), per_device_train_batch_size=1)
        run.train_dataset = None
        scores = run.evaluate()
    plain = tiny.trainer(tmp_path, run.model, tiny.texts(), Trainer).evaluate()
    assert scores["eval_loss"] == plain["eval_loss"]
    assert not [record for record in caplog.records if record.name.startswith("itra_hf")]


@pytest.mark.parametrize("layer", ["head", 1])
def test_reentrant_checkpointing_serves_the_head_and_is_refused_with_a_hidden_state(tmp_path, layer):
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    if layer == "head":
        run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), **reentrant)
        run.train()
        assert all(value > 0 for value in tiny.logs_of(run, "matching_loss"))
    else:
        with pytest.raises(ValueError, match=r"feature_layer=1.*'use_reentrant': False}$"):
            tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), feature_layer=layer, **reentrant)


def test_data_parallel_is_refused_where_a_form_was_asked_for_and_else_told_once(tmp_path, caplog):
    args = tiny.ITRAConfig(**tiny.options(tmp_path), **ASKED)
    args._n_gpu = 2
    with pytest.raises(ValueError, match=r"2 devices.*accelerate launch"):
        ITRATrainer(tiny.bert(), args, train_dataset=tiny.texts())
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts())
    run.args._n_gpu = 2
    with caplog.at_level(logging.WARNING, "itra_hf"):
        setup.check_setup(run, 8, training=True)
    assert run.cannot_match
    assert "accelerate launch" in caplog.text


def test_rebalanced_batches_are_matched(tmp_path):
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), train_sampling_strategy="batch_rebalance", logging_steps=1)
    run.train()
    assert any(tiny.logs_of(run, "matching_loss"))


def test_a_name_that_no_module_has_is_an_error_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"feature_layer='clasifier' .*'classifier'"):
        tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), feature_layer="clasifier")
    with pytest.raises(ValueError, match=r"feature_layer='dense' is the name of 7 modules.*attention.output.dense"):
        tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), feature_layer="dense")


def test_what_is_matched_is_told_in_one_line(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "itra_hf"):
        run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), matching_weight=0.5, matching_full_weight_rows=8)
        run.train()
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert told == [run.matching_line]
    for part in (
        "the input of 'classifier' [8, 16] by class_conditional",
        "100% of the first batch in couples of one class",
        "weight 0.5 x 0.25",
        "ramp of 30%",
        "cap 1.0",
    ):
        assert part in told[0]
