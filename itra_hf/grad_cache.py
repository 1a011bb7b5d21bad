"""The matching loss of a whole optimizer step, in the memory of one micro-batch (GradCache, Gao et al. 2021).

The loss of many rows needs the features of all of them at once, but not their graphs. So every micro-batch runs twice:
once without a graph for its features, and, when the one big loss has given the gradients at them, once more with a
graph, into which those gradients are fed.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itra_hf.features import logits_of
from itra_hf.gradients import task_squared_norm
from itra_hf.guards import excess_odds
from itra_hf.matching import Matching

ForwardPass = Callable[[Any], tuple[Tensor, Any, Tensor, Tensor | None]]


@dataclass
class CachedStep:
    """What the first pass over an optimizer step leaves for the second.

    Attributes:
        matching_loss: of all rows of the step, a scalar.
        weight: what it was multiplied by, a scalar.
        gradients: of the weighted matching loss at the features, a tensor `[rows, d]` for each micro-batch.
        random_states: as each micro-batch found the random number generators.
    """

    matching_loss: Tensor
    weight: Tensor
    gradients: list[Tensor]
    random_states: list["RandomState"]

    def surrogate(self, index: int, rows: Tensor) -> Tensor:
        """A scalar of value 0 whose gradient at the rows of a micro-batch is the cached one."""
        product = (rows.to(self.gradients[index].dtype) * self.gradients[index]).sum()
        return product - product.detach()


@dataclass
class RandomState:
    """The state of every random number generator that a forward pass may draw from."""

    python: Any
    numpy: Any
    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def capture(cls, device: torch.device) -> "RandomState":
        """The present state."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self, device: torch.device) -> None:
        """Make it the present state again."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


def cache_gradients(
    matching: Matching,
    micro_batches: Sequence[Any],
    forward: ForwardPass,
    ramped: float,
    scale: Tensor | float,
) -> CachedStep:
    """The first pass: the features of every micro-batch, the one big loss, and its gradients at the features.

    Args:
        matching: the run's matching.
        micro_batches: those of the optimizer step.
        forward: takes a micro-batch and gives its task loss as it enters the backward pass, the model's outputs,
            its rows `[rows, d]` and its labels.
        ramped: the matching's weight after the ramp.
        scale: the gradient scaler's.

    The model's buffers are as before afterwards; the random state is for the second pass to restore.
    """
    model, device = matching.model, matching.device
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    features: list[Tensor] = []
    all_labels: list[Tensor] = []
    random_states: list[RandomState] = []
    task_norm, excess, spreads = torch.zeros((), device=device), torch.zeros(2, device=device), []
    for micro_batch in micro_batches:
        random_states.append(RandomState.capture(device))
        with matching.features.cut():
            task_loss, outputs, rows, labels = forward(micro_batch)
            if matching.is_capped(ramped):
                task_norm += task_squared_norm(task_loss, matching.features, rows, outputs, labels, model, scale)
                excess += excess_odds(logits_of(outputs), labels)
                spreads.append(_spread(rows, matching.features.inputs))
        features.append(rows.detach())
        if labels is not None:
            all_labels.append(labels)
    for buffer, before in buffers:
        buffer.copy_(before)

    rows = torch.cat(features)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32)).requires_grad_()
    labelled = len(all_labels) == len(features)
    matching_loss = matching.match(rows, torch.cat(all_labels) if labelled else None)
    gradient = _gradient(matching_loss, rows)

    def measure() -> Tensor:
        matching_norm = (torch.cat(spreads) * gradient.square().sum(1)).sum() * scale**2
        return torch.stack([task_norm, matching_norm, *excess])

    weight = matching.weight(ramped, measure, rows)
    gradients = list((weight * gradient).split([len(part) for part in features]))
    return CachedStep(matching_loss.detach(), weight, gradients, random_states)


def _spread(rows: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """How the squared norm of a row's gradient changes on the way to the full input: 1, or `1 / tokens` for a mean."""
    gradients = torch.autograd.grad(rows.sum(), list(inputs), retain_graph=True)
    return torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0) / rows.shape[1]


def _gradient(loss: Tensor, rows: Tensor) -> Tensor:
    """The gradient at the rows, zero where the loss does not depend on them."""
    if not loss.requires_grad:
        return torch.zeros_like(rows)
    (gradient,) = torch.autograd.grad(loss, rows, allow_unused=True)
    return torch.zeros_like(rows) if gradient is None else gradient
