"""The gradients that the cap compares: what the task and what the matching ask of the features."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from itra_hf.features import HeadInput, logits_of
from itra_hf.guards import excess_odds
from itra_hf.reader import FeatureReader


class TaskGradientError(RuntimeError):
    """The task's gradient at the features is out of reach, so the cap cannot be kept."""


def squared_norm(loss: Tensor, at: Sequence[Tensor]) -> Tensor | None:
    """The squared norm of a loss's gradient at some tensors, in float32 or better; None where it does not reach them.

    No parameter's gradient is touched, and the graph stays for the backward pass.
    """
    at = [tensor for tensor in at if tensor.requires_grad]
    if not at or not loss.requires_grad:
        return None
    gradients = torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True)
    norms = [_squares(gradient) for gradient in gradients if gradient is not None]
    return torch.stack(norms).sum() if norms else None


def task_squared_norm(
    task_loss: Tensor,
    features: FeatureReader,
    rows: Tensor,
    outputs: Any,
    labels: Tensor | None,
    model: nn.Module,
    scale: Tensor | float = 1.0,
) -> Tensor:
    """The squared norm of the task's gradient at the head's full input, also where a graph hides it.

    In a compiled model features and loss come out of one graph. Then the gradient goes back from the loss to the
    logits, from there through the head to the rows, and on to the tokens they were made of. This is the number that
    eager mode gives, but for dropout inside an adapter around the head, which is left out. Where even the logits lie
    inside the graph, the loss is computed once more from them, by the rule of transformers; the first time it is
    checked to be the model's own, up to the number of ranks or of micro-batches. So it is under DeepSpeed, which takes
    any gradient that passes the model's outputs for the step's own and would reduce it across ranks.

    Args:
        task_loss: scalar, as it enters the backward pass.
        features: hold what they read of this forward pass.
        rows: `[rows, d]`, made of it.
        outputs: what the model returned.
        labels: of the batch.
        model: the model, unwrapped.
        scale: multiplies the loss, as a gradient scaler does, so that half precision does not underflow.

    Raises:
        TaskGradientError: if the gradient is out of reach.
    """
    norm = None if features.outputs_are_closed else squared_norm(scale * task_loss, features.inputs)
    if norm is not None:
        return norm
    if not isinstance(features, HeadInput):
        raise TaskGradientError(
            "the task's gradient at a hidden state is out of reach in a compiled model and under DeepSpeed, so the cap "
            "on the matching's gradient cannot be kept; take feature_layer='head', or do without torch_compile or "
            "DeepSpeed, or set matching_max_grad_ratio=None"
        )
    logits = logits_of(outputs)
    at_logits = None
    reachable = not features.outputs_are_closed and task_loss.requires_grad
    if reachable and logits is not None and logits.requires_grad:
        (at_logits,) = torch.autograd.grad(task_loss, logits, retain_graph=True, allow_unused=True)
    if at_logits is None:
        at_logits = _gradient_of_known_loss(task_loss, features, logits, labels, model)
    at_rows = features.gradient(rows, scale * at_logits).to(rows.dtype)
    inputs = [tensor for tensor in features.inputs if tensor.requires_grad]
    gradients = torch.autograd.grad(rows, inputs, at_rows, retain_graph=True)
    return torch.stack([_squares(gradient) for gradient in gradients]).sum()


def cap_measures(
    task_loss: Tensor,
    matching_loss: Tensor,
    features: FeatureReader,
    rows: Tensor,
    outputs: Any,
    labels: Tensor | None,
    model: nn.Module,
    scale: Tensor | float,
) -> Tensor:
    """What the cap goes by, `[4]`: the squared norms of both gradients at the head's full input, and the excess odds.

    The arguments are those of `task_squared_norm`. The norms, of the task's and of the matching's gradient, are 0
    where the matching moves nothing: the features are frozen, or its loss does not depend on them.
    """
    matching = squared_norm(scale * matching_loss, features.inputs)
    if matching is None:
        return torch.zeros(4, device=task_loss.device)
    task = task_squared_norm(task_loss, features, rows, outputs, labels, model, scale)
    return torch.stack([task, matching, *excess_odds(logits_of(outputs), labels)])


def _squares(gradient: Tensor) -> Tensor:
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32)).square().sum()


def _gradient_of_known_loss(
    task_loss: Tensor, features: FeatureReader, logits: Tensor | None, labels: Tensor | None, model: nn.Module
) -> Tensor:
    """The gradient at the logits of the loss that transformers takes of them, scaled as the task's loss is."""
    config = getattr(model, "config", None)
    if logits is not None and labels is not None and isinstance(config, PreTrainedConfig):
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            again = ForSequenceClassificationLoss(labels, logits, config)
        factor = torch.where(again == 0, 1.0, task_loss.detach() / again.detach())
        if not features.loss_is_known:
            times = torch.maximum(factor, 1 / factor)
            features.loss_is_known = bool((times - times.round()).abs() < 0.01 * times)
        if features.loss_is_known:
            return torch.autograd.grad(again, logits)[0] * factor
    raise TaskGradientError(
        f"{type(model).__name__} computes its loss in a way of its own, where a compiled model or DeepSpeed hides its "
        "gradient, so the cap on the matching's gradient cannot be kept; pass compute_loss_func (compiled models "
        "only), or do without torch_compile or DeepSpeed, or set matching_max_grad_ratio=None"
    )
