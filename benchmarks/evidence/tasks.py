"""The tasks: a data set, how many labels of it are used, and a network. Their names say all three.

digits-300/cnn          300 labelled rows in all, as many of each class
banking77-5shot/minilm  5 labelled rows of each class
sst2-all/minilm-lora    every labelled row there is
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import ENCODERS, build_network, collate_states, frozen_states, load_tokenizer
from on_device import DeviceImages
from readers import READERS, read
from sklearn.datasets import load_digits
from transformers import DataCollatorWithPadding, default_data_collator

Row = dict[str, Any]
Collator = Callable[[list[Row]], dict[str, Any]]

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts it
FILES = tuple(READERS)  # data sets that can be read from a folder
TEXTS = ("banking77", "sst2")
MAX_TOKENS = 32
VALIDATION_ROWS = 2000  # at most, and a tenth of the data where all of it is trained on


@dataclass(frozen=True)
class Data:
    """Labelled rows, as the model takes them; tuning never sees `test`.

    Args:
        collator: makes a batch of rows.
        augment: the same for training, where images are changed at random.
        channels, side: of images.
    """

    pool: list[Row]
    test: list[Row]
    classes: int
    collator: Collator
    augment: Collator | None = None
    channels: int = 1
    side: int = 0


@dataclass(frozen=True)
class Task:
    """A task by its name, `data-size/network`."""

    name: str

    @property
    def data(self) -> str:
        return self.name.split("-")[0]

    @property
    def size(self) -> str:
        return self.name.split("/")[0].split("-")[1]

    @property
    def network(self) -> str:
        return self.name.split("/")[1]

    @property
    def is_text(self) -> bool:
        return self.data in TEXTS

    @property
    def for_gpu(self) -> bool:
        return self.network in ("resnet18", "minilm-bf16")

    def load(self, folders: dict[str, str]) -> Data:
        if self.network == "resnet18":
            return load_on_device(self.data, folders.get(self.data))
        encoder = ENCODERS[self.network.split("-")[0]] if self.is_text else None
        return load_data(self.data, folders.get(self.data), encoder, self.network.endswith("-last2"))

    def build(self, data: Data) -> torch.nn.Module:
        return build_network(self.network, data.classes, data.channels, data.side)

    def arguments(self) -> dict[str, Any]:
        """The TrainingArguments of every method: rows per step and steps; learning rate and decay are tuned."""
        if self.network == "resnet18":
            epochs, rows = {"5000": (30, 64), "all": (15, 128)}.get(self.size, (60, 64))
            options = {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=True", "lr_scheduler_type": "cosine"}
            return {"num_train_epochs": epochs, "per_device_train_batch_size": rows, "bf16": True, **options}
        if self.network == "minilm-bf16":
            return {**Task(self.name.removesuffix("-bf16")).arguments(), "bf16": True}
        if self.is_text:
            # all: five epochs of BANKING77, three and a half of SST-2's 6,920 sentences
            steps = {"5shot": 120, "10shot": 180, "200": 100, "1000": 160}.get(self.size, 780)
            return {"per_device_train_batch_size": 64 if self.data == "banking77" else 32, "max_steps": steps}
        steps = {"100": 600, "300": 600, "1000": 800, "5000": 1200}.get(self.size, 4700)
        return {"per_device_train_batch_size": 32 if steps <= 800 else 64, "max_steps": steps}

    def draw(self, data: Data, seed: int, validation: bool) -> tuple[list[Row], list[Row]]:
        """The training rows of a seed, and the rows to measure on: unused rows of the pool, or the test set."""
        labels = np.array([row["labels"] for row in data.pool])
        order = np.random.default_rng(seed).permutation(len(labels))
        chosen = order[len(order) // 10 :] if validation else order
        if self.size != "all":
            shots = int(self.size[:-4]) if self.size.endswith("shot") else int(self.size) // data.classes
            chosen = np.concatenate([order[labels[order] == label][:shots] for label in range(data.classes)])
        rest = np.setdiff1d(order, chosen)
        held_out = np.random.default_rng(seed).permutation(rest)[:VALIDATION_ROWS]
        measured = [data.pool[i] for i in held_out] if validation else data.test
        return [data.pool[i] for i in chosen], measured


@lru_cache
def load_on_device(name: str, folder: str | None) -> Data:
    """Images on the device; a row holds where its image is."""
    (images, labels), (test_images, test_labels) = (read(name, folder, split) for split in ("train", "test"))
    pictures = DeviceImages(np.concatenate([images, test_images]))
    rows = [{"index": i, "labels": int(label)} for i, label in enumerate([*labels, *test_labels])]
    pool, test = rows[: len(labels)], rows[len(labels) :]
    return Data(pool, test, 1 + int(max(labels)), pictures.collate, pictures.augment, 3, images.shape[1])


@lru_cache
def load_data(name: str, folder: str | None, encoder: str | None, frozen: bool = False) -> Data:
    """A data set from scikit-learn, from a folder, or from the Hub.

    Args:
        name: `digits`, or one that `readers.py` knows.
        folder: where its files are, if not on the Hub.
        encoder: of a data set of texts.
        frozen: rows of texts hold the hidden states of the encoder's frozen layers.
    """
    if encoder is not None:
        return load_texts(name, folder, encoder, frozen)
    if name == "digits":
        bunch = load_digits()
        order = np.random.default_rng(0).permutation(len(bunch.target))
        images, labels = bunch.images[order] / 16, bunch.target[order]
        splits = [(images[:1000], labels[:1000]), (images[1000:], labels[1000:])]
    else:
        if name == "fashion_mnist" and folder is None and Path(FASHION_MNIST).exists():
            folder = FASHION_MNIST
        splits = [read(name, folder, split) for split in ("train", "test")]
        splits = [(np.asarray(images, dtype=np.float32) / 255, labels) for images, labels in splits]
    pool, test = (image_rows(*split) for split in splits)
    channels, _, side = pool[0]["pixel_values"].shape
    return Data(pool, test, 1 + max(row["labels"] for row in pool), default_data_collator, None, channels, side)


def load_texts(name: str, folder: str | None, encoder: str, frozen: bool) -> Data:
    pool, test = (text_rows(*read(name, folder, split), encoder) for split in ("train", "test"))
    collator: Collator = DataCollatorWithPadding(load_tokenizer(encoder))
    if frozen:
        pool, test, collator = frozen_states(encoder, pool), frozen_states(encoder, test), collate_states
    test.sort(key=lambda row: len(row["inputs_embeds" if frozen else "input_ids"]))  # little to pad
    return Data(pool, test, 1 + max(row["labels"] for row in pool), collator)


def image_rows(images: np.ndarray, labels: Any) -> list[Row]:
    """Rows of `pixel_values` `[channels, height, width]` from -1 to 1."""
    pixels = torch.from_numpy(np.asarray(images, dtype=np.float32)) * 2 - 1
    pixels = pixels.movedim(-1, 1) if pixels.ndim == 4 else pixels[:, None]
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, labels, strict=True)]


def text_rows(texts: list[str], labels: Any, encoder: str) -> list[Row]:
    encoded = load_tokenizer(encoder)(texts, truncation=True, max_length=MAX_TOKENS)
    names = list(encoded)
    columns = [encoded[name] for name in names]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    return [{**row, "labels": int(label)} for row, label in zip(rows, labels, strict=True)]
