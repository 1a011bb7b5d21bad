"""The data and the networks of the evidence: fair draws, files and the Hub, a head for every class."""

import gzip
from collections import Counter

import numpy as np
import pytest
import tasks
import torch
from networks import ENCODERS, build_network, collate_states, find_head, frozen_states, load_tokenizer
from tasks import Task


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
    data = Task("kmnist-300/cnn").load({"kmnist": str(tmp_path)})
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
        return {"img": splits[split], "fine_label": list(range(len(splits[split])))}

    monkeypatch.setattr(tasks, "load_dataset", load_dataset)
    data = Task("cifar100-1000/resnet").load({})
    assert asked == [("uoft-cs/cifar100", "train"), ("uoft-cs/cifar100", "test")]
    assert data.pool[0]["pixel_values"].shape == (3, 8, 8)
    assert [row["pixel_values"].mean().item() for row in data.pool] == [1, -1]
    with pytest.raises(ValueError, match="no data set 'moon'"):
        Task("moon-100/cnn").load({})


@pytest.mark.parametrize(
    "network", ["cnn", "resnet", "resnet_groupnorm", "vit", "minilm", "minilm-lora", "minilm-last2"]
)
def test_networks_have_a_head_for_every_class(network):
    row = {"pixel_values": torch.zeros(1, 28, 28)}
    model = build_network(network, 7, row)
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


def test_group_norm_takes_the_place_of_batch_norm_alone():
    row = {"pixel_values": torch.zeros(1, 28, 28)}
    models = []
    for name in ("resnet", "resnet_groupnorm"):
        torch.manual_seed(0)
        models.append(build_network(name, 7, row))
    norms = [Counter(type(module).__name__ for module in model.modules()) for model in models]
    assert norms[0]["BatchNorm2d"] == norms[1]["GroupNorm"] > 0
    assert norms[1]["BatchNorm2d"] == norms[0]["GroupNorm"] == 0
    weights = [{n: w for n, w in model.named_parameters() if "normalization" not in n} for model in models]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    images = torch.randn(4, 1, 28, 28)
    together = models[1](images)["logits"]
    torch.testing.assert_close(models[1](images[:1])["logits"], together[:1])  # a row does not see the others
    assert (models[0](images[:1])["logits"] - models[0](images)["logits"][:1]).abs().max() > 1e-3


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
