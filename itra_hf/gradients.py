"""The gradients that the cap compares: what the task and what the matching ask of the features."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from itra_hf.features import HeadInput, logits_of


class TaskGradientError(RuntimeError):
    """The task's gradient at the features is out of reach, so the cap cannot be kept."""


def feature_gradients(
    task_loss: Tensor,
    matching_loss: Tensor,
    head_input: HeadInput,
    rows: Tensor,
    outputs: Any,
    labels: Tensor | None,
    model: nn.Module,
    scale: Tensor | float = 1.0,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of both losses at the head's input; no parameter's gradient is touched.

    Args:
        task_loss: scalar, as it enters the backward pass.
        matching_loss: scalar, without its weight.
        head_input: holds the head's full input of this forward pass.
        rows: the features that the matching saw, `[rows, d]`.
        outputs: what the model returned.
        labels: of the batch, for a model whose loss was compiled together with it.
        model: the model, unwrapped.
        scale: multiplies both losses, as a gradient scaler does, so that half precision does not underflow.

    Returns:
        The gradients of the scaled task loss and of the scaled matching loss, both at the head's full input or both
        at the rows; None for one that is zero.

    Raises:
        TaskGradientError: if the task's gradient is out of reach.
    """
    full = head_input.full
    if full is None or not full.requires_grad:
        return None, None
    task_gradient = _gradient(scale * task_loss, full)
    if task_gradient is not None:
        return task_gradient, _gradient(scale * matching_loss, full)
    task_gradient = scale * _gradient_through_logits(task_loss, head_input, outputs, labels, model)
    return task_gradient, _gradient(scale * matching_loss, rows)


def _gradient(loss: Tensor, at: Tensor) -> Tensor | None:
    if not loss.requires_grad:
        return None
    return torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True)[0]


def _gradient_through_logits(
    task_loss: Tensor, head_input: HeadInput, outputs: Any, labels: Tensor | None, model: nn.Module
) -> Tensor:
    """The task's gradient at the rows where features and loss come out of one compiled graph.

    It goes back from the loss to the logits, and from there through the linear head by its weight. Where even the
    logits lie inside the graph, the loss is computed once more from them, by the rule of transformers.
    """
    logits = logits_of(outputs)
    at_logits = None if logits is None else _gradient(task_loss, logits)
    if at_logits is None:
        at_logits = _gradient_of_known_loss(task_loss, head_input, logits, labels, model)
    weight = head_input.head.weight.detach()
    return at_logits.to(weight.dtype) @ weight


def _gradient_of_known_loss(
    task_loss: Tensor, head_input: HeadInput, logits: Tensor | None, labels: Tensor | None, model: nn.Module
) -> Tensor:
    """The gradient at the logits of the loss that transformers takes of them, scaled as the task's loss is.

    The first time, the loss is checked to be the model's own, up to the number of ranks.
    """
    config = getattr(model, "config", None)
    if logits is not None and labels is not None and isinstance(config, PreTrainedConfig):
        logits = logits.detach().requires_grad_()
        again = ForSequenceClassificationLoss(labels, logits, config)
        factor = torch.where(again == 0, 1.0, task_loss.detach() / again.detach())
        if not head_input.loss_is_known:
            head_input.loss_is_known = bool((factor - factor.round().clamp(min=1)).abs() < 0.01 * factor)
        if head_input.loss_is_known:
            return torch.autograd.grad(again * factor, logits)[0]
    raise TaskGradientError(
        f"{type(model).__name__} computes its loss inside a compiled graph in a way of its own, so the cap on the "
        "matching's gradient cannot be kept; pass compute_loss_func, or set torch_compile=False or "
        "matching_max_grad_ratio=None"
    )
