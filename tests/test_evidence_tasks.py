"""The data and the networks of the evidence: fair draws, files and the Hub, a head for every class."""

import gzip

import numpy as np
import pytest
import readers
import torch
from methods import settings
from networks import ENCODERS, build_network, collate_states, find_head, frozen_states, load_tokenizer
from one_run import Run, arguments, execute
from PIL import Image
from plan import GPU_METHODS
from tasks import Task
from transformers import Trainer


def test_seeds_draw_balanced_rows_and_validation_is_kept_apart():
    task = Task("digits-100/cnn")
    data = task.load({})
    train, measured = task.draw(data, seed=3, validation=False)
    again, held_out = task.draw(data, seed=3, validation=True)
    ids = [[id(row) for row in rows] for rows in (train, measured, again, held_out, data.test)]
    assert ids[0] == ids[2]
    assert ids[1] == ids[4]
    assert not set(ids[3]) & (set(ids[0]) | set(ids[4]))
    assert np.bincount([row["labels"] for row in train]).tolist() == [10] * 10
    assert [id(row) for row in task.draw(data, seed=4, validation=False)[0]] != ids[0]
    everything, kept = Task("digits-all/cnn").draw(data, seed=3, validation=True)
    assert len(everything) + len(kept) == len(data.pool)
    assert not {id(row) for row in everything} & {id(row) for row in kept}


def write_idx(folder, split, images, labels, compress):
    for kind, values, header in (("images-idx3", images, 16), ("labels-idx1", labels, 8)):
        content = bytes(header) + np.asarray(values, dtype=np.uint8).tobytes()
        path = folder / f"{split}-{kind}-ubyte{'.gz' if compress else ''}"
        path.write_bytes(gzip.compress(content) if compress else content)


@pytest.mark.parametrize("compress", [True, False])
def test_images_come_from_idx_files(tmp_path, compress):
    images = np.zeros((2, 28, 28))
    images[1, 3, 4] = 255
    write_idx(tmp_path, "train", images, [7, 9], compress)
    write_idx(tmp_path, "t10k", images[:1], [1], compress)
    data = Task("fashion_mnist-300/cnn").load({"fashion_mnist": str(tmp_path)})
    assert [row["labels"] for row in data.pool + data.test] == [7, 9, 1]
    assert data.classes == 10
    assert data.pool[1]["pixel_values"].shape == (1, 28, 28)
    assert data.pool[1]["pixel_values"].unique().tolist() == [-1, 1]
    assert data.pool[1]["pixel_values"][0, 3, 4] == 1


