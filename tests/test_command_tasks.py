"""What the command line makes of a user's data."""

import json

import datasets
import folders
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import EvalPrediction, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from itra_hf.command import data
from itra_hf.command.data import TaskArguments
from itra_hf.command.tasks import load_task


def batch(task, rows=4):
    columns = set(task.train.column_names) - {"text"}
    return task.collator([{name: row[name] for name in columns} for row in task.train.select(range(rows))])


def check(task):
    """The model takes a batch, and makes a loss of it."""
    torch.manual_seed(0)
    inputs = batch(task)
    outputs = task.new_model()(**inputs)
    assert outputs.loss.isfinite()
    assert outputs.logits.shape == (4, len(task.names or [0]))
    return inputs


def test_texts_of_a_file(tmp_path):
    task = load_task(TaskArguments(folders.bert(tmp_path), train_file=folders.pets(tmp_path)), seed=0)
    assert (task.kind, task.names, task.dataset_name) == ("text", ["cat", "dog", "emu"], "pets")
    assert (len(task.train), len(task.test)) == (48, 12)
    assert sorted(np.bincount(task.test["labels"])) == [4, 4, 4]  # held out by class
    check(task)
    assert task.new_model().config.id2label == {0: "cat", 1: "dog", 2: "emu"}


def test_the_tokenizer_knows_where_texts_are_cut_also_where_they_come_from_the_cache(tmp_path):
    """The model card tells it."""
    data = TaskArguments(folders.bert(tmp_path), train_file=folders.pets(tmp_path), max_length=5)
    for _ in range(2):
        task = load_task(data, seed=0)
        assert task.processor.backend_tokenizer.truncation["max_length"] == 5


def test_pairs_of_texts_with_a_score(tmp_path):
    rows = [{"first": "the cat", "second": "a dog", "score": row / 7, "id": row} for row in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = TaskArguments(
        folders.bert(tmp_path),
        train_file=str(tmp_path / "pairs.jsonl"),
        validation_file=str(tmp_path / "pairs.jsonl"),
        input_column=["first", "second"],
        label_column="score",
    )
    task = load_task(data, seed=0)
    assert (task.kind, task.names, len(task.train), len(task.test)) == ("text", None, 20, 20)
    inputs = check(task)
    assert inputs["labels"].dtype == torch.float32
    assert inputs["input_ids"].shape[1] == 4  # both texts
    labels = np.array([1.0, 2.0, 4.0])
    scores = task.compute_metrics(EvalPrediction(np.array([[1.0], [2.0], [3.0]]), labels))
    assert scores == pytest.approx({"mse": 1 / 3, "pearson": np.corrcoef([1, 2, 3], labels)[0, 1]})


def test_images_of_a_folder_with_and_without_a_test_set(tmp_path):
    model = folders.vit(tmp_path)
    task = load_task(TaskArguments(model, dataset_name=folders.stripes(tmp_path)), seed=0)
    assert (task.kind, task.names, len(task.train), len(task.test)) == ("image", ["across", "along", "none"], 24, 6)
    assert check(task)["pixel_values"].shape == (4, 1, 8, 8)
    (tmp_path / "two").mkdir()
    for split, rows in (("train", 12), ("test", 9)):
        folder = folders.stripes(tmp_path / "two", rows, split)
    task = load_task(TaskArguments(model, dataset_name=folder), seed=0)
    assert (len(task.train), len(task.test)) == (12, 9)


def test_sounds_are_cut_and_padded(tmp_path, monkeypatch):
    """All but the decoding of files, which takes torchcodec."""
    monkeypatch.setattr(datasets.Audio, "decode_example", lambda feature, value, **tokens: decoded(feature, value))

    def decoded(feature, value):
        return {"array": np.frombuffer(value["bytes"], np.float32), "sampling_rate": feature.sampling_rate}

    rng = np.random.default_rng(0)
    clips = [rng.standard_normal(rng.integers(900, 2500)).astype(np.float32).tobytes() for _ in range(20)]
    rows = datasets.Dataset.from_dict({"clip": [{"bytes": clip, "path": None} for clip in clips], "label": [1, 3] * 10})
    rows = datasets.DatasetDict(train=rows.cast_column("clip", datasets.Audio(sampling_rate=16_000)))
    monkeypatch.setattr(data, "load_dataset", lambda *names: rows)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    shape = {"conv_dim": (8, 8), "conv_stride": (10, 8), "conv_kernel": (10, 8), "num_conv_pos_embeddings": 4}
    options = {**sizes, **shape, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0}
    Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**options)).save_pretrained(tmp_path / "model")
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path / "model")
    task = load_task(TaskArguments(str(tmp_path / "model"), dataset_name="sounds", max_seconds=0.2), seed=0)
    assert (task.kind, task.names) == ("audio", ["1", "3"])
    assert check(task)["input_values"].shape == (4, 1600)  # 0.2 seconds at the model's rate


def test_scores_of_classes_are_those_of_scikit_learn(tmp_path):
    task = load_task(TaskArguments(folders.bert(tmp_path), train_file=folders.pets(tmp_path)), seed=0)
    logits = np.random.default_rng(0).standard_normal((50, 3))
    labels = np.arange(50) % 3
    scores = task.compute_metrics(EvalPrediction((logits, "hidden"), labels))
    chosen = logits.argmax(-1)
    expected = {"accuracy": accuracy_score(labels, chosen), "macro_f1": f1_score(labels, chosen, average="macro")}
    assert scores == pytest.approx(expected)
