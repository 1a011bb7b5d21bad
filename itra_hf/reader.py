"""What all features have in common: hooks that come and go, and forward passes that leave no trace."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle


class FeatureReader(ABC):
    """Reads features from a model's forward passes by hooks on some of its modules.

    Args:
        modules: those that are read.
        which: the call of each module that is read, counted from 0, where a forward pass calls it several times (then
            `clear` before each pass); None where it calls it once.
    """

    def __init__(self, modules: Sequence[nn.Module], which: Sequence[int | None]) -> None:
        self.modules, self.which = tuple(modules), tuple(which)
        self.outputs_are_closed = False  # set where no gradient may pass the model's outputs but the step's own
        self.loss_is_known = False  # set once the task's gradient was seen to follow from the logits
        self._seen: list[list[tuple[tuple[Tensor, ...], Any]]] = [[] for _ in modules]
        self._handles: list[RemovableHandle] = []

    @property
    @abstractmethod
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors of the last forward pass that the features are made of, as they stand in the task's graph."""

    @abstractmethod
    def rows(self, outputs: Any, attention_mask: Tensor | None = None) -> Tensor:
        """The features of the last forward pass, `[rows, d]`, with gradient."""

    @abstractmethod
    def cut(self) -> Any:
        """A context without gradient, in which the graph of a forward pass begins at the features."""

    @contextmanager
    def attached(self) -> Iterator[Self]:
        """Read every forward pass within this context, and leave no hook behind."""
        self.attach()
        try:
            yield self
        finally:
            self.detach()

    def attach(self) -> None:
        """Put the hooks on, once."""
        if not self._handles:
            hooks = [partial(self._read, index) for index in range(len(self.modules))]
            self._handles = [
                module.register_forward_hook(hook) for module, hook in zip(self.modules, hooks, strict=True)
            ]

    def detach(self) -> None:
        """Take the hooks off."""
        while self._handles:
            self._handles.pop().remove()
        self.clear()

    def clear(self) -> None:
        """Forget the last forward pass."""
        for calls in self._seen:
            calls.clear()

    @property
    def _calls(self) -> list[tuple[tuple[Tensor, ...], Any]]:
        """What each module was given and gave in the call that is read; a module that was not reached is left out."""
        wanted = zip(self._seen, (which or 0 for which in self.which), strict=True)
        return [calls[which] for calls, which in wanted if len(calls) > which]

    def _read(self, index: int, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        calls, which = self._seen[index], self.which[index]
        if which is None:
            calls.clear()
        if which is None or len(calls) <= which:
            calls.append((args, output))


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient; every module's mode and the random state are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        for module, training in modes:
            module.training = training


class _GivenTo(Exception):  # noqa: N818  no error: it ends a call that has told enough
    def __init__(self, inputs: dict[str, Any]) -> None:
        self.inputs = inputs


def given_to(model: nn.Module, call: Callable[[], Any]) -> dict[str, Any] | None:
    """What a call hands a model first, by the names of its parameters; None where the model is not reached.

    The call ends there: the model is not run.
    """

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _GivenTo(dict(zip(signature(module.forward).parameters, args, strict=False)) | kwargs)

    handle = model.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)  # before one that gathers shards
    try:
        with probing(model):
            call()
    except _GivenTo as given:
        return given.inputs
    finally:
        handle.remove()
    return None


def which_call(called: Sequence[nn.Module], index: int) -> int | None:
    """Of modules in the order of their calls, which of its own calls the one at an index is; None if it is the only."""
    module = called[index]
    return None if called.count(module) == 1 else called[:index].count(module)


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the attended tokens of `[rows, tokens, d]`."""
    weights = attended(tokens, mask)[..., None]
    return (tokens * weights).sum(1) / weights.sum(1)


def attended(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The attention mask, `[rows, tokens]`.

    Tokens that the model put before the text (a prompt) count as attended; of fewer tokens than the mask has places,
    as in a speech model, which makes one of hundreds of samples, each that any of its places is attended in.
    """
    if mask is None or mask.ndim != 2:
        return torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    if mask.shape[1] > tokens.shape[1]:
        return functional.adaptive_max_pool1d(mask.float(), tokens.shape[1]).long()
    return functional.pad(mask.long(), (tokens.shape[1] - mask.shape[1], 0), value=1)
