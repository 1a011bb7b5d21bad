"""Small models and data for the tests of the trainer."""

import copy
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)

from itra_hf import ITRAConfig, ITRATrainer

NUM_LABELS = 3


def needs_transformers(version: str, reason: str) -> None:
    """Skip the test on an older transformers."""
    if Version(transformers.__version__) < Version(version):
        pytest.skip(f"below transformers {version}: {reason}")


def bert(dropout: float = 0.1, **config: Any) -> BertForSequenceClassification:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    options = {"intermediate_size": 32, "num_labels": NUM_LABELS} | config
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForSequenceClassification(BertConfig(**sizes, **dropouts, **options))


def gpt2(**config: Any) -> GPT2ForSequenceClassification:
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
    return GPT2ForSequenceClassification(GPT2Config(**sizes, num_labels=NUM_LABELS, **config))


def vit(**config: Any) -> ViTForImageClassification:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    image = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    return ViTForImageClassification(ViTConfig(**sizes, **image, num_labels=NUM_LABELS, **config))


def resnet() -> ResNetForImageClassification:
    sizes = {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    return ResNetForImageClassification(ResNetConfig(**sizes, num_labels=NUM_LABELS))


class Mlp(nn.Module):
    """A model outside transformers whose loss is the mean over its batch, which Trainer scales for accumulation."""

    def __init__(self, features: int = 6, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, features), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(features, NUM_LABELS)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.body(x))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class CountingMlp(Mlp):
    """The same, but its loss is the sum over its batch divided by the rows of the whole optimizer step."""

    def forward(self, x: Tensor, labels: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
        outputs = super().forward(x, labels)
        if "loss" in outputs and kwargs.get("num_items_in_batch") is not None:
            outputs["loss"] = outputs["loss"] * len(x) / kwargs["num_items_in_batch"]
        return outputs


def vectors(rows: int = 48, seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=generator)
    return [{"x": x[row], "labels": row % NUM_LABELS} for row in range(rows)]


def texts(rows: int = 48, tokens: int = 6) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 50, (rows, tokens), generator=generator)
    mask = torch.ones(tokens, dtype=torch.long)
    return [{"input_ids": ids[row], "attention_mask": mask, "labels": row % NUM_LABELS} for row in range(rows)]


class Stream(IterableDataset):
    """Rows without a length."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.rows


def images(rows: int = 48) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(rows, 1, 8, 8, generator=generator)
    return [{"pixel_values": pixels[row], "labels": row % NUM_LABELS} for row in range(rows)]


def guessed(model: nn.Module, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, all but six with the labels that the model would give them, so that the cap is open from the start."""
    with torch.no_grad():
        labels = copy.deepcopy(model).eval()(**default_data_collator(rows))["logits"].argmax(1).tolist()
    return rows[:6] + [row | {"labels": label} for row, label in zip(rows[6:], labels[6:], strict=True)]


def options(output_dir: Path | str, **changes: Any) -> dict[str, Any]:
    """Arguments of a short quiet run on the CPU."""
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "log_level": "error"}
    short = {"max_steps": 4, "logging_steps": 2, "per_device_train_batch_size": 8}
    return {"output_dir": str(output_dir)} | quiet | short | changes


def trainer(
    output_dir: Path | str,
    model: nn.Module,
    rows: Any,
    cls: type[Trainer] = ITRATrainer,
    keywords: dict[str, Any] | None = None,
    **changes: Any,
) -> Trainer:
    """A trainer over `rows`, with an `ITRAConfig` of these changes; `keywords` go to the trainer itself."""
    args = ITRAConfig(**options(output_dir, **changes))
    return cls(model, args, train_dataset=rows, eval_dataset=rows, **(keywords or {}))


def logs_of(trainer: Trainer, key: str) -> list[Any]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights(model: nn.Module) -> Tensor:
    """All parameters and buffers in one vector of float64."""
    return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])


def load_example(name: str) -> ModuleType:
    """A script of the folder `examples` as a module."""
    path = Path(__file__).parent.parent / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
