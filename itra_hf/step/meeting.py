"""Where the task's and the matching's gradient meet: at the features, in the backward pass.

The matching's gradient m at the features is known after the forward pass. The task's gradient g arrives there in the
backward pass. A hook on the tensor that the features are made of is given g and passes on

    g + weight * factor * m,    weight = min(asked, ratio * opening * |g| / (factor * |m|))

The factor is what the loss is multiplied with on its way (gradient scaler, accumulation). `term` is the loss, with that
tensor as a further input. Its backward pass notes the factor and gives the tensor no gradient. Autograd runs it before
the hook, because it consumes the tensor. So the cap is exact in the same step for any task loss, in eager and in
compiled models.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from itra_hf.distributed import is_distributed, sum_over_ranks
from itra_hf.step.guards import capped_weight


class Cap:
    """The weight of a step: what is asked, or less where the matching's gradient would outgrow its share.

    The excess and the largest ratio are as of `guards.capped_weight`; without excess no cap is kept.
    """

    def __init__(
        self, asked: float | Tensor, excess: tuple[Tensor, Tensor] | None = None, max_ratio: float = 1.0
    ) -> None:
        self.asked, self.excess, self.max_ratio = asked, excess, max_ratio

    def at(self, task: Tensor, matching: Tensor, factor: Tensor) -> Tensor | float:
        """The weight where the task's gradient meets the matching's, which is still to be multiplied by a factor."""
        return self.asked if self.excess is None else self.weight(_norm(task), _norm(matching) * factor)

    def weight(self, task_norm: Tensor, matching_norm: Tensor) -> Tensor | float:
        """The weight for the norms of both gradients on this rank; the same on all ranks."""
        if self.excess is None:
            return self.asked
        norms, excess = (task_norm, matching_norm), self.excess
        if is_distributed():
            *squares, above, missing = sum_over_ranks(torch.stack([*(norm.square() for norm in norms), *excess]))
            norms, excess = (squares[0].sqrt(), squares[1].sqrt()), (above, missing)
        return capped_weight(float(self.asked), norms, excess, self.max_ratio)


class Meeting:
    """Adds the matching's gradient to the task's, in the backward pass of one micro-batch.

    There is one gradient for each tensor of the task's graph. Of several tensors, as two heads have them, each is
    capped by itself: the gradient at one of them passes before that at the other is known.
    """

    def __init__(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor], cap: Cap) -> None:
        self._factor: Tensor | None = None
        self._cap, self._tensors = cap, [tensor for tensor in tensors if tensor.requires_grad]
        self._weights: dict[int, Tensor | float] = {}
        for number, (tensor, gradient) in enumerate(zip(tensors, gradients, strict=True)):
            if tensor.requires_grad:
                tensor.register_hook(lambda task, number=number, gradient=gradient: self._meet(task, gradient, number))

    def term(self, loss: Tensor) -> Tensor:
        """The task loss, whose backward pass tells its factor; where the features are frozen it stays as it is."""
        if not self._tensors:
            return loss
        tensors, self._tensors = self._tensors, []
        term: Tensor = _Term.apply(self, loss, *tensors)
        return term

    @property
    def weight(self) -> Tensor | float:
        """The weight that was applied, after the backward pass; 0 where it did not reach the features."""
        weights = list(self._weights.values())
        return sum(weights[1:], weights[0]) / len(weights) if len(weights) > 1 else [*weights, 0.0][0]

    @property
    def has_met(self) -> bool:
        """Whether the backward pass has reached the features."""
        return bool(self._weights)

    def _meet(self, task: Tensor | None, gradient: Tensor, number: int) -> Tensor | None:
        if self._factor is None or task is None:  # a backward pass of the user's own, or past the features
            return task
        with torch.no_grad():
            weight = self._cap.at(task, gradient, self._factor)
            self._weights[number] = weight
        return torch.addcmul(task, gradient, weight * self._factor).to(task.dtype)  # with create_graph it has a graph


class _Term(torch.autograd.Function):
    """The loss, as if it were made of the features, too; backward it notes its factor and gives them no gradient."""

    @staticmethod
    def forward(ctx: Any, meeting: Meeting, loss: Tensor, *tensors: Tensor) -> Tensor:
        ctx.meeting, ctx.tensors = meeting, len(tensors)
        return loss.clone()  # no view, because a user may change it in place

    @staticmethod
    def backward(ctx: Any, *factors: Tensor) -> Any:
        (factor,) = factors
        ctx.meeting._factor = factor.detach().to(torch.promote_types(factor.dtype, torch.float32))
        return (None, factor, *[None] * ctx.tensors)


def _norm(gradient: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
    return norm
