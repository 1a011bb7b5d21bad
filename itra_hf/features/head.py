"""The classifier's input, read at every forward pass, one row per example.

Where the logits are the average of several calls of one head (multi-sample dropout), the feature is the average of its
inputs. Where the logits are the average of two heads, the features are both inputs side by side: the average is one
linear map of these, `[W1 / 2, W2 / 2]`. If both heads share an input, it is taken once, and the map is `(W1 + W2) / 2`.

If there is a dropout before the head, the features are taken after the dropout (`benchmarks/dropout.py` compares both
choices).
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from itra_hf.features.pooling import picked, pooled
from itra_hf.features.reader import FeatureReader
from itra_hf.features.recorder import Call, Recorder, logits_at


class HeadInput(FeatureReader):
    """Reads the input of a model's classification head, one row per example.

    Args:
        head: the module that makes the logits; or, if the logits are an average, one module for each call.
        pooling: how the model gets from the head's output to the logits: `"row"` (one output per example), `"picked"`
            (the head is applied to every token and one is picked) or `"mean"` (the outputs are averaged over the
            attention mask). For a module whose output does not make the logits: `"first"`, `"last"` or `"mean"` of its
            input tokens; for a map `[rows, d, height, width]` `"places"`, the mean over its positions.
        call_index: see `FeatureReader`.
        place: see `FeatureReader`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> class Classifier(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)
        ...     def forward(self, x):
        ...         return {"logits": self.head(self.body(x).relu())}
        >>> model, inputs = Classifier(), {"x": torch.randn(5, 4)}
        >>> from itra_hf.features import find_head
        >>> head_input = find_head(model, inputs)
        >>> with head_input.attached():
        ...     outputs = model(**inputs)
        ...     rows = head_input.rows(outputs)
        >>> rows.shape, torch.equal(model.head(rows), outputs["logits"])
        (torch.Size([5, 3]), True)
    """

    def __init__(
        self,
        head: nn.Module | tuple[nn.Module, ...],
        pooling: str,
        call_index: tuple[int | None, ...] = (),
        place: Any = "logits",
    ) -> None:
        modules = head if isinstance(head, tuple) else (head,)
        super().__init__(modules, call_index or [None] * len(modules), outputs=pooling == "picked", place=place)
        self.heads = tuple(dict.fromkeys(modules))
        self.head = self.heads[0]
        self.pooling = pooling

    def differs_from(self, other: "HeadInput", seen: Recorder) -> bool:
        """Whether another way to the same logits gives other features, in this pass or with other tokens."""
        if self.pooling != other.pooling:
            return True
        chosen = [(each, each.select(seen.calls)) for each in (self, other)]
        ours, theirs = (each.pool(each.tensors(own), own, seen.outputs, seen.mask) for each, own in chosen)
        return not torch.allclose(ours, theirs, equal_nan=True)

    def tensors(self, calls: Sequence[Call]) -> tuple[Tensor, ...]:
        """The inputs of the heads, each tensor once."""
        return tuple({id(call.given): call.given for call in calls if call.given is not None}.values())

    def pool(self, tensors: Sequence[Tensor], calls: Sequence[Call], outputs: Any, mask: Tensor | None) -> Tensor:
        """The features from which the head made each row's logits, `[rows, d]`."""
        if len(tensors) == 1:
            full = tensors[0]
        elif len(self.heads) == 1:
            full = torch.stack(tuple(tensors)).mean(0)
        else:
            full = torch.cat(tuple(tensors), -1)
        if self.pooling != "picked":
            return pooled(full, self.pooling, mask)
        logits = cast(Tensor, logits_at(outputs, self.place)).detach()
        return picked(full.flatten(1, -2), calls[0].output.detach().flatten(1, -2), logits, mask)

    def describe(self, names: Mapping[nn.Module, str]) -> str:
        """The names of the heads, and the number of their calls."""
        heads = " and ".join(repr(names.get(head, "")) for head in self.heads)
        calls = f", the mean of {len(self.modules)} calls" if len(self.modules) > 1 else ""
        return f"the input of {heads}{calls}"

    def cutting_hooks(self) -> list[RemovableHandle]:
        """The graph begins at the head's input."""
        leaves: dict[int, tuple[Tensor, Tensor]] = {}  # heads that share an input keep sharing it

        def leaf(entry: Any) -> Any:
            if not (isinstance(entry, Tensor) and entry.is_floating_point()):
                return entry
            return leaves.setdefault(id(entry), (entry, entry.detach().requires_grad_()))[1]

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            torch.set_grad_enabled(True)
            return tuple(map(leaf, args)), {name: leaf(entry) for name, entry in kwargs.items()}

        return [head.register_forward_pre_hook(begin, with_kwargs=True, prepend=True) for head in self.heads]
