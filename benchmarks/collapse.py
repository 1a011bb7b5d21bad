"""Do the features collapse? Small models under every weight, with the guards at their defaults and without them.

    python benchmarks/collapse.py [--fashion_mnist FOLDER] [--workers 2]

A run trains for a second or two; every finished run is a line of `--results`, so that a stopped command goes on where
it was. Writes docs/collapse.md. FOLDER holds the idx files of Fashion-MNIST (Debian's `dataset-fashion-mnist` puts them
into /usr/share/datasets/fashion-mnist); without it only the digits of scikit-learn run.

The page says what counts as collapsed and as a shortfall.
"""

import argparse
import gzip
import itertools
import json
import logging
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, ViTConfig, ViTForImageClassification
from transformers.utils import logging as transformers_logging

from itra_hf import ITRAConfig, ITRATrainer

PAGE = Path(__file__).parents[1] / "docs" / "collapse.md"
CLASSES, BATCH = 10, 64
STEPS = {"mlp": 300, "cnn": 300, "vit": 400}
TRAIN_ROWS = {"digits": 1200, "fashion_mnist": 4000}
DATA = tuple(TRAIN_ROWS)
TEST_ROWS = 5000
MODELS = tuple(STEPS)
OPTIMIZERS = {
    "sgd": {"optim": "sgd", "learning_rate": 0.1},
    "adamw": {"optim": "adamw_torch", "learning_rate": 1e-3},
}
WRONG_LABELS = (0.0, 0.3)
WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)
GUARDS: dict[str, dict[str, Any]] = {
    "on": {},
    "off": {"matching_warmup_ratio": 0.0, "matching_max_grad_ratio": None},
}
SEEDS = 5
COLLAPSED = 1e-3
POINTS = 2.0

GUARDS_LINK = "[guards](concepts.md#collapse-and-the-two-guards)"
INTRODUCTION = f"How often features collapse, with both {GUARDS_LINK} and without them."
SETTING = f"""`python benchmarks/collapse.py --fashion_mnist FOLDER` trains small models in every combination of
these:

| setting | values |
|---|---|
| data | {TRAIN_ROWS["digits"]:,} of scikit-learn's digits; {TRAIN_ROWS["fashion_mnist"]:,} of Fashion-MNIST, 16 x 16 |
| model | small MLP, CNN, ViT |
| steps of {BATCH} rows | {STEPS["mlp"]}; ViT: {STEPS["vit"]} |
| optimizer | SGD with learning rate 0.1; AdamW with 0.001 |
| wrong labels | none; 30 % |
| weight | {", ".join(f"{weight:g}" for weight in WEIGHTS)}, whole for any number of rows |
| guards | `on`: the defaults; `off`: `matching_warmup_ratio=0`, `matching_max_grad_ratio=None` |
| seeds | {SEEDS} |

- **Collapsed**: the package warned of a collapse, or the features of the test set scatter less than a thousandth as far
  as in Trainer's runs.
- **Shortfall**: by how many points the test accuracy lies below the mean of Trainer's runs in the same cell. A cell is
  data, model, optimizer and share of wrong labels. A negative shortfall is a gain.
- **Trainer's row** shows how far Trainer's own seeds scatter around their mean. Compare the other rows with it."""

Run = dict[str, Any]


