"""Small models and data in files, as a user of the command line has them."""

import csv
import random
from pathlib import Path

import numpy as np
import tiny
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ViTImageProcessor

PETS = {"cat": ["purr", "meow"], "dog": ["bark", "fetch"], "emu": ["egg", "feather"]}
FILLER = ["the", "a", "and", "so"]


def bert(folder: Path) -> str:
    """A tiny BERT with a tokenizer of the words above."""
    words = ["[PAD]", "[UNK]", *FILLER, *(word for words in PETS.values() for word in words)]
    vocabulary = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(folder / "bert")
    tiny.bert(num_labels=2).save_pretrained(folder / "bert")
    return str(folder / "bert")


def pets(folder: Path, rows: int = 60) -> str:
    """A csv file of texts that tell their class."""
    rng = random.Random(0)
    with open(folder / "pets.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for row in range(rows):
            name = list(PETS)[row % 3]
            writer.writerow([" ".join(rng.choices([*PETS[name], *FILLER], k=6)), name])
    return str(folder / "pets.csv")


def vit(folder: Path) -> str:
    """A tiny ViT with its image processor."""
    ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]).save_pretrained(folder / "vit")
    tiny.vit().save_pretrained(folder / "vit")
    return str(folder / "vit")


def stripes(folder: Path, rows: int = 30, split: str = "") -> str:
    """A folder of images for each of three classes."""
    rng = np.random.default_rng(0)
    for row in range(rows):
        place = folder / "stripes" / split / ["along", "across", "none"][row % 3]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (8, 8), dtype=np.uint8)
        pixels[::2] += 120 * (row % 3 == 0)
        pixels[:, ::2] += 120 * (row % 3 == 1)
        Image.fromarray(pixels).save(place / f"{row}.png")
    return str(folder / "stripes")
