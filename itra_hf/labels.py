"""What the labels of a task are: classes, vectors or targets; and the class of every training row."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch import Tensor, nn

LABEL_COLUMNS = ("labels", "label", "label_ids")

LabelKind = Literal["classes", "vectors", "targets", "tokens"]


def label_kind(labels: Tensor, model: nn.Module) -> LabelKind:
    """How a model of transformers reads its labels: the rule by which it chooses its loss.

    Args:
        labels: the labels of a batch, `[rows]` or `[rows, num_labels]`.
        model: the model; its config's `problem_type` and `num_labels` decide first, where it has one.

    Returns:
        `"targets"` for regression and one decimal number a row, `"classes"` for one integer a row, `"vectors"` for
        multi-label and soft labels, `"tokens"` for integers by the token.
    """
    config = getattr(model, "config", None)
    if getattr(config, "problem_type", None) == "regression" or getattr(config, "num_labels", None) == 1:
        return "targets"
    if getattr(config, "problem_type", None) == "multi_label_classification":
        return "vectors"
    if labels.is_floating_point():
        return "vectors" if labels.ndim > 1 and labels.shape[1] > 1 else "targets"
    return "classes" if labels.ndim == 1 else "tokens"


def label_name(names: Sequence[str] | None) -> str:
    """Which of Trainer's `label_names` a batch's labels have: `"labels"` where it is one or there are none."""
    return "labels" if not names or "labels" in names else names[0]


def label_column(dataset: Any) -> np.ndarray | None:
    """The labels of all rows of a `datasets.Dataset` or a list of examples.

    None where they cannot be read at once, or where rows have unequal numbers of them.
    """
    if isinstance(dataset, datasets.Dataset):
        names: Any = dataset.column_names
    elif isinstance(dataset, list) and dataset and isinstance(dataset[0], Mapping):
        names = dataset[0]
    else:
        return None
    name = next((name for name in LABEL_COLUMNS if name in names), None)
    if name is None:
        return None
    if isinstance(dataset, datasets.Dataset):
        labels = dataset.with_format(None)[name][:]
    else:
        labels = [row.get(name) for row in dataset]
    try:
        return np.asarray(labels)
    except ValueError:
        return None


def class_column(dataset: Any, model: nn.Module) -> Tensor | None:
    """The class of every row, `[n]` integers; None where rows have no class or it cannot be read at once."""
    values = label_column(dataset)
    if values is None or values.ndim != 1 or values.dtype.kind not in "iub":
        return None
    labels = torch.as_tensor(values)
    return labels if label_kind(labels, model) == "classes" else None
