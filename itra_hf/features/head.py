"""The classifier's input: found once in any model, read at every forward pass, one row per example.

The head is the last linear layer called in a forward pass whose output explains the logits. Its name does not
matter, and neither does the order in which modules are defined. Where the logits are the average of several calls of
one head (multi-sample dropout), the feature is the average of its inputs. Where they are the average of two heads, the
features are both inputs side by side, for the average is one linear map of these, `[W1 / 2, W2 / 2]`; heads that share
an input have it once, and the map `(W1 + W2) / 2`.

The rule on dropout: where one stands before the head, the features are what the head is given, after the dropout
(`benchmarks/dropout.py` compares this with the other choice).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from itra_hf.features.pooling import masked_mean, picked_position, rows_at
from itra_hf.features.reader import FeatureReader, HeadNotFoundError
from itra_hf.features.recorder import Call, Recorder, logits_of
from itra_hf.features.undisturbed import undisturbed

FindReader = Callable[[nn.Module, Mapping[str, Any]], FeatureReader]


def head_candidates(model: nn.Module) -> list[nn.Linear]:
    """The linear layers that could be the head: as many outputs as the config has labels (all, without a config)."""
    num_labels = getattr(getattr(model, "config", None), "num_labels", None)
    return [layer for layer in linear_layers(model) if num_labels in (None, layer.out_features)]


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    """The linear layers.

    A layer that an adapter wraps as its `base_layer` (PEFT's LoRA, IA3, ...) is represented by the adapter, whose
    output is what the model goes on with.
    """
    wrappers = {
        child: module for module in model.modules() for name, child in module.named_children() if name == "base_layer"
    }
    candidates: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            candidate: nn.Module = module
            while candidate in wrappers:
                candidate = wrappers[candidate]
            candidates.append(candidate)
    return cast(list[nn.Linear], candidates)


class HeadInput(FeatureReader):
    """Reads the input of a model's classification head, one row per example.

    Args:
        head: the linear layer that makes the logits, or those whose average they are, one for each call.
        pooling: how the model gets from the head's output to the logits: `"row"` (one output per example),
            `"picked"` (the head is applied to every token and one is picked) or `"mean"` (the outputs are averaged
            over the attention mask).
        call_index: as of `FeatureReader`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> class Classifier(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)
        ...     def forward(self, x):
        ...         return {"logits": self.head(self.body(x).relu())}
        >>> model, inputs = Classifier(), {"x": torch.randn(5, 4)}
        >>> head_input = HeadInput.find(model, inputs)
        >>> with head_input.attached():
        ...     outputs = model(**inputs)
        ...     rows = head_input.rows(outputs)
        >>> rows.shape, torch.equal(model.head(rows), outputs["logits"])
        (torch.Size([5, 3]), True)
    """

    def __init__(
        self, head: nn.Linear | tuple[nn.Linear, ...], pooling: str, call_index: tuple[int | None, ...] = ()
    ) -> None:
        modules = head if isinstance(head, tuple) else (head,)
        super().__init__(modules, call_index or [None] * len(modules), outputs=pooling == "picked")
        self.heads = tuple(dict.fromkeys(modules))
        self.pooling = pooling

    @classmethod
    def find(cls, model: nn.Module, inputs: Mapping[str, Any]) -> Self:
        """Find the head by one forward pass of `inputs`, which leaves model and random state as they were.

        Raises:
            HeadNotFoundError: if no linear layer's output explains the logits.
        """
        recorder = Recorder(head_candidates(model) or linear_layers(model))  # a config may be the backbone's
        with recorder.on(), undisturbed(model), torch.no_grad():
            outputs = model(**inputs)
        found = cls.explain(recorder.calls, outputs, inputs.get("attention_mask"))
        if found is None:
            raise HeadNotFoundError(
                f"{type(model).__name__} has no linear layer whose output makes its logits, so the classifier's input "
                "is not known; set feature_layer to the index of a hidden state to match that instead (with a "
                "matching_loss of your own where none of the built-in forms fits), or train with matching='none'"
            )
        return found

    @classmethod
    def explain(cls, calls: Sequence[Call], outputs: Any, mask: Tensor | None) -> Self | None:
        """The head among the noted calls of a forward pass; None if no output explains the logits."""
        logits = logits_of(outputs)
        if logits is None or logits.ndim != 2:
            return None
        logits = logits.detach()
        made = [(call.module, call.output.detach()) for call in calls if isinstance(call.output, Tensor)]
        modules = [module for module, _ in made]
        last_first = range(len(made))[::-1]
        for number in last_first:
            module, output = made[number]
            own = [other for each, other in made[: number + 1] if each is module]
            if len(own) == modules.count(module) > 1 and _is_mean(own, logits):
                return cls((cast(nn.Linear, module),) * len(own), "row", tuple(range(len(own))))
            pooling = _explain(output, logits, mask)
            if pooling is not None:
                return cls(cast(nn.Linear, module), pooling, (_call_index(modules, number),))
        for second, first in combinations(last_first, 2):
            if _is_mean([made[first][1], made[second][1]], logits):
                heads = tuple(cast(nn.Linear, modules[number]) for number in (first, second))
                return cls(heads, "row", tuple(_call_index(modules, number) for number in (first, second)))
        return None

    @property
    def head(self) -> nn.Linear:
        """The head; the first of two."""
        return self.heads[0]

    @property
    def full(self) -> Tensor | None:
        """The head's full input in the last forward pass; the inputs of two heads side by side are a copy."""
        inputs = self.inputs
        return torch.cat(inputs, -1) if len(inputs) > 1 else inputs[0] if inputs else None

    def tensors(self, calls: Sequence[Call]) -> tuple[Tensor, ...]:
        """What the heads were given, each tensor once."""
        return tuple({id(call.given): call.given for call in calls if call.given is not None}.values())

    def pool(self, tensors: Sequence[Tensor], calls: Sequence[Call], outputs: Any, mask: Tensor | None) -> Tensor:
        """What the head made each row's logits of, `[rows, d]`."""
        if len(tensors) == 1:
            full = tensors[0]
        elif len(self.heads) == 1:
            full = torch.stack(tuple(tensors)).mean(0)
        else:
            full = torch.cat(tuple(tensors), -1)
        if self.pooling == "row":
            return full
        tokens = full.flatten(1, -2)
        if self.pooling == "mean":
            return masked_mean(tokens, mask)
        logits = cast(Tensor, logits_of(outputs))
        return rows_at(tokens, picked_position(calls[0].output.detach().flatten(1, -2), logits.detach(), mask))

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Within this context, under `torch.no_grad`, the graph begins at the head's input: body without, head with."""
        leaves: dict[int, tuple[Tensor, Tensor]] = {}  # heads that share an input keep sharing it

        def leaf(entry: Any) -> Any:
            if not (isinstance(entry, Tensor) and entry.is_floating_point()):
                return entry
            return leaves.setdefault(id(entry), (entry, entry.detach().requires_grad_()))[1]

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            torch.set_grad_enabled(True)
            return tuple(map(leaf, args)), {name: leaf(entry) for name, entry in kwargs.items()}

        handles = [head.register_forward_pre_hook(begin, with_kwargs=True, prepend=True) for head in self.heads]
        try:
            with torch.no_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()


def extract_features(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], find: FindReader = HeadInput.find
) -> Tensor:
    """The features of every example in `batches`, `[rows, d]` on the CPU, in evaluation mode and without gradient.

    They keep the model's dtype, by which `compactness` tells rounding from scatter; numpy has no bfloat16.

    Args:
        model: a classification model.
        batches: keyword arguments of the model, batch by batch, on the model's device.
        find: takes the model and the first batch, and gives what reads the features: the classifier's input by default.

    Raises:
        HeadNotFoundError: if the model has no linear classification head.
    """
    rows: list[Tensor] = []
    reader: FeatureReader | None = None
    for batch in batches:
        reader = reader or find(model, batch)
        with reader.attached(), undisturbed(model), torch.no_grad():
            outputs = model(**batch)
            rows.append(reader.rows(outputs, batch.get("attention_mask")).cpu())
    return torch.cat(rows)


