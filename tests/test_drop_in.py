"""The one-word swap: fine-tuning scripts as people write them, with Trainer and with ITRATrainer, compared."""

import copy
import csv
import json
import pickle
import random
from dataclasses import dataclass

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset, Image, load_dataset
from PIL import Image as Picture
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    BertForSequenceClassification,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

from itra_hf import ITRATrainer
from itra_hf.config import MatchingArguments
from itra_hf.step import LOGGED

WORDS = ["good", "bad", "fine", "awful", "film", "plot", "the", "was"]
OURS = set(LOGGED)


@pytest.fixture
def tokenizer():
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


def sentences(rows=24):
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(2, 6))) for _ in range(rows)]


def classes_from_csv(cls, args, folder, tokenizer):
    """Sequence classification from a csv file, the labels by a ClassLabel."""
    with open(folder / "train.csv", "w", newline="") as file:
        rows = [[text, ["no", "yes", "so"][row % 3]] for row, text in enumerate(sentences())]
        csv.writer(file).writerows([["text", "label"], *rows])
    rows = load_dataset("csv", data_files=str(folder / "train.csv"), split="train").class_encode_column("label")
    rows = rows.map(lambda batch: tokenizer(batch["text"], truncation=True), batched=True)

    def compute_metrics(prediction):
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    return cls(
        model=tiny.bert(),
        args=args,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=rows,
        eval_dataset={"all": rows, "some": rows.select(range(7))},  # Trainer takes several, too
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    ), rows


def regression_from_json(cls, args, folder, tokenizer):
    """A GLUE-style task of two sentences and a score, from json lines."""
    texts = sentences()
    lines = [{"sentence1": text, "sentence2": texts[0], "label": row / 5} for row, text in enumerate(texts)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = load_dataset("json", data_files=str(folder / "train.jsonl"), split="train")
    rows = rows.map(lambda row: tokenizer(row["sentence1"], row["sentence2"], padding="max_length", max_length=12))

    def compute_metrics(prediction):
        return {"pearson": float(np.corrcoef(prediction.predictions[:, 0], prediction.label_ids)[0, 1])}

    model = tiny.bert(num_labels=1)
    keywords = {"train_dataset": rows, "eval_dataset": rows, "compute_metrics": compute_metrics}
    return cls(model, args, processing_class=tokenizer, **keywords), rows


def images(cls, args, folder, tokenizer):
    """Image classification with a transform whenever a batch is read."""
    args.remove_unused_columns = False
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    columns = {"image": [Picture.fromarray(image) for image in pixels], "label": [row % 3 for row in range(24)]}
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])

    def transform(batch):
        pictures = [np.atleast_3d(image) for image in batch["image"]]
        return processor(pictures, return_tensors="pt") | {"labels": batch["label"]}

    rows = Dataset.from_dict(columns).cast_column("image", Image()).with_transform(transform)
    return cls(tiny.vit(), args, train_dataset=rows, eval_dataset=rows, processing_class=processor), rows


def sounds(cls, args, folder, tokenizer):
    """Audio classification with a feature extractor that pads."""
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal(400 + 20 * (row % 4)).astype(np.float32) for row in range(24)]
    values = extractor(clips, sampling_rate=16_000)["input_values"]
    rows = Dataset.from_dict({"input_values": values, "label": [row % 3 for row in range(24)]})
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2}
    sizes |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=3, mask_time_prob=0.0, **sizes))
    collator = DataCollatorWithPadding(extractor)
    return cls(model, args, collator, train_dataset=rows, eval_dataset=rows, processing_class=extractor), rows


def conduct(trainer, rows):
    """Train, evaluate, predict, save and resume; returns the shape of all that came of it, without the numbers."""
    trained = trainer.train()
    scores = trainer.evaluate()
    predicted = trainer.predict(rows)
    trainer.save_model()
    trainer.save_state()
    trainer.create_model_card()
    pickle.loads(pickle.dumps(trainer.args))  # noqa: S301
    history = [set(entry) - OURS for entry in trainer.state.log_history]
    last = trainer.train(resume_from_checkpoint=True)
    folder = trainer.args.output_dir
    files = sorted(str(path.relative_to(folder)) for path in tiny.Path(folder).rglob("*") if path.is_file())
    outputs = predicted.predictions if isinstance(predicted.predictions, tuple) else (predicted.predictions,)
    return {
        "trained": (type(trained), trained.global_step, set(trained.metrics)),
        "scores": set(scores),
        "predicted": [(part.shape, part.dtype) for part in outputs],
        "labels": predicted.label_ids.tolist(),
        "predicted_metrics": set(predicted.metrics),
        "history": history,
        "files": files,
        "resumed": (last.global_step, set(last.metrics)),
    }


