"""What the labels of a batch are: classes, vectors or targets; and under which name it holds them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

LabelKind = Literal["classes", "vectors", "targets", "tokens"]


def label_kind(labels: Tensor, model: nn.Module, width: int | None = None) -> LabelKind:
    """How a model of transformers reads the labels of a batch: the rule by which it chooses its loss.

    Its config's `problem_type` and `num_labels` decide first. Then one decimal number a row is `"targets"`, one integer
    `"classes"`, several decimals `"vectors"`, as many integers as the width of a row's logits, too; others `"tokens"`.
    """
    config = getattr(model, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem == "regression" or getattr(config, "num_labels", None) == 1:
        return "targets"
    if problem == "multi_label_classification":
        return "vectors"
    entries = labels.shape[1:].numel()
    if labels.is_floating_point() and labels.ndim <= 2:
        return "vectors" if entries > 1 else "targets"
    if entries == 1:
        return "classes"
    return "vectors" if labels.ndim == 2 and entries == width else "tokens"


def label_name(names: Sequence[str] | None) -> str:
    """Which of Trainer's `label_names` a batch's labels have: `"labels"` where it is one or there are none."""
    return "labels" if not names or "labels" in names else names[0]


def labels_in(batch: Any, name: str) -> Any:
    """The labels of a batch under that name, or under the one that collators give them; None without any."""
    if not isinstance(batch, Mapping):
        return None
    return batch["labels"] if batch.get(name) is None and "labels" in batch else batch.get(name)
