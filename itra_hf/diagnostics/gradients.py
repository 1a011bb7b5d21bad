"""How mini-batch gradients scatter, and how much a step adapts the model to its own mini-batch."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from itra_hf.features import undisturbed

Loss = Callable[[nn.Module, Mapping[str, Any]], Tensor]


def model_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss that the model itself returns for a batch with labels."""
    loss: Tensor = model(**batch)["loss"]
    return loss


def gradient_scatter(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], loss: Loss = model_loss
) -> dict[str, float]:
    """How far the gradients of mini-batches lie apart, against how large their mean is.

    With the gradients g_1, ..., g_B of the loss on B mini-batches, over all parameters that are trained, and their
    mean g:

        gradient_variance = sum_b |g_b - g|^2 / (B - 1)
        gradient_norm     = |g|
        gradient_scatter  = gradient_variance / |g|^2

    The last is the noise scale of McCandlish et al. (2018, arXiv 1812.06162) for batches of this size. `|g|^2` holds
    `1 / B` of the variance, so the scatter cannot grow beyond about B: compare only figures of the same B and batch
    size.

    The model runs in evaluation mode, so that dropout adds nothing. It is left as it was, its gradients and the random
    state included. Memory: three copies of the trained parameters.

    Args:
        model: returns a mapping that holds `loss`, or `loss` is given. Not sharded over ranks.
        batches: at least two, keyword arguments of the model, on its device.
        loss: takes the model and a batch, and gives a scalar.

    Raises:
        ValueError: with fewer than two batches, or with no parameter to train.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> class Line(nn.Linear):
        ...     def forward(self, x):
        ...         return {"loss": super().forward(x).mean()}
        >>> measures = gradient_scatter(Line(1, 1, bias=False), [{"x": torch.ones(2, 1)}, {"x": 3 * torch.ones(2, 1)}])
        >>> {name: round(value, 6) for name, value in measures.items()}
        {'gradient_variance': 2.0, 'gradient_norm': 2.0, 'gradient_scatter': 0.5}
    """
    parameters = _trained(model)
    mean = [torch.zeros_like(parameter, dtype=_precise(parameter)) for parameter in parameters]
    number, squares = 0, 0.0
    with undisturbed(model):
        for batch in batches:
            number += 1
            deviations = [g - m for g, m in zip(_gradients(loss(model, batch), parameters), mean, strict=True)]
            for total, deviation in zip(mean, deviations, strict=True):
                total += deviation / number
            squares += _squared_norm(deviations) * (number - 1) / number  # Welford: one pass, no cancellation
    if number < 2:
        raise ValueError(f"{number} batch has no scatter; give at least two")
    variance, squared_mean = squares / (number - 1), _squared_norm(mean)
    scatter = variance / squared_mean if squared_mean > 0 else float("inf" if variance > 0 else "nan")
    return {"gradient_variance": variance, "gradient_norm": squared_mean**0.5, "gradient_scatter": scatter}


def over_adaptation(
    model: nn.Module,
    optimizer: Optimizer | AcceleratedOptimizer,
    batch: Mapping[str, Any],
    fresh_batch: Mapping[str, Any],
    loss: Loss = model_loss,
) -> dict[str, float]:
    """How much more a step lowers the loss on its own mini-batch than on a fresh one.

    One trial step of the optimizer on `batch`, with its present state and learning rate:

        fall_on_batch   = loss(batch) before - after
        fall_on_fresh   = loss(fresh_batch) before - after
        over_adaptation = fall_on_batch - fall_on_fresh

    The step is then taken back: parameters, buffers, gradients, the optimizer's state and the random state are bit for
    bit as they were. The model runs in evaluation mode throughout, so that dropout adds nothing. Memory: a copy
    of the parameters and of the optimizer's state.

    Args:
        model: returns a mapping that holds `loss`, or `loss` is given. Not sharded over ranks.
        optimizer: of the model's parameters; an accelerated one is unwrapped.
        batch: keyword arguments of the model, on its device.
        fresh_batch: likewise, of the same distribution.
        loss: takes the model and a batch, and gives a scalar.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> class Line(nn.Linear):
        ...     def forward(self, x):
        ...         return {"loss": super().forward(x).square().mean()}
        >>> model, (one, other) = Line(3, 1), [{"x": torch.randn(4, 3)} for _ in range(2)]
        >>> measures = over_adaptation(model, torch.optim.SGD(model.parameters(), lr=0.1), one, other)
        >>> list(measures)
        ['fall_on_batch', 'fall_on_fresh', 'over_adaptation']
    """
    if isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    parameters = _trained(model)

    def losses() -> list[float]:
        with torch.no_grad():
            return [float(loss(model, each)) for each in (batch, fresh_batch)]

    with undisturbed(model), _taken_back(model, optimizer):
        before = losses()
        for parameter, gradient in zip(parameters, _gradients(loss(model, batch), parameters), strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()
        after = losses()
    on_batch, on_fresh = (old - new for old, new in zip(before, after, strict=True))
    return {"fall_on_batch": on_batch, "fall_on_fresh": on_fresh, "over_adaptation": on_batch - on_fresh}


@contextmanager
def _taken_back(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Restore parameters, buffers, gradients and the optimizer's state at the end."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    values = [(tensor, tensor.detach().clone()) for tensor in (*parameters, *model.buffers())]
    gradients = [(parameter, parameter.grad) for parameter in (*parameters, *model.parameters())]
    state = {parameter: copy.deepcopy(entries) for parameter, entries in optimizer.state.items()}
    groups = [{key: copy.deepcopy(group[key]) for key in group if key != "params"} for group in optimizer.param_groups]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, settings in zip(optimizer.param_groups, groups, strict=True):
            group.update(settings)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameter that is trained, so there is no gradient to measure")
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        raise ValueError(
            f"the parameters of {type(model).__name__} are sharded over ranks, and their gradient is nowhere whole; "
            "measure compactness alone, or train without FSDP"
        )
    return parameters


def _gradients(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """The gradients in float32 or better; zeros where the loss does not reach. No parameter's `.grad` is touched."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(gradients, parameters, strict=True)
    return [torch.zeros_like(p, dtype=_precise(p)) if g is None else g.to(_precise(p)) for g, p in pairs]


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _squared_norm(tensors: list[Tensor]) -> float:
    return float(sum(torch.stack([tensor.square().sum() for tensor in tensors]).tolist()))