@pytest.mark.parametrize("script", [classes_from_csv, regression_from_json, images, sounds])
def test_a_script_keeps_the_shape_of_all_it_logs_saves_and_returns(tmp_path, script, tokenizer):
    shapes = []
    for cls in (Trainer, ITRATrainer):
        folder = tmp_path / cls.__name__
        folder.mkdir()
        torch.manual_seed(0)
        options = tiny.options(folder / "out", save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=2)
        trainer, rows = script(cls, TrainingArguments(**options), folder, tokenizer)
        shapes.append(conduct(trainer, rows))
        if cls is ITRATrainer:
            logged = [entry for entry in trainer.state.log_history if "loss" in entry]
            assert all(set(entry) >= OURS for entry in logged)
            assert all(entry["matching_loss"] > 0 for entry in logged)
    assert shapes[1] == shapes[0]


def test_predictions_hold_no_hidden_states(tmp_path):
    """Also where the features are a hidden state, which Trainer would gather from every evaluated row."""
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), feature_layer="-1")
    run.train()
    plain = tiny.trainer(tmp_path, run.model, tiny.texts(), Trainer)
    assert (run.predict(tiny.texts()).predictions == plain.predict(tiny.texts()).predictions).all()
    assert not run.model.config.output_hidden_states


@pytest.mark.parametrize(("first", "second"), [(ITRATrainer, Trainer), (Trainer, ITRATrainer)])
def test_a_checkpoint_of_the_one_goes_on_in_the_other(tmp_path, first, second):
    options = {"save_strategy": "steps", "save_steps": 2}
    tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), first, **options).train()
    model = BertForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), second, **options)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert run.state.global_step == 4
    assert [entry["step"] for entry in run.state.log_history if "loss" in entry] == [2, 4]
    moved = (tiny.weights(run.model) - tiny.weights(model)).abs().max()
    assert 0 < moved < 1e-2  # it went on from the checkpoint, not from a new model


@pytest.mark.parametrize("off", [{"matching": "none"}, {"matching_weight": 0.0}])
def test_switched_off_it_draws_from_every_generator_as_trainer_does(tmp_path, off):
    states = []
    for cls, changes in ((Trainer, {}), (ITRATrainer, off)):
        run = tiny.trainer(tmp_path, copy.deepcopy(tiny.bert()), tiny.texts(), cls, **changes)
        run.train()
        run.evaluate()
        states.append((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()))
    assert states[0] == states[1]


def test_saved_arguments_are_plain_and_hold_no_token(tmp_path):
    """`training_args.bin` opens without itra_hf, tells the matching's options, and keeps Trainer's secret."""
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), matching_weight=0.25, hub_token="hf_secret")
    run.save_model()
    saved = tmp_path / "training_args.bin"
    assert b"hf_secret" not in saved.read_bytes()
    assert b"itra_hf" not in saved.read_bytes()
    args = torch.load(saved, weights_only=False)
    assert type(args) is TrainingArguments
    assert args.hub_token is None
    assert args.per_device_train_batch_size == run.args.per_device_train_batch_size
    assert run.args.hub_token == "hf_secret"  # noqa: S105
    assert type(run.args) is tiny.ITRAConfig
    again = ITRATrainer(tiny.bert(), args, train_dataset=tiny.texts())  # taken up again, they mean what they meant
    assert again.matching_args.matching_weight == 0.25


def test_saved_arguments_of_a_class_with_a_mixin_of_the_users_are_plain_too(tmp_path):
    class Extra:
        note = "mine"

    class Mine(Extra, tiny.ITRAConfig):
        pass

    run = ITRATrainer(tiny.bert(), Mine(str(tmp_path), matching_weight=0.25), train_dataset=tiny.texts())
    run.save_model()
    args = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert type(args) is TrainingArguments
    assert args.matching_weight == 0.25


def test_pickled_and_copied_arguments_are_whole(tmp_path):
    args = tiny.ITRAConfig(str(tmp_path), hub_token="hf_secret", matching="joint")
    for other in (pickle.loads(pickle.dumps(args)), copy.deepcopy(args), copy.copy(args)):  # noqa: S301
        assert type(other) is tiny.ITRAConfig
        assert (other.hub_token, other.matching) == ("hf_secret", "joint")


# ---- subclasses


def custom(base):
    """A Trainer subclass that overrides what people override, and notes that it was asked."""

    class Custom(base):
        def __init__(self, *args, **kwargs):
            self.asked = set()
            super().__init__(*args, **kwargs)

        def create_optimizer(self, *args, **kwargs):
            self.asked.add("create_optimizer")
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            return self.optimizer

        def compute_loss(self, model, inputs, *args, **kwargs):
            self.asked.add("compute_loss")
            inputs = {key: value for key, value in inputs.items() if key != "note"}
            return super().compute_loss(model, inputs, *args, **kwargs)

        def log(self, logs, *args, **kwargs):
            self.asked.add("log")
            logs["learning"] = 1.0
            super().log(logs, *args, **kwargs)

        def evaluate(self, *args, **kwargs):
            scores = super().evaluate(*args, **kwargs)
            return scores | {"eval_twice": 2 * scores["eval_loss"]}

        def get_train_dataloader(self):
            self.asked.add("get_train_dataloader")
            return super().get_train_dataloader()

    return Custom


