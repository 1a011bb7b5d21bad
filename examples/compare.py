"""Train a small ViT on scikit-learn's digits with Trainer and with ITRATrainer, on paired seeds, and write a report.

Without arguments it takes 3 seeds and 300 training images; `make demo` runs it:

    python examples/compare.py

Any option of ITRAConfig may follow, such as `--max_steps 2000 --matching_weight 0.5`; `--seeds 10` says more.
comparison.html, comparison.png and comparison.json go to `--output_dir`. A folder that holds finished runs of the same
settings goes on after them. For your own data and models there is the command `itra-hf compare`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Value
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import HfArgumentParser, ViTConfig, ViTForImageClassification

from itra_hf import ITRAConfig
from itra_hf.command.compare import RESULT, compare
from itra_hf.command.differences import table
from itra_hf.command.tasks import Task
from itra_hf.diagnostics.callback import MEASURES
from itra_hf.report import write_comparison

DEFAULTS = {
    "output_dir": "outputs/compare",
    "max_steps": 600,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 256,
    "learning_rate": 1e-3,
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "logging_steps": 50,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
}


@dataclass
class CompareArguments:
    """How often, and on how much."""

    seeds: int = field(default=3, metadata={"help": "Train both on this many seeds: --seed and those after it."})
    train_size: int = field(default=300, metadata={"help": "Train on this many images; the others test."})


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch: pixels from -1 to 1, `[rows, 1, 8, 8]`, and the digits."""
    pixels = torch.tensor([row["pixels"] for row in rows]).view(-1, 1, 8, 8)
    return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}


def new_model() -> ViTForImageClassification:
    """A small ViT with random weights."""
    names = {label: str(label) for label in range(10)}
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    images = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    labels = {"id2label": names, "label2id": {name: label for label, name in names.items()}}
    return ViTForImageClassification(ViTConfig(**sizes, **images, **labels))


def digits(train_size: int, seed: int) -> Task:
    """Scikit-learn's 1,797 handwritten digits; the same images train and test in all runs."""
    bunch = load_digits()
    names = [str(name) for name in bunch.target_names]
    columns = Features({"pixels": [Value("float32")], "labels": ClassLabel(names=names)})
    rows = {"pixels": (bunch.data / 8 - 1).astype(np.float32), "labels": bunch.target}
    split = Dataset.from_dict(rows, features=columns).train_test_split(
        train_size=train_size, stratify_by_column="labels", seed=seed
    )
    return Task(
        kind="image",
        train=split["train"],
        test=split["test"],
        names=names,
        processor=None,
        collator=collate,
        new_model=new_model,
        model_name="a small ViT from scratch",
        dataset_name="scikit-learn digits",
    )


def by_seed(runs: list[dict[str, Any]]) -> str:
    """The accuracy of both trainers on each seed, and how many seeds ITRATrainer won."""
    accuracy = {(run["seed"], run["trainer"]): run["metrics"]["accuracy"] for run in runs}
    pairs = {seed: (accuracy[seed, "Trainer"], accuracy[seed, "ITRATrainer"]) for seed, _ in accuracy}
    lines = [f"{f'seed {seed}':<16}{plain:>12.2%}{itra:>13.2%}" for seed, (plain, itra) in pairs.items()]
    won = sum(itra > plain for plain, itra in pairs.values())
    ties = sum(itra == plain for plain, itra in pairs.values())
    told = f"ITRATrainer won {won} of {len(pairs)} seeds" + (f"; {ties} ended equal." if ties else ".")
    return "\n".join([f"{'test accuracy':<16}{'Trainer':>12}{'ITRATrainer':>13}", *lines, told])


def main(argv: list[str] | None = None) -> Path:
    """Compare, print the scores, and return the report's path."""
    parser = HfArgumentParser((CompareArguments, ITRAConfig))  # type: ignore[arg-type]
    parser.set_defaults(**DEFAULTS)
    how, args = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else argv)
    torch.set_num_threads(1)  # as fast as two for so small a model
    seeds = list(range(args.seed, args.seed + how.seeds))
    result = compare(digits(how.train_size, args.seed), args, seeds, MEASURES)
    page = write_comparison(Path(args.output_dir) / RESULT)
    print(f"\n{by_seed(result['runs'])}\n\n{table(result)}\n\n{result['sentence']}\n")
    print(f"The report is {page}, its picture {page.with_suffix('.png')}.")
    print("No model is kept here; examples/image_classification.py saves one with its card.")
    return page


if __name__ == "__main__":
    main()
