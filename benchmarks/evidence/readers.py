"""Reads data sets from files, or from the Hub, as inputs and labels of a split."""

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset
from PIL import Image

HUB = {  # name on the Hub, its column of inputs, its column of classes
    "fashion_mnist": ("zalando-datasets/fashion_mnist", "image", "label"),
    "cifar10": ("uoft-cs/cifar10", "img", "label"),
    "banking77": ("legacy-datasets/banking77", "text", "label"),
    "sst2": ("SetFit/sst2", "text", "label"),  # whole sentences; GLUE's are phrases, and its test has no labels
}
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32


def read(name: str, folder: str | None, split: str) -> tuple[Any, Any]:
    """Texts, or images `[n, height, width]` or `[n, height, width, 3]` of bytes, and labels `[n]`.

    Args:
        name: of the data set.
        folder: its files; without one it comes from the Hub.
        split: `"train"` or `"test"`.
    """
    if folder is not None:
        return READERS[name](Path(folder), split)
    if name not in HUB:
        raise ValueError(f"no data set {name!r}; there are digits, {', '.join(HUB)}")
    path, inputs, classes = HUB[name]
    rows = load_dataset(path, split=split)
    values = rows[inputs][:]
    if not isinstance(values[0], str):
        values = np.stack([np.asarray(image, np.uint8) for image in values])
    return values, rows[classes][:]


def read_idx(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's files, gzipped or not."""
    parts = []
    for kind, header in (("images-idx3-ubyte", 16), ("labels-idx1-ubyte", 8)):
        path = next(folder.glob(f"{'t10k' if split == 'test' else split}-{kind}*"))
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        parts.append(np.frombuffer(content, np.uint8, offset=header))
    return parts[0].reshape(len(parts[1]), 28, 28), parts[1]


def read_mosaics(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """`split-CLASS.jpg`: the images of a class row by row, 32 x 32 each."""
    images, labels = [], []
    for label, name in enumerate(CIFAR10):
        mosaic = np.asarray(Image.open(folder / f"{split}-{name}.jpg"), np.uint8)
        down, across = mosaic.shape[0] // SIDE, mosaic.shape[1] // SIDE
        tiles = mosaic.reshape(down, SIDE, across, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
        images.append(tiles)
        labels += [label] * len(tiles)
    return np.concatenate(images), np.array(labels)


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


READERS = {"fashion_mnist": read_idx, "cifar10": read_mosaics, "banking77": read_banking77, "sst2": read_sst2}
