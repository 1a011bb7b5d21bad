"""How a micro-batch is matched."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from itra_hf.config import matching_arguments
from itra_hf.distributed import Batch, BatchGatherer, gather_numbers, is_distributed, rank
from itra_hf.features import HeadNotFoundError, Seen
from itra_hf.labels import LabelKind, label_kind, label_name, labels_in
from itra_hf.pairing import Couples
from itra_hf.step.forms import BatchLoss, agree_on_kind, choose_form, choose_matching_loss, of_own_loss
from itra_hf.step.guards import CollapseWatch, excess_odds
from itra_hf.step.meeting import Cap, Meeting
from itra_hf.step.tally import Tally


class Matching:
    """Matches the micro-batches of one run of an ITRATrainer, whose model is unwrapped, and adds up what is logged."""

    def __init__(self, trainer: Any, model: nn.Module) -> None:
        self.args, self.model, self.device = matching_arguments(trainer.args), model, trainer.args.device
        self.own_loss = None if trainer.matching_loss is None else of_own_loss(trainer.matching_loss)
        self.label_name = label_name(trainer.label_names)
        self.form: str | None = None  # known with the first batch that is matched, as what follows
        self.kind: LabelKind | None = None
        self.shape: tuple[int, ...] = ()  # of the features
        self.couples, self.tally, self.collapse = Couples(), Tally(self.device), CollapseWatch()
        self.meetings: list[tuple[Meeting, Tensor]] = []  # of this training step
        self._loss: BatchLoss | None = None
        self._labels_of_batch: Any = None
        self._gatherer = BatchGatherer(self.device)
        self._has_agreed = False  # with the other ranks, on a batch before the matching has begun

    @property
    def has_begun(self) -> bool:
        """Whether a batch was matched."""
        return self._loss is not None

    def begin(self, labels: Tensor | None, width: int | None, has_features: bool = True) -> None:
        """Choose the loss by the labels of the run's first batch; later calls do nothing.

        The width is that of a row's logits, where it is known.

        Raises:
            HeadNotFoundError: if `"auto"` finds no labels that it could match.
            RanksDisagreeError: on every rank, if their batches differ in kind.
            ValueError: if the form that was asked for does not fit the labels.
        """
        if self.has_begun:
            return
        kind = None if labels is None else label_kind(labels, self.model, width)
        agree_on_kind(kind, has_features, self.device)
        self._has_agreed = True
        loss = self.own_loss or choose_matching_loss(self.args, kind)
        if loss is None:
            way_out = "give every row its label, or take matching='marginal'"
            if not has_features:
                way_out = "matching='marginal' needs none, but a module that is named by feature_layer"
            raise HeadNotFoundError(f"the batch holds no label for each row; {way_out}")
        if has_features:
            self._loss, self.form, self.kind = loss, choose_form(self.args, kind), kind
            self.couples.by_class = kind == "classes" and self.own_loss is None and self.form != "marginal"

    def match(self, task_loss: Tensor, seen: Seen, divisor: int, asked: float) -> Tensor:
        """The task loss of a micro-batch, in whose backward pass the matching's gradient joins the task's.

        Args:
            task_loss: scalar.
            seen: of its forward pass.
            divisor: what the matching loss is divided by, as Trainer will not.
            asked: the matching's weight after the ramp.
        """
        labels = self.labels_for(seen)
        batches = self.gather(seen.rows.detach(), labels)
        if not batches:
            return task_loss
        value, [gradient] = self.matched([batches])
        gradient = gradient / divisor if divisor > 1 else gradient
        return self.meet(task_loss, seen, gradient, value, self.cap(asked, self.excess(asked, seen, labels)))

    def meet(self, task_loss: Tensor, seen: Seen, gradient: Tensor, value: Tensor, cap: Cap) -> Tensor:
        """The task loss, in whose backward pass this gradient at the rows joins the task's at the features' tensors."""
        gradients = torch.autograd.grad(seen.rows, seen.leaves, gradient.to(seen.rows.dtype))
        meeting = Meeting(seen.tensors, gradients, cap)
        self.meetings.append((meeting, value))
        return meeting.term(task_loss)

    def gather(self, rows: Tensor | None, labels: Tensor | None) -> list[Batch]:
        """The rows `[rows, d]` and labels that are matched, rank by rank; none where a rank has nothing to match."""
        self.shape = self.shape if rows is None else tuple(rows.shape)
        if self.args.gather_features or not is_distributed():
            return self._gatherer.gather(rows, labels)
        everywhere = all(has_rows for [has_rows] in gather_numbers([int(rows is not None)], self.device))
        return [(rows, labels)] if rows is not None and everywhere else []

    def matched(self, micro_batches: Sequence[list[Batch]]) -> tuple[Tensor, list[Tensor]]:
        """The matching loss of gathered micro-batches, as of one batch, and its gradients at this rank's rows of each.

        The rows are matched in the order in which one process would see them. On several ranks the gradient is
        multiplied by their number, which the mean over ranks that DDP and FSDP take undoes.
        """
        batches, ranks = [batch for each in micro_batches for batch in each], len(micro_batches[0])
        known = [labels for _, labels in batches if labels is not None]
        rows = _joined([rows for rows, _ in batches])
        labels = _joined(known) if len(known) == len(batches) else None
        value, gradient, spread = cast(BatchLoss, self._loss)(rows, labels)
        if labels is not None and self.kind == "classes":
            self.couples.look_at(labels)
        self.tally.rows = len(gradient)
        gradients = (gradient * ranks if ranks > 1 else gradient).split([len(part) for part, _ in batches])
        self.collapse.update(spread, len(gradient))
        return value, list(gradients[rank() % ranks :: ranks])

    def skip(self) -> None:
        """Pass over a batch in which there is nothing to match; the other ranks pass over theirs."""
        if self.has_begun:
            self.gather(None, None)
        elif not self._has_agreed:
            agree_on_kind(None, False, self.device)
        self._has_agreed = False

    def cap(self, asked: float, excess: tuple[Tensor, Tensor] | None) -> Cap:
        """What decides on the weight, given the excess odds where the cap has to be looked at."""
        return Cap(asked, excess, self.args.matching_max_grad_ratio or 1.0)

    def excess(self, asked: float, seen: Seen, labels: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The excess odds, where the cap has to be looked at in a step of this weight."""
        is_capped = asked > 0 and self.args.matching_max_grad_ratio is not None
        return excess_odds(seen.logits, labels) if is_capped else None

    def note_labels(self, inputs: Any) -> None:
        """Note the labels that a batch holds, before a `compute_loss` may take them out."""
        self._labels_of_batch = labels_in(inputs, self.label_name)

    def labels_for(self, seen: Seen) -> Tensor | None:
        """The labels of the features' rows as the loss takes them; the first ones choose the loss."""
        labels, logits = self.labels_of(seen.inputs, len(seen.rows)), seen.logits
        self.begin(labels, None if logits is None or logits.ndim != 2 else logits.shape[-1])
        is_column = labels is not None and labels.ndim > 1 and labels.shape[1:].numel() == 1
        return labels.flatten() if labels is not None and is_column and self.kind == "classes" else labels

    def labels_of(self, inputs: Any, rows: int | None = None) -> Tensor | None:
        """The labels of so many rows: those that the model got, else those of the batch; None without any.

        Raises:
            HeadNotFoundError: if there are labels, but not one for each row.
        """
        labels = labels_in(inputs, self.label_name)
        labels = self._labels_of_batch if labels is None else labels
        if not isinstance(labels, Tensor) or labels.ndim == 0:
            return None
        if rows not in (None, len(labels)):
            if self.args.matching == "marginal" and self.own_loss is None:
                return None
            raise HeadNotFoundError(
                f"the model got {rows} rows where the batch holds {len(labels)} labels, so the label of a row is not "
                "known (hand them to the model, too, if it takes any)"
            )
        return labels

    def finish(self, task_loss: Tensor, share: float, asked: float) -> Tensor:
        """The task's and the weighted matching loss after the backward pass, for a share of an optimizer step."""
        loss = task_loss
        self.tally.add(share)
        for meeting, value in self.meetings:
            weight = meeting.weight
            self.tally.reached = self.tally.reached or meeting.has_met
            if isinstance(weight, Tensor):
                loss = torch.addcmul(loss, weight, value, value=share)
            else:
                loss = torch.add(loss, value, alpha=weight * share)
            self.tally.note(task_loss, value, weight, share, asked)
        self.meetings.clear()
        return loss


def _joined(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    kinds = {f"{part.dtype} of shape {tuple(part.shape)[1:]}" for part in parts}
    if len(kinds) > 1:
        raise HeadNotFoundError(
            f"the micro-batches of a step hold features or labels of several kinds ({', '.join(sorted(kinds))} for a "
            "row); let the collator give one kind, or take matching_scope='micro_batch'"
        )
    return torch.cat(list(parts))
