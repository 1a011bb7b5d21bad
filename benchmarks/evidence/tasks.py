"""The tasks: a data set, how many labels of it are used, and a network. Their names say all three.

digits-300/cnn          300 labelled rows in all, as many of each class
banking77-5shot/minilm  5 labelled rows of each class
sst2-all/minilm-lora    every labelled row there is
"""

import csv
import gzip
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from networks import ENCODERS, build_network, collate_states, frozen_states, load_tokenizer
from sklearn.datasets import load_digits
from transformers import DataCollatorWithPadding, default_data_collator

Row = dict[str, Any]

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist puts it
IDX = ("fashion_mnist", "mnist", "kmnist")
FILES = (*IDX, "banking77", "sst2")  # data sets that can also be read from a folder
HUB = {  # name on the Hub, its column of inputs, its column of classes, its test split
    "mnist": ("ylecun/mnist", "image", "label", "test"),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", "image", "label", "test"),
    "kmnist": ("tanganke/kmnist", "image", "label", "test"),
    "cifar10": ("uoft-cs/cifar10", "img", "label", "test"),
    "cifar100": ("uoft-cs/cifar100", "img", "fine_label", "test"),
    "stl10": ("tanganke/stl10", "image", "label", "test"),
    "banking77": ("legacy-datasets/banking77", "text", "label", "test"),
    "sst2": ("SetFit/sst2", "text", "label", "test"),  # whole sentences; GLUE's are phrases, and its test has no labels
}
TEXTS = ("banking77", "sst2")
MAX_TOKENS = 32
VALIDATION_ROWS = 2000  # at most, and a tenth of the data where all of it is trained on


@dataclass(frozen=True)
class Data:
    """Labelled rows, as the model takes them; tuning never sees `test`."""

    pool: list[Row]
    test: list[Row]
    classes: int
    collator: Callable[[list[Row]], dict[str, Any]]


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

    def load(self, folders: dict[str, str]) -> Data:
        encoder = ENCODERS[self.network.split("-")[0]] if self.is_text else None
        return load_data(self.data, folders.get(self.data), encoder, self.network.endswith("-last2"))

    def build(self, data: Data) -> torch.nn.Module:
        return build_network(self.network, data.classes, data.pool[0])

    def arguments(self) -> dict[str, Any]:
        """The TrainingArguments of every method: rows per step and steps; learning rate and decay are tuned."""
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
def load_data(name: str, folder: str | None, encoder: str | None, frozen: bool = False) -> Data:
    """A data set from scikit-learn, from a folder, or from the Hub.

    Args:
        name: one of `digits` and the keys of `HUB`.
        folder: where its files are, if not on the Hub.
        encoder: of a data set of texts.
        frozen: rows of texts hold the hidden states of the encoder's frozen layers.
    """
    if name == "fashion_mnist" and folder is None and Path(FASHION_MNIST).exists():
        folder = FASHION_MNIST
    if name == "digits":
        bunch = load_digits()
        order = np.random.default_rng(0).permutation(len(bunch.target))
        images, labels = bunch.images[order] / 16, bunch.target[order]
        splits = [(images[:1000], labels[:1000]), (images[1000:], labels[1000:])]
    elif folder is not None:
        read = read_idx if name in IDX else read_banking77 if name == "banking77" else read_sst2
        splits = [read(Path(folder), split) for split in ("train", "test")]
    elif name in HUB:
        splits = read_hub(*HUB[name])
    else:
        raise ValueError(f"no data set {name!r}; there are digits, {', '.join(HUB)}")
    pool, test = (text_rows(*split, encoder) if encoder else image_rows(*split) for split in splits)
    collator = DataCollatorWithPadding(load_tokenizer(encoder)) if encoder else default_data_collator
    if encoder and frozen:
        pool, test, collator = frozen_states(encoder, pool), frozen_states(encoder, test), collate_states
    if encoder:
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


def read_idx(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images from 0 to 1 and labels of a data set in MNIST's files, gzipped or not."""
    parts = []
    for kind, header in (("images-idx3-ubyte", 16), ("labels-idx1-ubyte", 8)):
        path = next(folder.glob(f"{'t10k' if split == 'test' else split}-{kind}*"))
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        parts.append(np.frombuffer(content, np.uint8, offset=header))
    return parts[0].reshape(len(parts[1]), 28, 28).astype(np.float32) / 255, parts[1]


def read_banking77(folder: Path, split: str) -> tuple[list[str], list[int]]:
    """`train.csv` and `test.csv` with the columns text and category."""
    with (folder / f"{split}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["category"] for row in rows})
    return [row["text"] for row in rows], [names.index(row["category"]) for row in rows]


def read_sst2(folder: Path, split: str) -> tuple[list[str], list[int]]:
    """`train.tsv` and `test.tsv`, a sentence, a tab and 0 or 1 on each line."""
    lines = (folder / f"{split}.tsv").read_text().splitlines()
    pairs = [line.rsplit("\t", 1) for line in lines]
    return [text for text, _ in pairs], [int(label) for _, label in pairs]


def read_hub(name: str, inputs: str, classes: str, test: str) -> list[tuple[Any, list[int]]]:
    """The training and the test split of a data set on the Hub."""
    splits = []
    for split in ("train", test):
        rows = load_dataset(name, split=split)
        values = rows[inputs][:]
        if not isinstance(values[0], str):
            values = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in values])
        splits.append((values, rows[classes][:]))
    return splits
