"""The features of a training run: found in its first forward pass, read in every later one."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from inspect import Parameter, signature
from typing import Any, cast

import torch
from torch import Tensor, nn

from itra_hf.features.hidden_state import ASK, HiddenState, asking
from itra_hf.features.layers import linear_layers, module_named
from itra_hf.features.reader import AmbiguousHeadError, FeatureReader, HeadNotFoundError
from itra_hf.features.recorder import Call, Recorder, logits_at, possible_logits
from itra_hf.features.search import head_in, named_head
from itra_hf.features.undisturbed import kept_buffers, kept_random_state, undisturbed

LARGEST = 2**20  # entries in the output of a layer that the first forward pass looks at


@dataclass
class Seen:
    """What a forward pass has shown of its features."""

    reader: FeatureReader
    calls: list[Call]  # those that the reader reads
    inputs: dict[str, Any]  # of the model, by name
    outputs: Any
    has_other_passes: bool  # of the model, without gradient

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What the features are made of, in the task's graph."""
        return self.reader.tensors(self.calls)

    @property
    def logits(self) -> Tensor | None:
        """The model's logits, without gradient."""
        logits = logits_at(self.outputs, self.reader.place)
        return None if logits is None else logits.detach()

    @cached_property
    def leaves(self) -> tuple[Tensor, ...]:
        """The same as `tensors`, outside the task's graph."""
        return tuple(tensor.detach().requires_grad_() for tensor in self.tensors)

    @cached_property
    def rows(self) -> Tensor:
        """The features, `[rows, d]`, made of the leaves."""
        with torch.enable_grad():
            return self.reader.pool(self.leaves, self.calls, self.outputs, self.inputs.get("attention_mask"))


