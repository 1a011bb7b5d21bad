"""The matching loss of a whole optimizer step, in the memory of one micro-batch (GradCache, Gao et al. 2021).

The loss of many rows needs the features of all of them at once, but not their graphs. So every micro-batch runs twice.
The first pass gives its features, without a graph below them. The one big loss gives the gradients at the features.
The second pass has a graph, and in its backward pass those gradients join the task's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from itra_hf.distributed import Batch
from itra_hf.features import FeatureReader, HeadNotFoundError, RandomState, Seen, kept_buffers
from itra_hf.step.forms import gradient_at
from itra_hf.step.matching import Matching
from itra_hf.step.meeting import Cap


class CachedStep:
    """One optimizer step that is matched as a whole; it begins and ends with the step.

    `asked` is the matching's weight after the ramp. The scale of a gradient scaler keeps half precision from underflow.
    """

    def __init__(self, matching: Matching, micro_batches: Sequence[Any], asked: float, scale: Tensor | float) -> None:
        self.matching, self.micro_batches, self._asked, self._scale = matching, list(micro_batches), asked, scale
        self.is_new, self.collects = True, False  # whether the first pass is still to come, or is running
        self.weight: Tensor | float | None = None  # known after the first pass, as the next two
        self._value = torch.zeros((), device=matching.device)
        self._gradients: list[Tensor] = []
        self._is_read = False  # whether the first pass came to its end
        self._number = 0  # of the micro-batch whose second pass is next
        self._random_states: list[RandomState] = []
        self._batches: list[list[Batch]] = []
        self._for_cap: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # what a micro-batch adds to its sums

    def first_pass(self, reader: FeatureReader, compute_loss: Callable[[Any], Any]) -> None:
        """The features of every micro-batch, the one big loss, its weight and its gradients at the features.

        `compute_loss` takes a micro-batch, and `take` is called within. The model's buffers are as before afterwards;
        the random state is for `restore`.
        """
        self.collects = True
        try:
            with kept_buffers(self.matching.model):
                for micro_batch in self.micro_batches:
                    self._random_states.append(RandomState.capture(self.matching.device))
                    with reader.cut():
                        compute_loss(micro_batch)
        finally:
            self.collects = False
            self.micro_batches.clear()
        if len(self._batches) == len(self._random_states) and all(self._batches):
            self._match()
        self._is_read = True

    def take(self, task_loss: Tensor, seen: Seen | None, factor: float) -> Tensor:
        """The task loss of a micro-batch in either pass; of the second, one that the cached gradient joins.

        The factor is what a gradient at the features is multiplied with, since Trainer divides it.
        """
        if self.collects and seen is None:
            self.matching.skip()
        elif self.collects and seen is not None:
            self._collect(task_loss / factor, seen)
        elif seen is not None and self.weight is not None:
            if seen.has_other_passes:
                raise HeadNotFoundError(
                    "the model was called without gradient, too, which matching_scope='optimizer_step' cannot tell "
                    "from the pass that counts (matching_scope='micro_batch' can)"
                )
            gradient = self._gradients[self._number - 1] * factor
            return self.matching.meet(task_loss, seen, gradient, self._value, Cap(self.weight))
        return task_loss

    def restore(self) -> None:
        """Put the random number generators where the first pass of the next micro-batch found them."""
        if not self._is_read:  # an exception that the user has caught: the rest of the step is the task's alone
            return
        if self._number == len(self._random_states):
            _refuse_second_loss()
        self._random_states[self._number].restore(self.matching.device)
        self._number += 1

    def _collect(self, task_loss: Tensor, seen: Seen) -> None:
        """Keep what a first pass, whose graph begins at the features, has shown."""
        if len(self._batches) == len(self._random_states):
            _refuse_second_loss()
        rows = seen.rows.detach()
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        own = self.matching.labels_for(seen)
        self._batches.append(self.matching.gather(wide, own))
        excess = self.matching.excess(self._asked, seen, own)
        if excess is not None:
            gradients = gradient_at(self._scale * task_loss, seen.tensors)
            square = torch.stack([gradient.to(wide.dtype).square().sum() for gradient in gradients]).sum()
            self._for_cap.append((square, *excess, _spread(seen)))

    def _match(self) -> None:
        """The one big loss of the step's rows, and its weight."""
        self._value, self._gradients = self.matching.matched(self._batches)
        self.weight = self._asked
        if self._for_cap:
            squares, above, missing, spreads = zip(*self._for_cap, strict=True)
            square = (torch.cat(spreads) * torch.cat(self._gradients).square().sum(1)).sum()
            cap = self.matching.cap(self._asked, (torch.stack(above).sum(), torch.stack(missing).sum()))
            self.weight = cap.weight(torch.stack(squares).sum().sqrt(), square.sqrt() * self._scale)
        self._batches, self._for_cap = [], []


def _spread(seen: Seen) -> Tensor:
    """How the squared norm of a row's gradient changes on the way to the full input: 1, or `1 / tokens` for a mean."""
    gradients = torch.autograd.grad(seen.rows.sum(), seen.leaves)
    return torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0) / seen.rows.shape[1]


def _refuse_second_loss() -> None:
    raise ValueError(
        "matching_scope='optimizer_step' takes one loss of each micro-batch, but training_step asks for more; "
        "take matching_scope='micro_batch'"
    )