def _call_index(modules: Sequence[nn.Module], number: int) -> int | None:
    """Of modules in the order of their calls, which of its own calls one is; None if it is the only."""
    module = modules[number]
    return None if modules.count(module) == 1 else modules[:number].count(module)


def _explain(output: Tensor, logits: Tensor, mask: Tensor | None) -> str | None:
    """How the logits come from the head's output, or None if they don't."""
    if output.ndim < 2 or len(output) != len(logits) or output.shape[-1] != logits.shape[-1]:
        return None
    output, logits = output.nan_to_num(), logits.nan_to_num()  # a row of NaN hides no head
    if output.ndim == 2:
        return "row" if torch.equal(output.to(logits.dtype), logits) else None
    output = output.flatten(1, -2)
    if (output == logits[:, None]).all(-1).any(1).all():
        return "picked"
    return "mean" if _close(masked_mean(output, mask), logits) else None


def _is_mean(outputs: Sequence[Tensor], logits: Tensor) -> bool:
    same_shape = all(output.shape == logits.shape for output in outputs)
    return same_shape and _close(torch.stack(tuple(outputs)).mean(0), logits)


def _close(average: Tensor, logits: Tensor) -> bool:
    """Whether an average is the logits, up to the rounding of its precision."""
    tolerance = 16 * torch.finfo(average.dtype).eps * float(logits.abs().max())
    return torch.allclose(average.to(logits.dtype), logits, rtol=0.0, atol=tolerance)
