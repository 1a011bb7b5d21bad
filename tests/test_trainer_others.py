"""ITRATrainer mixed into the trainers of other libraries: what it cannot match trains bit for bit as under them."""

import contextlib
import logging
from collections import defaultdict

import pytest
import tiny
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from itra_hf import ITRATrainer

WORDS = ["good", "bad", "fine", "awful", "film", "plot", "the", "was"]
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[EOS]"}
ROWS = 24
LLAMA = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}


def tokenizer():
    vocabulary = {word: index for index, word in enumerate([*SPECIAL.values(), *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL)


def columns(*names):
    """A data set of texts."""
    first = [f"{WORDS[row % 8]} {WORDS[row // 3 % 8]}" for row in range(ROWS)]
    return Dataset.from_dict({name: first[number:] + first[:number] for number, name in enumerate(names)})


def bi_encoder(folder):
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")  # since 6.0
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    BertModel(BertConfig(**tiny.bert().config.to_diff_dict())).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    model = library.SentenceTransformer(modules=[modules.Transformer(str(folder)), modules.Pooling(16)], device="cpu")
    rows = columns("anchor", "positive")
    keywords = {"train_dataset": rows, "eval_dataset": rows, "loss": losses.MultipleNegativesRankingLoss(model)}
    return library.SentenceTransformerTrainer, library.SentenceTransformerTrainingArguments, model, keywords


def cross_encoder(folder):
    library = pytest.importorskip("sentence_transformers.cross_encoder")
    losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")
    tiny.bert(num_labels=1).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    model = library.CrossEncoder(str(folder), device="cpu")
    rows = columns("question", "answer").add_column("label", [row % 2 for row in range(ROWS)])
    keywords = {"train_dataset": rows, "eval_dataset": rows, "loss": losses.BinaryCrossEntropyLoss(model)}
    return library.CrossEncoderTrainer, library.CrossEncoderTrainingArguments, model, keywords


def reward(folder):
    library = pytest.importorskip("trl")
    rows, model = columns("chosen", "rejected"), LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=1))
    keywords = {"train_dataset": rows, "eval_dataset": rows, "processing_class": tokenizer()}
    return library.RewardTrainer, library.RewardConfig, model, keywords


def supervised(folder):
    library = pytest.importorskip("trl")
    rows, model = columns("text"), LlamaForCausalLM(LlamaConfig(**LLAMA))
    keywords = {"train_dataset": rows, "eval_dataset": rows, "processing_class": tokenizer()}
    return library.SFTTrainer, library.SFTConfig, model, keywords


class Preferences(Trainer):
    """What such trainers have in common: keywords, a loss, a log and a model card of their own, and no label names."""

    def __init__(self, model, args=None, train_dataset=None, eval_dataset=None, margin=0.0, **kwargs):
        kwargs = {"data_collator": default_data_collator} | kwargs
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self.margin, self.metrics = margin, defaultdict(list)
        self.can_return_loss, self.label_names = True, []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(inputs["x"])["logits"]
        chosen, rejected = torch.chunk(logits[:, 0], 2)
        loss = -nn.functional.logsigmoid(chosen - rejected - self.margin).mean()
        self.metrics["margin"].append((chosen - rejected).mean().item())
        return (loss, {"logits": logits}) if return_outputs else loss

    def training_step(self, *args, **kwargs):
        with contextlib.nullcontext():
            return super().training_step(*args, **kwargs)

    def log(self, logs, start_time=None):
        logs.update({name: sum(values) / len(values) for name, values in self.metrics.items()})
        super().log(logs, start_time)
        self.metrics.clear()

    def create_model_card(self, model_name=None, dataset_name=None, tags=None):
        """Write none."""


def stand_in(folder):
    rows = [{"x": row["x"]} for row in tiny.vectors(ROWS)]
    return Preferences, TrainingArguments, tiny.Mlp(), {"train_dataset": rows, "eval_dataset": rows, "margin": 0.5}


@pytest.mark.parametrize("made", [bi_encoder, cross_encoder, reward, supervised, stand_in])
def test_it_trains_evaluates_saves_and_resumes_as_the_other_trainer_does(tmp_path, made, caplog):
    saves = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "bf16": False}
    runs = []
    for ours in (False, True):
        for steps in (2, 4):
            torch.manual_seed(0)
            theirs, arguments, model, keywords = made(tmp_path / "model")
            cls = type("Mixed", (ITRATrainer, theirs), {}) if ours else theirs
            args = arguments(**tiny.options(tmp_path / cls.__name__, max_steps=steps, **saves))
            caplog.clear()
            run = cls(model=model, args=args, **keywords)
            with caplog.at_level(logging.WARNING, "itra_hf"):
                run.train(resume_from_checkpoint=True if steps == 4 else None)
        run.create_model_card()
        timeless = [
            {key: entry[key] for key in entry if "_per_" not in key and "runtime" not in key}
            for entry in run.state.log_history
        ]
        runs.append((tiny.weights(run.model), timeless))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert [record.levelname for record in caplog.records if record.name.startswith("itra_hf")] == ["WARNING"]