def test_texts_come_from_csv_and_tsv_files(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text('text,category\n"Hello, world",b\nhello,a\n')
        (tmp_path / f"{split}.tsv").write_text("hello\t1\nhello world\t0\n")
    intents = Task("banking77-5shot/minilm").load({"banking77": str(tmp_path)})
    moods = Task("sst2-all/minilm").load({"sst2": str(tmp_path)})
    assert [row["labels"] for row in intents.pool] == [1, 0]
    assert [row["labels"] for row in moods.test] == [1, 0]
    assert intents.pool[1]["input_ids"] == moods.pool[0]["input_ids"]
    batch = intents.collator(intents.pool)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["attention_mask"].sum(1).tolist() == [5, 3]


def test_without_files_data_come_from_the_hub(monkeypatch):
    image = np.full((8, 8, 3), 255, dtype=np.uint8)
    splits = {"train": [image, 0 * image], "test": [image]}
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return {"img": splits[split], "label": list(range(len(splits[split])))}

    monkeypatch.setattr(readers, "load_dataset", load_dataset)
    data = Task("cifar10-1000/resnet").load({})
    assert asked == [("uoft-cs/cifar10", "train"), ("uoft-cs/cifar10", "test")]
    assert data.pool[0]["pixel_values"].shape == (3, 8, 8)
    assert [row["pixel_values"].mean().item() for row in data.pool] == [1, -1]
    with pytest.raises(ValueError, match="no data set 'moon'"):
        Task("moon-100/cnn").load({})


@pytest.mark.parametrize(
    "network", ["cnn", "resnet", "resnet18", "vit", "minilm", "minilm-bf16", "minilm-lora", "minilm-last2"]
)
def test_networks_have_a_head_for_every_class(network):
    model = build_network(network, 7)
    text = {"input_ids": torch.tensor([[101, 7592, 102]])}
    if network == "minilm-last2":
        text = {"inputs_embeds": torch.randn(1, 3, 384)}
    inputs = text if "minilm" in network else {"pixel_values": torch.randn(2, 1, 28, 28)}
    seen = []
    find_head(model).register_forward_hook(lambda *call: seen.append(call[2]))
    assert model.eval()(**inputs)["logits"] is seen[-1]
    assert seen[-1].shape[1] == 7
    trained = {name for name, weights in model.named_parameters() if weights.requires_grad}
    parts = {"minilm-lora": ("lora_", "classifier")}
    expected = parts.get(network, ("",))
    assert trained == {name for name, _ in model.named_parameters() if any(part in name for part in expected)} - {
        "base_model.model.classifier.original_module.weight",
        "base_model.model.classifier.original_module.bias",
    }


def test_small_images_keep_their_size_through_the_stem():
    model = build_network("resnet18", 10, 3, 32)
    assert sum(weights.numel() for weights in model.parameters()) == pytest.approx(11.2e6, rel=0.01)
    assert model.resnet.embedder(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 32, 32)
    assert model(torch.zeros(1, 3, 32, 32), output_hidden_states=True).hidden_states[-1].shape == (1, 512, 4, 4)


@pytest.fixture
def mosaics(tmp_path):
    """A folder of CIFAR-10 with 24 training and 4 test images a class; an image's pixels tell its class and number."""
    rng = np.random.default_rng(0)
    for split, across, down in (("train", 6, 4), ("test", 4, 1)):
        for label, name in enumerate(readers.CIFAR10):
            tiles = rng.integers(0, 30, (down, across, 32, 32, 3)) + 20 * label
            tiles[..., 0] += np.arange(down * across).reshape(down, across, 1, 1)
            pixels = tiles.swapaxes(1, 2).reshape(down * 32, across * 32, 3).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{split}-{name}.jpg", quality=100, subsampling=0)
    return str(tmp_path)


def test_images_come_from_mosaics_row_by_row(mosaics):
    images, labels = readers.read("cifar10", mosaics, "train")
    assert images.shape == (240, 32, 32, 3)
    assert np.bincount(labels).tolist() == [24] * 10
    means = images[labels == 3].mean((1, 2))
    np.testing.assert_allclose(means[:, 0] - means[:, 1], np.arange(24), atol=1.5)


def test_images_on_the_device_are_looked_up_normalised_and_augmented(mosaics):
    task = Task("cifar10-100/resnet18")
    data = task.load({"cifar10": mosaics})
    train, test = task.draw(data, seed=0, validation=False)
    assert (len(train), len(test), data.classes) == (100, 40, 10)
    everything = data.collator(data.pool + data.test)
    assert everything["pixel_values"].shape == (280, 3, 32, 32)
    assert everything["pixel_values"].mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    assert everything["pixel_values"].var((0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    torch.manual_seed(0)
    plain, changed = data.collator(train), data.augment(train)
    assert plain["labels"].tolist() == changed["labels"].tolist() == [row["labels"] for row in train]
    found = set()
    for before, after in zip(plain["pixel_values"], changed["pixel_values"], strict=True):
        padded = torch.nn.functional.pad(before, (4,) * 4)
        crops = {
            (flip, down, across): (crop.flip(-1) if flip else crop)
            for flip in (False, True)
            for down in range(9)
            for across in range(9)
            for crop in [padded[:, down : down + 32, across : across + 32]]
        }
        found |= {where for where, crop in crops.items() if torch.equal(crop, after)}
    assert len(found) > 50  # a place for each row, all kinds of them
    assert {flip for flip, _, _ in found} == {True, False}


def test_tasks_for_a_gpu_train_as_people_train_them(tmp_path):
    images, texts = Task("cifar10-5000/resnet18").arguments(), Task("banking77-5shot/minilm-bf16").arguments()
    assert (images["num_train_epochs"], images["per_device_train_batch_size"]) == (30, 64)
    assert texts == {**Task("banking77-5shot/minilm").arguments(), "bf16": True}
    args = arguments(str(tmp_path), 0, images | {"learning_rate": 0.1, "weight_decay": 5e-4})
    optimizer = Trainer(build_network("cnn", 10), args).create_optimizer()
    assert type(optimizer) is torch.optim.SGD
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, True)
    assert args.lr_scheduler_type == "cosine"


@pytest.mark.parametrize("method", GPU_METHODS)
def test_a_method_runs_on_images_on_the_device(mosaics, method):
    """A step of each on the CPU."""
    task = Task("cifar10-100/resnet18")
    chosen = settings(task, method, {"trainer": {"learning_rate": 0.1, "weight_decay": 5e-4}}, {"max_steps": 1})
    row = execute(Run(task.name, method, 0, "test", chosen), {"cifar10": mosaics})
    assert 0 <= row["accuracy"] <= 1
    assert np.isfinite(row["loss"])


def test_the_last_layers_on_frozen_states_are_the_whole_encoder():
    texts = ["one two three four five", "six", "seven eight"]
    tokens = load_tokenizer(ENCODERS["minilm"])(texts)
    rows = [{"input_ids": ids, "labels": label} for label, ids in enumerate(tokens["input_ids"])]
    batch = collate_states(frozen_states(ENCODERS["minilm"], rows))
    whole, last = (build_network(name, 3, {}).eval() for name in ("minilm", "minilm-last2"))
    last.classifier.load_state_dict(whole.classifier.state_dict())
    padded = load_tokenizer(ENCODERS["minilm"])(texts, padding=True, return_tensors="pt")
    expected = whole(**padded, labels=batch["labels"])
    torch.testing.assert_close(last(**batch)["logits"], expected["logits"], atol=1e-5, rtol=0)
    assert len(last.bert.encoder.layer) == 2
