"""Records what modules get and return in a forward pass, by temporary hooks."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(eq=False)
class Call:
    """One call of a module."""

    module: nn.Module
    given: Tensor | None  # its first tensor, as it stands in the graph of the pass; None without one
    output: Any = None  # None where outputs are not noted


class Recorder:
    """Records the calls of some modules, in the order in which they end, and the model's inputs and outputs.

    If there are several passes of the model, only the last is kept. A graph of `torch.compile` breaks at these modules.
    So the gradient flows through the recorded tensors.

    Calls with more than `largest` entries in input or output are left out, because they would hold memory that Trainer
    frees.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> recorder = Recorder([model[1]])
        >>> with recorder.on(model):
        ...     _ = model(torch.ones(4, 2))
        >>> [call] = recorder.calls
        >>> call.given.shape, torch.equal(call.output, recorder.outputs)
        (torch.Size([4, 3]), True)
    """

    def __init__(self, modules: Iterable[nn.Module], outputs: bool = True, largest: int | None = None) -> None:
        self.modules, self.with_outputs, self.largest = list(modules), outputs, largest
        self.left_out: set[nn.Module] = set()  # for their size
        self.calls: list[Call] = []
        self.inputs: dict[str, Any] | None = None  # of the model's last pass, by the names of its parameters
        self.outputs: Any = None
        self.extra_inputs: dict[str, Any] = {}  # handed to the model in addition to its own
        self.has_other_passes = False  # of the model, without gradient
        self._on, self._graph_only = False, False
        self._handles: list[RemovableHandle] = []

    @contextmanager
    def on(self, model: nn.Module | None = None, graph_only: bool = False) -> Iterator["Recorder"]:
        """Record every call within this context, or within a model's forward pass there; then remove the hooks.

        `graph_only` leaves out what runs without gradient.
        """
        self.clear()
        with ExitStack() as hooks:  # which takes them off
            if not self._handles:
                self.attach()
                hooks.callback(self.detach)
            if model is not None:
                # Before a hook that shards the model.
                hooks.enter_context(model.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True))
                hooks.enter_context(model.register_forward_hook(self._leave))
            self._on, self._graph_only, self.has_other_passes = model is None, graph_only, False
            try:
                yield self
            finally:
                self._on = False

    def attach(self) -> None:
        """Put the hooks on the modules, once. A compiled model uses only hooks from before its first call."""
        if self._handles:
            return
        begin, end = (torch.compiler.disable(hook) for hook in (self._begin, self._end))
        for module in self.modules:
            self._handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
            if self.with_outputs:
                self._handles.append(module.register_forward_hook(end))

    def detach(self) -> None:
        """Take the hooks off the modules."""
        while self._handles:
            self._handles.pop().remove()

    def clear(self) -> None:
        """Forget what was recorded."""
        self.calls, self.inputs, self.outputs = [], None, None

    def index(self, call: Call) -> int | None:
        """The index of this call among its module's calls, from 0; None if it is the only one."""
        own = [each for each in self.calls if each.module is call.module]
        return own.index(call) if len(own) > 1 else None

    @property
    def mask(self) -> Tensor | None:
        """The attention mask that the model was given, `[rows, tokens]`."""
        mask: Tensor | None = (self.inputs or {}).get("attention_mask")
        return mask

    @property
    def _notes(self) -> bool:
        return self._on and (torch.is_grad_enabled() or not self._graph_only)

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._graph_only and not torch.is_grad_enabled():
            self.has_other_passes = True
            return None
        named = dict(zip(signature(model.forward).parameters, args, strict=False)) if args else {}
        self.clear()
        self._on, self.inputs = True, named | kwargs
        return (args, kwargs | self.extra_inputs) if self.extra_inputs else None

    def _leave(self, model: nn.Module, args: Any, outputs: Any) -> None:
        if self._notes:
            self._on, self.outputs = False, outputs  # a layer that is called outside the model is another matter

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._notes:
            given = next((entry for entry in (*args, *kwargs.values()) if isinstance(entry, Tensor)), None)
            self.calls.append(Call(module, given))

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        begun = [call for call in self.calls if call.module is module and call.output is None]
        if not self._notes or not begun:  # it began where nothing was noted
            return
        call = begun[-1]
        self.calls.remove(call)
        tensors = [entry for entry in (output, call.given) if isinstance(entry, Tensor)]
        if self.largest is not None and any(entry.numel() > self.largest for entry in tensors):
            self.left_out.add(module)
        else:
            call.output = output
            self.calls.append(call)


def possible_logits(outputs: Any, num_labels: int | None = None) -> dict[Any, Tensor]:
    """The outputs of a model that could be the logits, by name or place; the place of a single tensor is None.

    This is the entry called `logits`, else those with `num_labels` columns, else all that have columns.
    """
    tensors = {
        place: entry
        for place, entry in _entries(outputs).items()
        if isinstance(entry, Tensor) and entry.ndim >= 2 and entry.is_floating_point()
    }
    if "logits" in tensors:
        return {"logits": tensors["logits"]}
    return {place: entry for place, entry in tensors.items() if entry.shape[-1] == num_labels} or tensors


def logits_at(outputs: Any, place: Any) -> Tensor | None:
    """The logits, at the place where an earlier forward pass had them; None if there are none now."""
    entry = _entries(outputs).get(place)
    return entry if isinstance(entry, Tensor) else None


def _entries(outputs: Any) -> Mapping[Any, Any]:
    if isinstance(outputs, Mapping):
        return outputs
    return dict(enumerate(outputs)) if isinstance(outputs, (tuple, list)) else {None: outputs}
