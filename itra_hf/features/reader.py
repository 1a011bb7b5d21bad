"""What all features have in common: from which calls of a model's modules they are read, and how."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from itra_hf.features.recorder import Call, Recorder


class HeadNotFoundError(ValueError):
    """The model has no features that could be matched."""


class AmbiguousHeadError(HeadNotFoundError):
    """One forward pass does not tell which layer makes the logits; another one may."""


class FeatureReader(ABC):
    """Reads features from calls of modules: for each module one call, by its index from 0, or the last call (None).

    The place says where the logits are in the model's outputs (see `recorder.possible_logits`).
    """

    def __init__(
        self, modules: Sequence[nn.Module], call_index: Sequence[int | None], outputs: bool, place: Any = "logits"
    ) -> None:
        self.place = place
        self.modules, self.call_index = tuple(modules), tuple(call_index)
        self.recorder = Recorder(dict.fromkeys(modules), outputs)

    @abstractmethod
    def tensors(self, calls: Sequence[Call]) -> tuple[Tensor, ...]:
        """The tensors that the features are made of, in the task's graph, each once."""

    @abstractmethod
    def pool(self, tensors: Sequence[Tensor], calls: Sequence[Call], outputs: Any, mask: Tensor | None) -> Tensor:
        """The features, `[rows, d]`, made from these tensors in place of `tensors(calls)`."""

    @abstractmethod
    def describe(self, names: Mapping[nn.Module, str]) -> str:
        """What the features are, in words, given the names of the model's modules."""

    @abstractmethod
    def cutting_hooks(self) -> list[RemovableHandle]:
        """Hooks that start the graph of one forward pass at the features; before them there is no gradient."""

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Within this context the graph of one forward pass begins at the features."""
        with ExitStack() as hooks, torch.no_grad():
            for hook in self.cutting_hooks():
                hooks.enter_context(hook)  # which takes it off
            yield

    def select(self, calls: Sequence[Call]) -> list[Call]:
        """The calls that are read, out of all recorded ones; calls that did not happen are left out."""
        found = []
        for module, index in zip(self.modules, self.call_index, strict=True):
            own = [call for call in calls if call.module is module]
            if len(own) > (index or 0):
                found.append(own[-1 if index is None else index])
        return found

    @contextmanager
    def attached(self) -> Iterator[Self]:
        """Read every forward pass within this context, and leave no hook behind."""
        with self.recorder.on():
            yield self

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors of the last forward pass that the features are made of."""
        return self.tensors(self.select(self.recorder.calls))

    def rows(self, outputs: Any, attention_mask: Tensor | None = None) -> Tensor:
        """The features of the last forward pass, `[rows, d]`, with gradient.

        Args:
            outputs: what the model returned.
            attention_mask: `[rows, tokens]`, as the model got it.

        Raises:
            RuntimeError: if the modules were not called within `attached`.
        """
        calls = self.select(self.recorder.calls)
        if len(calls) < len(self.modules):
            raise RuntimeError("the module that makes the features was not reached in the last forward pass")
        return self.pool(self.tensors(calls), calls, outputs, attention_mask)
