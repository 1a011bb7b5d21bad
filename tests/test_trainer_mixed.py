"""ITRATrainer mixed into what users have: other trainers, models of their own, callbacks that copy the model."""

import copy
import logging

import pytest
import tiny
import torch
from torch import nn
from torch.utils.data import Subset
from transformers import BertConfig, BertModel, Trainer, TrainerCallback

from itra_hf import ITRATrainer
from itra_hf.features import HeadNotFoundError

LOGGED = {"logging_steps": 1, "matching_warmup_ratio": 0.0}


class Weighted(Trainer):
    """Weighs its rows by a column that the model does not know, with the arguments that most such trainers have."""

    def __init__(self, *args, factor=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor = factor

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        weights = inputs.pop("importance")
        outputs = model(inputs["x"])
        losses = nn.functional.cross_entropy(outputs["logits"], inputs["labels"], reduction="none")
        loss = self.factor * (losses * weights).mean()
        return (loss, outputs) if return_outputs else loss


class WeightedITRATrainer(ITRATrainer, Weighted):
    pass


def weighted_rows():
    return [row | {"importance": 1.0 + index % 2} for index, row in enumerate(tiny.vectors())]


@pytest.mark.parametrize("matching", ["none", "auto"])
def test_the_loss_of_another_trainer_is_the_task_loss_whatever_it_takes_from_the_batch(tmp_path, matching):
    start = tiny.Mlp()
    options = {"remove_unused_columns": False, "train_sampling_strategy": "sequential", "pairing": "random", **LOGGED}
    runs = {}
    for cls in (WeightedITRATrainer, Weighted):
        keywords = {"factor": 3.0}
        run = tiny.trainer(tmp_path, copy.deepcopy(start), weighted_rows(), cls, keywords, matching=matching, **options)
        run.train()
        runs[cls] = run
    ours, theirs = runs.values()
    losses = tiny.logs_of(ours, "loss" if matching == "none" else "task_loss")
    assert losses[0] == pytest.approx(tiny.logs_of(theirs, "loss")[0], rel=1e-4)
    assert any(tiny.logs_of(ours, "matching_loss")) is (matching == "auto")


def test_an_unknown_keyword_is_an_error_as_under_trainer(tmp_path):
    with pytest.raises(TypeError, match="factor"):
        tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), keywords={"factor": 3.0})


class OnBackbone(nn.Module):
    """A head of its own on a backbone, whose config it took over with the two labels that every config has."""

    def __init__(self, config):
        super().__init__()
        self.config, self.backbone = config, BertModel(config)
        self.fc = nn.Linear(config.hidden_size, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.fc(self.backbone(input_ids, attention_mask).pooler_output)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def backbone_config():
    return BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)


def test_a_model_with_its_backbones_config_has_a_head(tmp_path):
    run = tiny.trainer(tmp_path, OnBackbone(backbone_config()), tiny.texts(), matching="class_conditional", **LOGGED)
    run.train()
    assert any(tiny.logs_of(run, "matching_loss"))


@pytest.mark.parametrize("scope", ["micro_batch", "optimizer_step"])
def test_a_callback_may_copy_the_model(tmp_path, scope):
    copies = []

    class KeepCopies(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            copies.append(copy.deepcopy(model))

    options = {"matching_scope": scope, "gradient_accumulation_steps": 2, "max_steps": 3}
    run = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), keywords={"callbacks": [KeepCopies()]}, **options)
    run.train()
    assert torch.equal(tiny.weights(copies[-1]), tiny.weights(run.model))
    assert len(copies) == 3


def test_a_loss_that_leaves_trainers_out_is_told_in_the_second_step(tmp_path, caplog):
    class Own(ITRATrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    with caplog.at_level(logging.WARNING, "itra_hf"):
        run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), Own)
        run.train()
    told = [record.message for record in caplog.records if "no features were seen in the first step" in record.message]
    assert len(told) == 1
    run.create_model_card()
    assert "In-Training Representation Alignment" not in (tmp_path / "README.md").read_text()
    asked = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), Own, matching="marginal")
    with pytest.raises(HeadNotFoundError, match=r"super\(\).compute_loss"):
        asked.train()


def test_a_step_that_takes_two_losses_of_a_micro_batch_needs_the_other_scope(tmp_path):
    class Twice(ITRATrainer):
        def training_step(self, *args, **kwargs):
            return super().training_step(*args, **kwargs) + super().training_step(*args, **kwargs)

    options = {"gradient_accumulation_steps": 2, "logging_steps": 1}
    tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), Twice, **options).train()
    run = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), Twice, matching_scope="optimizer_step", **options)
    with pytest.raises(ValueError, match="matching_scope='micro_batch'"):
        run.train()


def test_labels_are_found_behind_other_arguments_that_are_named_like_them(tmp_path):
    class Reweighted(tiny.Mlp):
        def forward(self, x, label_weight=None, labels=None):
            return super().forward(x, labels)

    run = tiny.trainer(tmp_path, Reweighted(), tiny.vectors(), **LOGGED)
    assert run.label_names == ["label_weight", "labels"]
    run.train()
    assert run.matching_form == "class_conditional"
    assert any(tiny.logs_of(run, "matching_loss"))


def test_a_model_that_cannot_be_matched_says_nothing_about_the_next(tmp_path):
    class Squashed(tiny.Mlp):
        def forward(self, x, labels=None):
            logits = self.head(self.body(x)).tanh()
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    run = tiny.trainer(tmp_path, None, tiny.vectors(), keywords={"model_init": lambda: Squashed()}, **LOGGED)
    run.train()
    assert not tiny.logs_of(run, "matching_loss")
    run.model_init = lambda: tiny.Mlp()
    run.train()
    assert any(tiny.logs_of(run, "matching_loss"))


def test_a_wrong_layer_is_an_error_though_the_form_was_not_asked_for(tmp_path):
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), feature_layer=-7)
    with pytest.raises(HeadNotFoundError, match="feature_layer=-7 is none of them"):
        run.train()


def test_a_part_of_the_rows_has_its_own_labels(tmp_path):
    class OnAPart(ITRATrainer):
        def get_train_dataloader(self):
            part = Subset(self.train_dataset, range(8, 24))
            sampler = self._get_train_sampler([self.train_dataset[index] for index in part.indices])
            return torch.utils.data.DataLoader(part, 8, sampler=sampler, collate_fn=self.data_collator)

    pairs = []

    def spy(source, target, source_labels, target_labels):
        pairs.append((source_labels.tolist(), target_labels.tolist()))
        return source.sum() * 0

    tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), OnAPart, {"matching_loss": spy}).train()
    assert pairs
    assert sum(source == target for source, target in pairs) >= len(pairs) / 2  # odd rows of classes are left over