class Classifier(nn.Module):
    """A body of any kind below a linear head."""

    def __init__(self, body: nn.Sequential, features: int) -> None:
        super().__init__()
        self.body, self.classifier = body, nn.Linear(features, CLASSES)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.classifier(self.body(pixel_values))
        if labels is None:
            return {"logits": logits}
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def make_model(kind: str, side: int) -> nn.Module:
    """A model for square grey images."""
    if kind == "mlp":
        layers = [nn.Flatten(), nn.Linear(side**2, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()]
        return Classifier(nn.Sequential(*layers), 64)
    if kind == "cnn":
        layers = [nn.Conv2d(1, 16, 5, stride=side // 8, padding=2), nn.ReLU()]  # 8 x 8
        layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        return Classifier(nn.Sequential(*layers), 32 * 4 * 4)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
    image = {"image_size": side, "patch_size": side // 2, "num_channels": 1}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return ViTForImageClassification(ViTConfig(**sizes, **image, **dropout, initializer_range=0.1, num_labels=CLASSES))


def read_idx(folder: Path, name: str) -> np.ndarray:
    """The array of an idx file, gzipped or not."""
    path = folder / name
    data = path.read_bytes() if path.exists() else gzip.decompress((folder / f"{name}.gz").read_bytes())
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


@cache
def load(data: str, folder: Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels; the split is the same for all seeds."""
    if data == "digits":
        digits = load_digits()
        images, labels = torch.tensor(digits.images, dtype=torch.float32), torch.tensor(digits.target)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        train, test = order[: TRAIN_ROWS[data]], order[TRAIN_ROWS[data] :]
        images = (images[:, None] - 8) / 6
        return images[train], labels[train], images[test], labels[test]
    if folder is None:
        raise ValueError("Fashion-MNIST needs --fashion_mnist FOLDER")
    parts = []
    for part, rows in (("train", TRAIN_ROWS[data]), ("t10k", TEST_ROWS)):
        images = torch.tensor(read_idx(folder, f"{part}-images-idx3-ubyte")[:rows])[:, None].float() / 255
        parts.append((functional.avg_pool2d(functional.pad(images, [2] * 4), 2) - 0.29) / 0.33)  # 16 x 16
        parts.append(torch.tensor(read_idx(folder, f"{part}-labels-idx1-ubyte")[:rows]).long())
    return parts[0], parts[1], parts[2], parts[3]


def corrupt(labels: Tensor, share: float) -> Tensor:
    """The labels, of which this share is replaced by another class; the same ones for all seeds."""
    generator = torch.Generator().manual_seed(1)
    wrong = torch.rand(len(labels), generator=generator) < share
    return torch.where(wrong, (labels + torch.randint(1, CLASSES, labels.shape, generator=generator)) % CLASSES, labels)


class Warnings(logging.Handler):
    """Counts the package's warnings of a collapse."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "collapsed" in record.getMessage()


def train(run: Run, folder: Path | None) -> Run:
    """The run with its results beside its settings."""
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_warning()
    start = time.process_time()
    images, labels, test_images, test_labels = load(run["data"], folder)
    rows = [
        {"pixel_values": image, "labels": label}
        for image, label in zip(images, corrupt(labels, run["wrong_labels"]).tolist(), strict=True)
    ]
    torch.manual_seed(run["seed"])
    model = make_model(run["model"], images.shape[-1])
    options = OPTIMIZERS[run["optimizer"]] | {"max_steps": STEPS[run["model"]], "seed": run["seed"]}
    if run["guards"] != "trainer":
        options |= {"matching_weight": run["weight"], "matching_full_weight_rows": len(rows)} | GUARDS[run["guards"]]
    warnings, logger = Warnings(), logging.getLogger("itra_hf.trainer")
    logger.addHandler(warnings)
    with tempfile.TemporaryDirectory() as output_dir:
        quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
        options |= {"per_device_train_batch_size": BATCH, "logging_steps": 20} | quiet
        args = ITRAConfig(output_dir, dataloader_drop_last=True, log_level="error", **options)
        cls = Trainer if run["guards"] == "trainer" else ITRATrainer
        trainer = cls(model, args, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logger.removeHandler(warnings)
    features: list[Tensor] = []
    model.classifier.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    with torch.no_grad():
        outputs = model.eval()(test_images)
    accuracy = (outputs["logits"].argmax(1) == test_labels).float().mean().item()
    scatter = torch.cat(features).double().var(0, correction=0).sum().sqrt().item()
    measured = {"accuracy": accuracy, "scatter": scatter, "warned": warnings.count > 0}
    return run | measured | {"seconds": time.process_time() - start}


def all_runs(data: list[str], seeds: int) -> list[Run]:
    """Seed by seed; Trainer's runs, then the guarded ones, then the others."""
    runs = []
    for guards, weights in (("trainer", (0.0,)), ("on", WEIGHTS), ("off", WEIGHTS)):
        for settings in itertools.product(range(seeds), data, MODELS, OPTIMIZERS, WRONG_LABELS, weights):
            names = ("seed", "data", "model", "optimizer", "wrong_labels", "weight")
            runs.append(dict(zip(names, settings, strict=True)) | {"guards": guards})
    return runs


def key(run: Run, *dropped: str) -> tuple[Any, ...]:
    """What tells a run, or a cell of runs, from the others."""
    names = ("data", "model", "optimizer", "wrong_labels", "guards", "weight", "seed")
    return tuple(run[name] for name in names if name not in dropped)


def read_results(path: Path) -> list[Run]:
    """The finished runs; a last line that a stopped command broke off is cut away."""
    if not path.exists():
        return []
    *lines, rest = path.read_text(encoding="utf-8").split("\n")
    if rest:
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return [json.loads(line) for line in lines]


def finish(runs: list[Run], path: Path, folder: Path | None, workers: int) -> Iterator[Run]:
    """Train the runs in processes of their own; each is a line of the file as soon as it is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, multiprocessing.get_context("spawn").Pool(workers) as pool:
        for run in pool.imap_unordered(partial(train, folder=folder), runs):
            file.write(json.dumps(run) + "\n")
            file.flush()
            yield run


def judge(results: list[Run]) -> list[Run]:
    """The results with `collapsed` and `shortfall`, in points, beside Trainer's runs of the same cell."""
    plain: dict[Any, list[Run]] = {}
    for run in results:
        if run["guards"] == "trainer":
            plain.setdefault(key(run, "guards", "weight", "seed"), []).append(run)
    judged = []
    for run in results:
        beside = plain[key(run, "guards", "weight", "seed")]
        scatter = statistics.mean(other["scatter"] for other in beside)
        shortfall = 100 * (statistics.mean(other["accuracy"] for other in beside) - run["accuracy"])
        collapsed = run["warned"] or run["scatter"] < COLLAPSED * scatter
        judged.append(run | {"collapsed": collapsed, "shortfall": shortfall})
    return judged


def verdict(runs: list[Run]) -> str:
    """Cells of a table: runs, how many collapsed, how many fell short, and the worst and the mean shortfall."""
    if not runs:
        return "0 | | | |"
    shortfalls = [run["shortfall"] for run in runs]
    short = sum(shortfall > POINTS for shortfall in shortfalls)
    collapsed = sum(run["collapsed"] for run in runs)
    return f"{len(runs)} | {collapsed} | {short} | {max(shortfalls):.1f} | {statistics.mean(shortfalls):+.2f}"


def page(results: list[Run]) -> str:
    """The page of the documentation."""
    judged = judge(results)
    columns = "runs | collapsed | more than 2 points short | worst shortfall | mean shortfall"
    lines = ["## By weight", "", f"| guards | weight | {columns} |", "|---" * 7 + "|"]
    trainer = [run for run in judged if run["guards"] == "trainer"]
    lines.append(f"| Trainer | | {verdict(trainer)} |")
    for guards, weight in itertools.product(GUARDS, WEIGHTS):
        runs = [run for run in judged if (run["guards"], run["weight"]) == (guards, weight)]
        lines.append(f"| {guards} | {weight:g} | {verdict(runs)} |")
    lines += ["", "## By cell, all weights together", ""]
    lines += [f"| data | model | optimizer | wrong labels | guards | {columns} |", "|---" * 10 + "|"]
    for cell in itertools.product(DATA, MODELS, OPTIMIZERS, WRONG_LABELS):
        for guards in ("trainer", *GUARDS):
            runs = [run for run in judged if key(run, "weight", "seed") == (*cell, guards)]
            names = [*cell[:3], f"{cell[3]:.0%}", {"trainer": "Trainer"}.get(guards, guards)]
            lines.append(f"| {' | '.join(names)} | {verdict(runs)} |")
    return f"# Do the features collapse?\n\n{INTRODUCTION}\n{result(judged)}\n\n{SETTING}\n\n" + "\n".join(lines) + "\n"


def result(judged: list[Run]) -> str:
    """How many runs collapsed, in one sentence."""
    counts = {}
    for guards in GUARDS:
        runs = [run["collapsed"] for run in judged if run["guards"] == guards]
        counts[guards] = f"{sum(runs)} of {len(runs)}"
    return f"With the guards {counts['on']} runs collapsed, without them {counts['off']}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion_mnist", type=Path, help="the folder of its idx files")
    parser.add_argument("--results", type=Path, default=Path("outputs/collapse.jsonl"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args()
    runs = all_runs([*DATA] if args.fashion_mnist else ["digits"], args.seeds)
    results = read_results(args.results)
    done = {key(run) for run in results}
    todo = [run for run in runs if key(run) not in done]
    with tqdm(total=len(runs), initial=len(runs) - len(todo), smoothing=0) as progress:
        for run in finish(todo, args.results, args.fashion_mnist, args.workers):
            results.append(run)
            progress.update()
    PAGE.write_text(page(results), encoding="utf-8")
    print(page(results))


if __name__ == "__main__":
    main()