class FeatureWatch:
    """Watches the training forward passes of a model, one `watching` each, and leaves no hook behind.

    Until the features are found, every layer that could make them is watched; then only the layers that do. A forward
    pass may not reach these layers, for instance if each task has its own head, or if a head was replaced. Such a pass
    has no features. From then on every pass is searched again.

    Args:
        model: unwrapped.
        layer: see `feature_layer`.
        pooling: see `feature_pooling`.
    """

    def __init__(self, model: nn.Module, layer: str, pooling: str) -> None:
        self.model, self.pooling = model, pooling
        self.layer = hidden_state_index(layer)
        self.name = layer if layer != "head" and self.layer is None else None
        self.reader: FeatureReader | None = None
        self.patient = True  # while another pass may tell what one leaves open
        self._kept = ExitStack()  # what a compiled model keeps from pass to pass
        self._roams, self._is_compiled = False, False
        self._width: int | None = None  # of the logits, where it is not what the config says
        self._known: dict[tuple[nn.Module, ...], FeatureReader | None] = {}
        self._recorder = Recorder([])

    @contextmanager
    def watching(self, model: nn.Module, graph_only: bool = True) -> Iterator[None]:
        """Watch the forward passes of a model (if compiled, of its wrapper) within this context.

        `graph_only` leaves out passes without gradient.
        """
        searches = self.reader is None or self._roams
        self._recorder = self._search() if searches else cast(FeatureReader, self.reader).recorder
        asks = asking(self.model) if searches and self.layer is not None else nullcontext()
        try:
            with asks, self._recorder.on(model, graph_only):
                yield
        finally:
            self._recorder.clear()

    def find(self, forward: Callable[[], Any]) -> None:
        """Find the features by an extra forward pass, which leaves the model and the random state unchanged."""
        device = next(self.model.parameters()).device
        for _ in range(2):  # the second time, if the first has only shown how many logits there are
            watching = self.watching(self.model, graph_only=False)
            if self.reader is None:
                with kept_random_state(device), kept_buffers(self.model), torch.no_grad(), watching:
                    forward()
                    self.seen()

    def seen(self) -> Seen | None:
        """What the last forward pass within `watching` showed; None if the features were not reached.

        Raises:
            AmbiguousHeadError: if this batch does not show which layer makes the logits.
            HeadNotFoundError: if the model has no such features.
        """
        recorder = self._recorder
        if recorder.inputs is None:
            return None
        reader = self._look_up(recorder) if self.reader is None or self._roams else self.reader
        if reader is None:
            return None
        calls = reader.select(recorder.calls)
        if len(calls) < len(reader.modules) or any(call.given is None for call in calls):
            if self._is_compiled:
                raise HeadNotFoundError(
                    f"{type(self.model).__name__} did not reach its features in a compiled forward pass (a model that "
                    "was compiled and called before ignores the hook: let ITRATrainer compile it by torch_compile=True)"
                )
            self._roams = True
            return None
        self.reader = reader
        return Seen(reader, calls, recorder.inputs, recorder.outputs, recorder.has_other_passes)

    @property
    def inputs(self) -> dict[str, Any] | None:
        """The model's inputs in the last pass within `watching`, by name; None if it was not called."""
        return self._recorder.inputs

    @property
    def width(self) -> int | None:
        """How many logits a row had in the last forward pass within `watching`; None where that is unclear."""
        possible = possible_logits(self._recorder.outputs).values()
        widths = {logits.shape[-1] for logits in possible if logits.ndim == 2}
        return widths.pop() if len(widths) == 1 else None

    def keep_hooks(self) -> None:
        """Put the hooks on a compiled model until `close`; it uses only the hooks of its first call."""
        self._is_compiled = True
        if self.reader is not None:
            self.reader.recorder.attach()
            self._kept.callback(self.reader.recorder.detach)
            torch.compiler.reset()  # else a graph that the process has of such a model would be taken, without hooks
            # Else the graph of one block would serve its twin, whose module has the hook.
            self._kept.enter_context(torch._dynamo.config.patch(skip_nnmodule_hook_guards=False))

    def close(self) -> None:
        """Take off the hooks that a compiled model keeps from pass to pass."""
        self._kept.close()

    def _search(self) -> Recorder:
        if self.name is not None:
            return Recorder([module_named(self.model, self.name)])
        if self.layer is None:
            wide = [layer for layer in linear_layers(self.model) if layer.out_features == self._width]
            return Recorder(wide or linear_layers(self.model), largest=None if wide else LARGEST)
        recorder = Recorder(self.model.modules())
        recorder.extra_inputs = ASK
        parameters = signature(self.model.forward).parameters
        if not (ASK.keys() & parameters.keys() or any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())):
            raise HeadNotFoundError(
                f"{type(self.model).__name__} cannot be asked for hidden states; name a module by feature_layer"
            )
        return recorder

    def _look_up(self, recorder: Recorder) -> FeatureReader | None:
        """The reader for the layers that were called; each order of calls is searched once."""
        if self.reader is None:
            return self._explain(recorder)
        key = tuple(call.module for call in recorder.calls)
        if key not in self._known:
            if len(self._known) == 32:  # heads that are replaced again and again are not kept alive
                self._known.clear()
            try:
                self._known[key] = self._explain(recorder)
            except HeadNotFoundError:  # a pass without the features, among others that have them
                self._known[key] = None
        return self._known[key]

    def _explain(self, seen: Recorder) -> FeatureReader | None:
        if self.layer is not None:
            return HiddenState.explain(seen, self.layer, self.pooling, type(self.model).__name__)
        if self.name is not None:
            return named_head(self.model, self.name, seen, self.pooling, self.patient)
        try:
            return head_in(self.model, seen, self.patient)
        except HeadNotFoundError as error:
            widths = {logits.shape[-1] for logits in possible_logits(seen.outputs).values()}
            unseen = {cast(nn.Linear, layer).out_features for layer in seen.left_out} & widths
            if isinstance(error, AmbiguousHeadError) or not unseen:
                raise
            self._width = min(unseen)  # the next pass looks at these layers, however large their outputs are
            return None


def hidden_state_index(layer: str) -> int | None:
    """The index of the hidden state that `feature_layer` means; None where it is `"head"` or the name of a module."""
    return int(layer) if layer.removeprefix("-").isdecimal() else None


def find_features(model: nn.Module, inputs: Mapping[str, Any], layer: str, pooling: str) -> FeatureReader:
    """The reader of the features that `feature_layer` means, found by a forward pass in evaluation mode.

    Raises:
        HeadNotFoundError: if the model has no such features.
    """
    watch = FeatureWatch(model, layer, pooling)
    watch.patient = False
    with undisturbed(model):
        watch.find(lambda: model(**inputs))
    return cast(FeatureReader, watch.reader)
