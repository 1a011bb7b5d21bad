"""Digests follow the content, whatever it is called and wherever it lies."""

import shutil
from pathlib import Path

import folders
import PIL.Image
import pytest
import tiny
import torch
from datasets import Audio, ClassLabel, Dataset, Features, Image, load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from itra_hf.command.contents import model_digest, processor_digest, rows_digest


def test_rows_are_known_by_all_their_cells_in_order():
    cells = {"text": ["a", "b", None], "scores": [0.1, float("nan"), 2.0], "ids": [[1], [], [2, 3]]}
    rows = Dataset.from_dict(cells)
    digest = rows_digest(rows)
    assert rows_digest(Dataset.from_dict(cells).shuffle(seed=0).sort("text")) == digest
    assert rows_digest(rows.with_format("torch")) == digest
    others = [rows.select([1, 0, 2]), rows.select([0, 1]), rows.rename_column("text", "words")]
    others += [Dataset.from_dict(cells | change) for change in ({"text": ["a", "c", None]}, {"ids": [[1], [2], [3]]})]
    others += [Dataset.from_dict(cells | {"scores": [0.1 + 1e-16 * 2, float("nan"), 2.0]})]
    assert len({digest, *map(rows_digest, others)}) == 1 + len(others)


def test_pictures_are_known_by_their_bytes_in_a_folder_or_in_the_row(tmp_path):
    folder = folders.stripes(tmp_path)
    rows = load_dataset(folder)["train"]
    digest = rows_digest(rows)
    shutil.move(folder, tmp_path / "moved")
    moved = load_dataset(str(tmp_path / "moved"))["train"]
    assert rows_digest(moved) == digest
    raw = moved.cast_column("image", Image(decode=False))
    inside = raw.map(lambda row: {"image": {"bytes": Path(row["image"]["path"]).read_bytes(), "path": None}})
    assert rows_digest(inside.cast_column("image", Image())) == digest


def test_pictures_within_lists_and_missing_ones_are_known():
    features = Features({"pictures": [Image()], "more": {"picture": Image()}})
    digests = []
    for grey in (0, 0, 9):
        picture = PIL.Image.new("L", (8, 8), grey)
        cells = {"pictures": [[picture, None]] * 3, "more": [{"picture": picture}, {"picture": None}, None]}
        digests.append(rows_digest(Dataset.from_dict(cells, features)))
    assert digests[0] == digests[1] != digests[2]


def test_classes_of_other_names_are_others():
    rows = Dataset.from_dict({"labels": [0, 1]})
    one, other = (rows.cast_column("labels", ClassLabel(names=names)) for names in (["a", "b"], ["b", "a"]))
    assert rows_digest(one) != rows_digest(other)


def test_sounds_are_known_without_a_decoder():
    clips = [{"bytes": bytes([n] * 10), "path": None} for n in range(3)]
    rows = Dataset.from_dict({"audio": clips}).cast_column("audio", Audio(sampling_rate=8000))
    other = Dataset.from_dict({"audio": clips[::-1]}).cast_column("audio", Audio(sampling_rate=8000))
    assert rows_digest(rows) == rows_digest(rows.select(range(3))) != rows_digest(other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_known_by_layers_weights_buffers_and_config(tmp_path, dtype):
    def model(**changes):
        torch.manual_seed(0)
        return tiny.bert(**changes).to(dtype)

    digest, loaded = model_digest(model()), []
    for place in ("here", "there"):
        model().save_pretrained(tmp_path / place)
        loaded.append(model_digest(AutoModelForSequenceClassification.from_pretrained(tmp_path / place, dtype=dtype)))
    assert loaded[0] == loaded[1]
    changed = model()
    with torch.no_grad():
        changed.classifier.weight[0, 0] += 0.1
    assert len({digest, *map(model_digest, (changed, model(dropout=0.2), model(layer_norm_eps=1e-6)))}) == 4
    assert model_digest(torch.nn.BatchNorm1d(3)) == model_digest(torch.nn.BatchNorm1d(3))
    moved = torch.nn.BatchNorm1d(3)
    moved.running_mean += 1
    assert model_digest(moved) != model_digest(torch.nn.BatchNorm1d(3))


def test_an_adapter_is_known_by_its_weights(tmp_path):
    tiny.bert().save_pretrained(tmp_path / "base")
    digests = []
    for seed in (0, 0, 1):
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
        torch.manual_seed(seed)
        config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, init_lora_weights="gaussian")
        get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
        digests.append(model_digest(AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapter")))
    assert digests[0] == digests[1] != digests[2]


def test_what_layers_hold_beside_their_weights_is_known():
    """Such as the scaling of an adapter."""
    digests = []
    for alpha in (2, 2, 64):
        torch.manual_seed(0)
        digests.append(model_digest(get_peft_model(tiny.bert(), LoraConfig(r=2, lora_alpha=alpha))))
    assert digests[0] == digests[1] != digests[2]
    plain, scaled = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    scaled.load_state_dict(plain.state_dict())
    assert model_digest(plain) == model_digest(scaled)
    plain.scale, scaled.scale = 1.0, 100.0
    assert model_digest(plain) != model_digest(scaled)


def test_a_processor_that_was_used_is_the_same(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folders.bert(tmp_path))
    digest = processor_digest(tokenizer)
    tokenizer(["purr"], truncation=True, max_length=3, padding="max_length")
    assert processor_digest(tokenizer) == digest
    assert processor_digest(None) is None


def test_a_processor_is_known_by_what_it_saves(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folders.bert(tmp_path))
    digest = processor_digest(tokenizer)
    shutil.move(tmp_path / "bert", tmp_path / "moved")
    assert processor_digest(AutoTokenizer.from_pretrained(tmp_path / "moved")) == digest
    tokenizer.add_tokens(["woof"])
    assert processor_digest(tokenizer) != digest
