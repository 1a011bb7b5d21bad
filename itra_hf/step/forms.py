"""Which matching loss a run takes: the form that was asked for, or the one that fits the labels.

A batch holds its two mini-batches interleaved. A form that compares within classes deals the rows of each class out in
turn; any other takes its even rows for one side and its odd rows for the other.
"""

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor

from itra_hf.config import MatchingArguments
from itra_hf.distributed import RanksDisagreeError, gather_numbers
from itra_hf.features import HeadNotFoundError
from itra_hf.labels import LabelKind
from itra_hf.losses import NO_CLASS, Form, Matched, mmd
from itra_hf.pairing import split_pair

MatchingLoss = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
BatchLoss = Callable[[Tensor, Tensor | None], Matched]  # of an interleaved batch and its labels

LABEL_KERNELS = {"classes": "delta", "vectors": "linear", "targets": "gaussian"}
AUTO: dict[str | None, str] = {"classes": "class_conditional", "vectors": "joint", "targets": "joint"}


def choose_form(args: MatchingArguments, kind: LabelKind | None) -> str | None:
    """The form that `matching` names; for `"auto"` the one that fits labels of a kind, None where none does."""
    return AUTO.get(kind) if args.matching == "auto" else args.matching


def choose_matching_loss(args: MatchingArguments, kind: LabelKind | None) -> BatchLoss | None:
    """The matching loss for labels of a kind, None of a batch without; None where `"auto"` finds no labels of rows.

    Raises:
        ValueError: where the form that was asked for does not fit the labels. The loss raises `HeadNotFoundError` where
            those of a later batch are of another kind.
    """
    name = choose_form(args, kind)
    if name is None:
        return None
    if name != "marginal":
        _check_kind(name, kind)
    label_kernel = None if name == "marginal" else LABEL_KERNELS[str(kind)]
    form = Form(label_kernel, name == "class_conditional", args.bandwidth, args.num_bandwidths)

    signs: dict[int, Tensor] = {}  # by the number of rows: made once, since making one takes launches on a GPU

    def loss(rows: Tensor, labels: Tensor | None) -> Matched:
        of_kind = None if label_kernel is None else _same_kind(labels, name, kind)
        if label_kernel == "delta":
            return mmd(rows, None, of_kind, form)
        if len(rows) not in signs:
            signs[len(rows)] = torch.ones(len(rows), device=rows.device)
            signs[len(rows)][1::2] = -1
        return mmd(rows, signs[len(rows)], None if of_kind is None else _without_gaps(of_kind, kind), form)

    return loss


def _check_kind(form: str, kind: LabelKind | None) -> None:
    """Refuse a form that compares labels where the batch holds none that serve."""
    if kind is None:
        raise ValueError(
            f"matching={form!r} needs labels, and the batch holds none under the model's label name; "
            "add a label column, or take matching='marginal'"
        )
    if kind == "tokens":
        raise ValueError(
            f"matching={form!r} needs one label per row, but the labels are one per token; name a module "
            "by feature_layer, and take matching='marginal', which matches one row for each text"
        )
    if form == "class_conditional" and kind != "classes":
        raise ValueError(
            f"matching='class_conditional' needs one integer class per row, but the labels are {kind}; "
            "take matching='joint' or 'marginal'"
        )


def of_own_loss(loss: MatchingLoss) -> BatchLoss:
    """The user's loss of two mini-batches, as one of a whole batch."""

    def matched(rows: Tensor, labels: Tensor | None) -> Matched:
        leaf = rows.detach()
        leaf = (leaf.float() if leaf.dtype == torch.float16 else leaf).requires_grad_()  # half loses small gradients
        with torch.enable_grad():
            given = leaf.clone()  # a loss may edit it in place
            value = loss(*split_pair(given), *((None, None) if labels is None else split_pair(labels)))
        if not isinstance(value, Tensor) or value.ndim != 0:
            what = f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"matching_loss must return a scalar tensor, but it returned {what}")
        (gradient,) = gradient_at(value, [leaf])
        wide = rows.detach().float()
        return Matched(value.detach(), gradient, torch.linalg.vector_norm(wide - wide.mean(0)))

    return matched


def gradient_at(loss: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients at some tensors, zero where the loss does not depend on them."""
    if not loss.requires_grad:
        return tuple(torch.zeros_like(tensor) for tensor in tensors)
    return torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)


def _same_kind(labels: Tensor | None, form: str, kind: LabelKind | None) -> Tensor:
    """The labels of a batch, which are of the kind that the first batch held."""
    if labels is None:
        raise HeadNotFoundError(
            f"matching={form!r} needs labels, and a batch holds none where the first one did; give every row its "
            "label, or take matching='marginal'"
        )
    is_class = labels.ndim == 1 and not labels.is_floating_point()
    if (kind == "classes" and not is_class) or (kind == "vectors" and labels.ndim != 2):
        raise HeadNotFoundError(
            f"matching={form!r} began with labels that are {kind}, and a batch holds {labels.dtype} of shape "
            f"{tuple(labels.shape)}; let the collator give one kind, or take matching='marginal'"
        )
    return labels


def _without_gaps(labels: Tensor, kind: LabelKind | None) -> Tensor:
    """Labels whose missing entries (NaN, infinite, -100 in a vector) are 0 in a vector, else the mean of the others."""
    known = labels.isfinite()
    if kind == "vectors":
        return labels.masked_fill(~known | (labels == NO_CLASS), 0)
    mean = labels.float().masked_fill(~known, 0).sum() / known.sum().clamp(min=1)
    return labels.where(known, mean.to(labels.dtype))


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
