"""The matching of a training run: which loss it takes, and what happens in a step."""

from collections.abc import Callable
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from itra_hf.config import MatchingArguments
from itra_hf.distributed import BatchGatherer, RanksDisagreeError, gather_numbers, sum_over_ranks
from itra_hf.guards import CollapseWatch, capped_weight
from itra_hf.labels import LabelKind
from itra_hf.losses import LOSSES
from itra_hf.pairing import split_pair
from itra_hf.reader import FeatureReader

MatchingLoss = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]

LOGGED = ("task_loss", "matching_loss", "matching_weight")

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


def agree_on_kind(kind: LabelKind | None, device: torch.device) -> None:
    """Raise on every rank, `RanksDisagreeError`, where their first batches hold labels of different kinds."""
    kinds: tuple[LabelKind | None, ...] = (None, *get_args(LabelKind))
    found = [kinds[index] or "no labels" for [index] in gather_numbers([kinds.index(kind)], device)]
    if len(set(found)) > 1:
        listed = ", ".join(f"rank {rank}: {name}" for rank, name in enumerate(found))
        raise RanksDisagreeError(
            f"the ranks' first batches hold different labels ({listed}); give every row "
            "its label, or take matching='none'"
        )


class Matching:
    """What one training run matches with: the head's input, the loss, the guards, and what is to be logged.

    Args:
        args: the options.
        loss: the matching loss.
        features: reads the features of the model in training.
        model: the model, unwrapped.
        device: of the model.
    """

    def __init__(
        self,
        args: MatchingArguments,
        loss: MatchingLoss,
        features: FeatureReader,
        model: nn.Module,
        device: torch.device,
    ) -> None:
        self.args, self.loss, self.features, self.model, self.device = args, loss, features, model, device
        self._gatherer, self._watch = BatchGatherer(), CollapseWatch()
        self._warned = False
        self._sums = torch.zeros(4, device=device)

    def match(self, rows: Tensor, labels: Tensor | None) -> Tensor:
        """The matching loss of a batch, `[rows, d]`, or of the batches of all ranks."""
        self._watch.update(rows)
        batches = self._gatherer.gather(rows, labels) if self.args.gather_features else [(rows, labels)]
        source, target = _join([rows for rows, _ in batches])
        own, other = (None, None) if labels is None else _join([cast(Tensor, labels) for _, labels in batches])
        loss = self.loss(source, target, own, other)
        if loss.ndim != 0:
            raise ValueError(f"matching_loss must return a scalar tensor, but its shape is {tuple(loss.shape)}")
        return loss

    def is_capped(self, ramped: float) -> bool:
        """Whether the cap has to be looked at in a step of this weight."""
        return ramped > 0 and self.args.matching_max_grad_ratio is not None

    def weight(self, ramped: float, measure: Callable[[], Tensor], like: Tensor) -> Tensor:
        """The weight of a step after the cap, a scalar on the device of `like`.

        Args:
            ramped: the weight after the ramp.
            measure: gives `[4]`, what the cap goes by on this rank: the squared norms of the task's and the matching's
                feature gradient, and the excess odds; called only where a cap is kept.
            like: any tensor of the step.
        """
        if self.args.matching_max_grad_ratio is None or not self.is_capped(ramped):
            return like.new_tensor(ramped, dtype=torch.float32)
        squared_norms, excess = sum_over_ranks(measure()).split(2)
        return capped_weight(ramped, squared_norms, excess, self.args.matching_max_grad_ratio)

    def note(self, task_loss: Tensor, matching_loss: Tensor, weight: Tensor, share: float) -> None:
        """Add a micro-batch to what is to be logged; it is this share of an optimizer step."""
        entries = [task_loss.detach(), matching_loss.detach() * share, weight * share]
        self._sums += torch.stack([*entries, self._sums.new_tensor(share)])

    def means(self) -> dict[str, float]:
        """The means over optimizer steps and ranks since the last call, by the names they are logged under."""
        *sums, steps = sum_over_ranks(self._sums).tolist()
        self._sums.zero_()
        return {name: total / steps for name, total in zip(LOGGED, sums, strict=True)} if steps else {}

    def collapsed(self) -> bool:
        """Whether the features have just been seen to collapse, for the first time."""
        collapsed = not self._warned and self._watch.collapsed()
        self._warned = self._warned or collapsed
        return collapsed


def _join(batches: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The two mini-batches of several ranks' interleaved batches."""
    sources, targets = zip(*map(split_pair, batches), strict=True)
    return torch.cat(sources), torch.cat(targets)
