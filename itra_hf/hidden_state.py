"""A hidden state as the features: read by a hook on the module that makes it, pooled to one row per example."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from itra_hf.features import HeadNotFoundError
from itra_hf.reader import FeatureReader, attended, masked_mean, probing, which_call


class HiddenState(FeatureReader):
    """Reads one hidden state of a model, one row per example, without asking the model for all of them.

    Args:
        module: the module whose output is the hidden state.
        which: as of `FeatureReader`.
        pooling: `"first"`, `"last"` or `"mean"`, over the tokens that are attended; of a map `[rows, d, height, width]`
            always the mean over its places.

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

    def __init__(self, module: nn.Module, pooling: str, which: int | None = None) -> None:
        super().__init__([module], [which])
        self.pooling = pooling

    @classmethod
    def find(cls, model: nn.Module, inputs: Mapping[str, Any], layer: int, pooling: str = "auto") -> Self:
        """Find the module that makes hidden state `layer`, by two forward passes that leave the model as it was.

        Args:
            model: a model of transformers.
            inputs: a batch.
            layer: index into `hidden_states`; 0 is the embeddings, -1 the last. Of a model with an encoder and a
                decoder, into the encoder's.
            pooling: `"auto"` is the mean.

        Raises:
            HeadNotFoundError: if the model has no such hidden state, or no module gives it.
        """
        states = _hidden_states(model, inputs)
        if not -len(states) <= layer < len(states):
            raise HeadNotFoundError(
                f"{type(model).__name__} has {len(states)} hidden states, and feature_layer={layer} is none of them; "
                f"take an index from {-len(states)} to {len(states) - 1}, or feature_layer='head'"
            )
        called: list[nn.Module] = []
        found: list[int] = []

        def compare(module: nn.Module, args: Any, output: Any) -> None:
            tensor = _first_tensor(output)
            if tensor is not None and tensor.shape == states[layer].shape and torch.equal(tensor, states[layer]):
                found.append(len(called))
            called.append(module)

        handles = [module.register_forward_hook(compare) for module in model.modules()]
        try:
            with probing(model):
                model(**inputs)
        finally:
            for handle in handles:
                handle.remove()
        if not found:
            raise HeadNotFoundError(
                f"no module of {type(model).__name__} gives its hidden state {layer}; take another feature_layer"
            )
        pooling = "mean" if pooling == "auto" else pooling
        return cls(called[found[-1]], pooling, which_call(called, found[-1]))

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The hidden state of the last forward pass."""
        tensors = (_first_tensor(output) for _, output in self._calls)
        return tuple(tensor for tensor in tensors if tensor is not None)

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Within this context, without gradient, the graph begins at the hidden state."""
        calls = itertools.count()

        def begin(module: nn.Module, args: Any, output: Any) -> Any:
            if next(calls) != (self.which[0] or 0):
                return output
            torch.set_grad_enabled(True)
            if isinstance(output, Tensor):
                return output.detach().requires_grad_()
            return (output[0].detach().requires_grad_(), *output[1:])

        handle = self.modules[0].register_forward_hook(begin, prepend=True)
        try:
            with torch.no_grad():
                yield
        finally:
            handle.remove()

    def rows(self, outputs: Any, attention_mask: Tensor | None = None) -> Tensor:
        """The features of the last forward pass, `[rows, d]`, with gradient.

        Args:
            outputs: what the model returned; not looked at.
            attention_mask: `[rows, tokens]`, as the model got it.

        Raises:
            RuntimeError: if the module was not called since the hook was put on or cleared.
        """
        if not self.inputs:
            raise RuntimeError("the module of the hidden state was not reached in the last forward pass")
        (state,) = self.inputs
        if state.ndim == 2:
            return state
        if state.ndim == 4:
            return state.mean((2, 3))
        if self.pooling == "mean":
            return masked_mean(state, attention_mask)
        positions = torch.arange(state.shape[1], device=state.device)
        score = attended(state, attention_mask) * (
            state.shape[1] + (positions if self.pooling == "last" else -positions)
        )
        return state[torch.arange(len(state), device=state.device), score.argmax(1)]


def _hidden_states(model: nn.Module, inputs: Mapping[str, Any]) -> Sequence[Tensor]:
    """All hidden states of a batch; those of the encoder, where there is a decoder, too."""
    name = type(model).__name__
    try:
        with probing(model):
            outputs = model(**inputs, output_hidden_states=True)
    except TypeError as error:
        raise HeadNotFoundError(
            f"{name} cannot be asked for hidden states ({error}); take feature_layer='head'"
        ) from error
    if not isinstance(outputs, Mapping):
        raise HeadNotFoundError(
            f"{name} returns a {type(outputs).__name__}, in which its hidden states have no name; set "
            "config.return_dict=True, or take feature_layer='head'"
        )
    states = outputs.get("hidden_states", outputs.get("encoder_hidden_states"))
    if states is None:
        raise HeadNotFoundError(f"{name} gives no hidden states; take feature_layer='head'")
    return cast(Sequence[Tensor], states)


def _first_tensor(output: Any) -> Tensor | None:
    entry = output[0] if isinstance(output, tuple) and output else output
    return entry if isinstance(entry, Tensor) else None
