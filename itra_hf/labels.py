"""What the labels of a batch are: classes, vectors or targets; and under which name it holds them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

LabelKind = Literal["classes", "vectors", "targets", "tokens"]


def label_kind(labels: Tensor, model: nn.Module, width: int | None = None) -> LabelKind:
    """How a model of transformers reads its labels: the rule by which it chooses its loss.

    Args:
        labels: the labels of a batch, `[rows]` or `[rows, num_labels]`.
        model: the model; its config's `problem_type` and `num_labels` decide first, where it has one.
        width: of the logits of a row, where it is known.

    Returns:
        `"targets"` for regression and one decimal number a row, `"classes"` for one integer a row, `"vectors"` for
        multi-label and soft labels, also of as many integers as there are logits, `"tokens"` for integers by the token.
    """
    config = getattr(model, "config", None)
    if getattr(config, "problem_type", None) == "regression" or getattr(config, "num_labels", None) == 1:
        return "targets"
    if getattr(config, "problem_type", None) == "multi_label_classification":
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