class Count(TrainerCallback):
    def __init__(self):
        self.events = []

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append("step")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.events.append(tuple(sorted(set(logs) - OURS)))


def weighted_loss(outputs, labels, num_items_in_batch=None):
    weight = torch.tensor([1.0, 2.0, 3.0])
    return nn.functional.cross_entropy(outputs["logits"], labels, weight)


def test_a_custom_subclass_keeps_all_that_it_overrides(tmp_path):
    """Run with both bases; with the matching off, to the same bits."""
    start = tiny.bert()
    runs = {}
    bases = (("theirs", Trainer, {}), ("ours", ITRATrainer, {}), ("off", ITRATrainer, {"matching": "none"}))
    for name, base, changes in bases:
        count = Count()
        keywords = {
            "callbacks": [count],
            "compute_loss_func": weighted_loss,
            "compute_metrics": lambda prediction: {"mean": float(prediction.predictions.mean())},
            "preprocess_logits_for_metrics": lambda logits, labels: logits.softmax(-1),
        }
        run = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), custom(base), keywords, **changes)
        run.train()
        runs[name] = (run.asked, count.events, set(run.evaluate()), type(run.optimizer.optimizer), run)
    assert runs["ours"][:4] == runs["theirs"][:4] == runs["off"][:4]
    assert runs["ours"][2] >= {"eval_twice", "eval_mean"}
    assert torch.equal(tiny.weights(runs["off"][-1].model), tiny.weights(runs["theirs"][-1].model))
    assert not torch.equal(tiny.weights(runs["ours"][-1].model), tiny.weights(runs["theirs"][-1].model))
    logged = [entry for entry in runs["ours"][-1].state.log_history if "loss" in entry]
    assert all(set(entry) >= {*OURS, "learning"} for entry in logged)


# ---- Seq2SeqTrainer next door


class Seq2SeqITRATrainer(ITRATrainer, Seq2SeqTrainer):
    pass


@dataclass
class Seq2SeqITRAConfig(MatchingArguments, Seq2SeqTrainingArguments):
    def __post_init__(self):
        Seq2SeqTrainingArguments.__post_init__(self)
        MatchingArguments.__post_init__(self)


def seq2seq(cls, folder, model, tokenizer, **changes):
    rows = [tokenizer(text) | {"labels": tokenizer(text).input_ids} for text in sentences()]
    options = {"predict_with_generate": True, "generation_max_length": 9} | changes
    args = Seq2SeqITRAConfig(**tiny.options(folder, **options))
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    run = cls(model, args, collator, rows, rows, processing_class=tokenizer)
    run.train()
    return run, run.predict(rows)


def t5(tokenizer):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, **sizes))


def test_mixes_into_seq2seq_trainer(tmp_path, tokenizer, caplog):
    """A language model has no classes to match: it trains and generates as under Seq2SeqTrainer, to the bit."""
    start = t5(tokenizer)
    ours, generated = seq2seq(Seq2SeqITRATrainer, tmp_path, copy.deepcopy(start), tokenizer)
    theirs, expected = seq2seq(Seq2SeqTrainer, tmp_path, copy.deepcopy(start), tokenizer)
    assert torch.equal(tiny.weights(ours.model), tiny.weights(theirs.model))
    assert generated.predictions.dtype == "int64"  # tokens, not logits
    assert (generated.predictions == expected.predictions).all()
    assert "no linear classification head" in caplog.text
    assert ours.evaluate().keys() == theirs.evaluate().keys()


def test_matches_the_encoder_of_a_sequence_to_sequence_model(tmp_path, tokenizer):
    start = t5(tokenizer)
    changes = {"matching": "marginal", "feature_layer": "-1"}
    ours, generated = seq2seq(Seq2SeqITRATrainer, tmp_path, copy.deepcopy(start), tokenizer, **changes)
    theirs, _ = seq2seq(Seq2SeqTrainer, tmp_path, copy.deepcopy(start), tokenizer)
    assert all(entry["matching_loss"] > 0 for entry in ours.state.log_history if "loss" in entry)
    assert not torch.equal(tiny.weights(ours.model), tiny.weights(theirs.model))
    plain = Seq2SeqTrainer(ours.model, ours.args, ours.data_collator, processing_class=tokenizer)
    assert (plain.predict(ours.eval_dataset).predictions == generated.predictions).all()
