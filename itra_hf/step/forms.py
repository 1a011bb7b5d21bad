"""Which matching loss a run takes: the form that was asked for, or the one that fits the labels."""

from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor

from itra_hf.config import MatchingArguments
from itra_hf.distributed import RanksDisagreeError, gather_numbers
from itra_hf.labels import LabelKind
from itra_hf.losses import LOSSES

MatchingLoss = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]

AUTO: dict[str | None, str] = {"classes": "class_conditional", "vectors": "joint", "targets": "joint"}


def choose_form(args: MatchingArguments, kind: LabelKind | None) -> str | None:
    """The form that `matching` names; for `"auto"` the one that fits labels of a kind, None where none does."""
    return AUTO.get(kind) if args.matching == "auto" else args.matching


def choose_matching_loss(args: MatchingArguments, kind: LabelKind | None) -> MatchingLoss | None:
    """The matching loss for labels of a kind, with the kernel's options filled in.

    Args:
        args: the options; `matching` names the form.
        kind: what the labels are; None where a batch holds none.

    Returns:
        The loss, or None where `"auto"` finds no labels of whole rows.

    Raises:
        ValueError: where the form that was asked for does not fit the labels.
    """
    form = choose_form(args, kind)
    if form is None:
        return None
    if kind is None and form != "marginal":
        raise ValueError(
            f"matching={form!r} needs labels, and the batch holds none under the model's label name; "
            "add a label column, or take matching='marginal'"
        )
    if kind == "tokens" and form != "marginal":
        raise ValueError(
            f"matching={form!r} needs one label per row, but the labels are one per token; take matching='marginal' "
            "with feature_layer=-1, which matches one row for each text"
        )
    if form == "class_conditional" and kind != "classes":
        raise ValueError(
            f"matching='class_conditional' needs one integer class per row, but the labels are {kind}; "
            "take matching='joint' or 'marginal'"
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

    def loss(source: Tensor, target: Tensor, source_labels: Tensor | None, target_labels: Tensor | None) -> Tensor:
        source_labels, target_labels = (_same_kind(labels, form, kind) for labels in (source_labels, target_labels))
        if form == "class_conditional":  # rows without a class, which the task's loss ignores, have no partner
            source_labels = source_labels.where(source_labels >= 0, -1)
            target_labels = target_labels.where(target_labels >= 0, -2)
        return LOSSES[form](source, target, source_labels, target_labels, **options)

    return loss


def _same_kind(labels: Tensor | None, form: str, kind: LabelKind | None) -> Tensor:
    """The labels of a batch, which are of the kind that the first batch held."""
    if labels is None:
        raise ValueError(
            f"matching={form!r} needs labels, and a batch holds none where the first one did; give every row its "
            "label, or take matching='marginal'"
        )
    is_class = labels.ndim == 1 and not labels.is_floating_point()
    if (kind == "classes" and not is_class) or (kind == "vectors" and labels.ndim != 2):
        raise ValueError(
            f"matching={form!r} began with labels that are {kind}, and a batch holds {labels.dtype} of shape "
            f"{tuple(labels.shape)}; let the collator give one kind, or take matching='marginal'"
        )
    return labels


def agree_on_kind(kind: LabelKind | None, has_features: bool, device: torch.device) -> None:
    """Raise on every rank, `RanksDisagreeError`, where their first batches hold labels or features of other kinds."""
    kinds: tuple[LabelKind | None, ...] = (None, *get_args(LabelKind))
    gathered = gather_numbers([kinds.index(kind), int(has_features)], device)
    found = [f"{kinds[index] or 'no labels'}{'' if features else ', no features'}" for index, features in gathered]
    if len(set(found)) > 1:
        listed = ", ".join(f"rank {rank}: {name}" for rank, name in enumerate(found))
        raise RanksDisagreeError(
            f"the ranks' first batches hold different labels ({listed}); give every row "
            "its label, or take matching='none'"
        )
