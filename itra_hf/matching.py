"""Which matching loss a run takes, and what is checked before it starts."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from itra_hf.config import MatchingArguments
from itra_hf.labels import LABEL_COLUMNS, LabelKind, label_column, label_kind
from itra_hf.losses import LOSSES

if TYPE_CHECKING:
    from itra_hf.trainer import ITRATrainer

MatchingLoss = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]

AUTO = {"classes": "class_conditional", "vectors": "joint", "targets": "joint"}


def choose_matching_loss(args: MatchingArguments, kind: LabelKind | None) -> MatchingLoss | None:
    """The matching loss for labels of a kind, with the kernel's options filled in.

    Args:
        args: the options; `matching` names the form.
        kind: what the labels are; None where a batch holds none.

    Returns:
        The loss, or None where `"auto"` finds no labels.

    Raises:
        ValueError: where the form that was asked for does not fit the labels.
    """
    form: str = args.matching
    if form == "auto":
        if kind is None:
            return None
        form = AUTO[kind]
    if kind is None and form != "marginal":
        raise ValueError(
            f"matching={form!r} needs labels, and the batch holds none under the model's label name; "
            "add a label column, or take matching='marginal'"
        )
    if form == "class_conditional" and kind != "classes":
        raise ValueError(
            "matching='class_conditional' needs one integer class per row, but the labels are "
            f"{'regression targets' if kind == 'targets' else 'vectors'}; take matching='joint' or 'marginal'"
        )
    options: dict[str, Any] = {
        "bandwidth": args.bandwidth,
        "num_bandwidths": args.num_bandwidths,
        "unbiased": args.unbiased,
    }
    if form == "marginal":
        return lambda source, target, source_labels, target_labels: LOSSES[form](source, target, **options)
    if form == "joint":
        options["label_kernel"] = {"classes": "delta", "vectors": "linear", "targets": "gaussian"}[str(kind)]
    return partial(LOSSES[form], **options)


def check_setup(trainer: "ITRATrainer", args: MatchingArguments, model: nn.Module) -> None:
    """Refuse, before anything runs, what no matching can be done with.

    Raises:
        ValueError: with the value and the way out.
    """
    if trainer.args.n_gpu > 1:
        raise ValueError(
            f"ITRA cannot match features under nn.DataParallel ({trainer.args.n_gpu} devices in one process); start "
            "the script with `accelerate launch`, or make one device visible"
        )
    if trainer.args.per_device_train_batch_size < 2:
        raise ValueError(
            f"per_device_train_batch_size={trainer.args.per_device_train_batch_size} leaves no pair to match; "
            "take at least 2, or matching='none'"
        )
    if trainer.args.train_sampling_strategy == "batch_rebalance" and args.pairing == "class":
        raise ValueError(
            "train_sampling_strategy='batch_rebalance' makes its own batches, which pairing='class' cannot keep; "
            "take pairing='random' or another strategy"
        )
    if trainer.matching_loss is None and args.matching in ("class_conditional", "joint"):
        _check_labels(trainer, args, model)


def _check_labels(trainer: "ITRATrainer", args: MatchingArguments, model: nn.Module) -> None:
    """Refuse a form that the training set's labels, as far as they can be read at once, do not serve."""
    columns = getattr(trainer.train_dataset, "column_names", None)
    if columns and not {*LABEL_COLUMNS, *trainer.label_names} & set(columns):
        raise ValueError(
            f"matching={args.matching!r} needs labels, but the training set has only the columns {columns}; "
            "name one 'labels', or take matching='marginal'"
        )
    values = label_column(trainer.train_dataset)
    if values is not None and values.dtype.kind in "iufb":
        choose_matching_loss(args, label_kind(torch.as_tensor(values[:1]), model))
