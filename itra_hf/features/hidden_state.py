"""A hidden state as the features: read by a hook on the module that makes it, pooled to one row per example."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from itra_hf.features.pooling import pooled
from itra_hf.features.reader import FeatureReader, HeadNotFoundError
from itra_hf.features.recorder import Call, Recorder
from itra_hf.features.undisturbed import undisturbed

INSTALLED = "_output_capturing_hooks_installed"  # how transformers marks a model with its hooks; it has no public name
ASK = {"output_hidden_states": True}  # what a model is given so that it returns its hidden states


class HiddenState(FeatureReader):
    """Reads one hidden state of a model, one row per example, without asking the model for all of them.

    Args:
        module: the module whose output is the hidden state.
        pooling: `"first"`, `"last"` or `"mean"`, over the attended tokens. For a map `[rows, d, height, width]` it is
            always the mean over its positions.
        call_index: which call of the module, counted from 0; None means the last.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = dict(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=1)
        >>> model = BertForSequenceClassification(BertConfig(**sizes)).eval()
        >>> inputs = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}
        >>> features = HiddenState.find(model, inputs, layer=1)
        >>> with features.attached():
        ...     outputs = model(**inputs, output_hidden_states=True)
        ...     rows = features.rows(outputs)
        >>> torch.equal(rows, outputs.hidden_states[1].mean(1))
        True
    """

    def __init__(self, module: nn.Module, pooling: str, call_index: int | None = None) -> None:
        super().__init__([module], [call_index], outputs=True)
        self.pooling = pooling

    @classmethod
    def find(cls, model: nn.Module, inputs: Mapping[str, Any], layer: int, pooling: str = "mean") -> Self:
        """Find the module that makes hidden state `layer`, by a forward pass that leaves the model as it was.

        Args:
            model: a model of transformers.
            inputs: a batch.
            layer: index into `hidden_states`; 0 is the embeddings, -1 the last. In a model with an encoder and a
                decoder, it counts the states of the encoder.
            pooling: as for the class.

        Raises:
            HeadNotFoundError: if the model has no such hidden state, or no module gives it.
        """
        recorder = Recorder(model.modules())
        with asking(model), recorder.on(model), undisturbed(model), torch.no_grad():
            try:
                model(**inputs, **ASK)
            except TypeError as error:
                name = type(model).__name__
                raise HeadNotFoundError(
                    f"{name} cannot be asked for hidden states ({error}); name a module by feature_layer"
                ) from error
        return cls.explain(recorder, layer, pooling, type(model).__name__)

    @classmethod
    def explain(cls, seen: Recorder, layer: int, pooling: str, name: str) -> Self:
        """The reader of hidden state `layer`, from a recorded pass that returned the hidden states."""
        states = _hidden_states(seen.outputs, name)
        if not -len(states) <= layer < len(states):
            raise HeadNotFoundError(
                f"{name} has {len(states)} hidden states, and feature_layer={layer} is none of them; "
                f"take an index from {-len(states)} to {len(states) - 1}"
            )
        state = states[layer].detach()
        made = [(call, _first_tensor(call.output)) for call in seen.calls]
        fits = [(call, tensor) for call, tensor in made if tensor is not None and tensor.shape == state.shape]
        found = next((call for call, tensor in reversed(fits) if torch.equal(tensor.to(state.dtype), state)), None)
        if found is None:
            raise HeadNotFoundError(f"no module of {name} gives its hidden state {layer}; take another feature_layer")
        return cls(found.module, pooling, seen.index(found))

    def describe(self, names: Mapping[nn.Module, str]) -> str:
        """The module by name, and how its output is pooled."""
        return f"the {self.pooling} of the output of {names.get(self.modules[0], '')!r}"

    def tensors(self, calls: Sequence[Call]) -> tuple[Tensor, ...]:
        """The hidden state."""
        states = (_first_tensor(call.output) for call in calls)
        return tuple(state for state in states if state is not None)

    def cutting_hooks(self) -> list[RemovableHandle]:
        """The graph begins at the hidden state."""
        numbers = itertools.count()

        def begin(module: nn.Module, args: Any, output: Any) -> Any:
            if next(numbers) != (self.call_index[0] or 0):
                return output
            torch.set_grad_enabled(True)
            if isinstance(output, Tensor):
                return output.detach().requires_grad_()
            return (output[0].detach().requires_grad_(), *output[1:])

        return [self.modules[0].register_forward_hook(begin, prepend=True)]

    def pool(self, tensors: Sequence[Tensor], calls: Sequence[Call], outputs: Any, mask: Tensor | None) -> Tensor:
        """One row per example, `[rows, d]`, of the hidden state."""
        (state,) = tensors
        return pooled(state, "places" if state.ndim == 4 else self.pooling, mask)


@contextmanager
def asking(model: nn.Module) -> Iterator[None]:
    """Within this context a model may be asked for its hidden states; afterwards the hooks of transformers are removed.

    Otherwise these hooks would stay, and a model that has them cannot be pickled.
    """
    hooks = {module: set(module._forward_hooks) for module in model.modules()}
    marked = {module for module in hooks if INSTALLED in vars(module)}
    try:
        yield
    finally:
        for module in model.modules():
            for key in set(module._forward_hooks) - hooks.get(module, set()):
                del module._forward_hooks[key]
            if module not in marked:
                vars(module).pop(INSTALLED, None)


def _hidden_states(outputs: Any, name: str) -> Sequence[Tensor]:
    """All hidden states of a forward pass; in a model with a decoder too, those of the encoder."""
    if not isinstance(outputs, Mapping):
        raise HeadNotFoundError(
            f"{name} returns a {type(outputs).__name__}, in which its hidden states have no name; let it "
            "return them by name (models of transformers: config.return_dict=True), or name a module by feature_layer"
        )
    states = outputs.get("hidden_states", outputs.get("encoder_hidden_states"))
    if states is None or not len(states):
        raise HeadNotFoundError(f"{name} gives no hidden states; name a module by feature_layer")
    return cast(Sequence[Tensor], states)


def _first_tensor(output: Any) -> Tensor | None:
    entry = output[0] if isinstance(output, tuple) and output else output
    return entry if isinstance(entry, Tensor) else None
