"""The classifier's input: found once in any model, read at every forward pass, one row per example.

The head is the last linear layer called in a forward pass whose output explains the logits. Its name does not
matter, and neither does the order in which modules are defined. Where the logits are the average of two heads, the
features are both inputs side by side, for the average is one linear map of these, `[W1 / 2, W2 / 2]`; heads that share
an input have it once, and the map `(W1 + W2) / 2`.

The rule on dropout: where one stands before the head, the features are what the head is given, after the dropout
(`benchmarks/dropout.py` compares this with the other choice).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from itra_hf.reader import FeatureReader, attended, masked_mean, probing, which_call

FindReader = Callable[[nn.Module, Mapping[str, Any]], FeatureReader]


class HeadNotFoundError(ValueError):
    """The model has no linear classification head whose input could be matched."""


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


def logits_of(outputs: Any) -> Tensor | None:
    """The logits in what a model returned: by name, else the first tensor with rows; None without any."""
    if isinstance(outputs, Mapping):
        if isinstance(outputs.get("logits"), Tensor):
            return cast(Tensor, outputs["logits"])
        outputs = tuple(outputs.values())
    entries = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return next((entry for entry in entries if isinstance(entry, Tensor) and entry.ndim >= 2), None)


class HeadInput(FeatureReader):
    """Reads the input of a model's classification head, one row per example.

    Args:
        head: the linear layer that makes the logits, or the two whose average they are.
        pooling: how the model gets from the head's output to the logits: `"row"` (one output per example),
            `"picked"` (the head is applied to every token and one is picked) or `"mean"` (the outputs are averaged
            over the attention mask).
        which: as of `FeatureReader`, for each head.

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
        self, head: nn.Linear | tuple[nn.Linear, ...], pooling: str, which: tuple[int | None, ...] = ()
    ) -> None:
        self.heads = head if isinstance(head, tuple) else (head,)
        super().__init__(self.heads, which or [None] * len(self.heads))
        self.pooling = pooling

    @classmethod
    def find(cls, model: nn.Module, inputs: Mapping[str, Any]) -> Self:
        """Find the head by one forward pass of `inputs`, which leaves model and random state as they were.

        Raises:
            HeadNotFoundError: if no linear layer's output explains the logits.
        """
        called: list[nn.Linear] = []
        given: list[Tensor] = []

        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            called.append(cast(nn.Linear, module))
            given.append(output)

        candidates = head_candidates(model) or linear_layers(model)  # a config may be that of the backbone alone
        handles = [linear.register_forward_hook(record) for linear in candidates]
        try:
            with probing(model):
                logits = logits_of(model(**inputs))
        finally:
            for handle in handles:
                handle.remove()
        if logits is not None and logits.ndim == 2:
            last_first = range(len(called))[::-1]
            for call in last_first:
                pooling = _explain(given[call], logits, inputs.get("attention_mask"))
                if pooling is not None:
                    return cls(called[call], pooling, (which_call(called, call),))
            for second, first in combinations(last_first, 2):
                pair = (first, second)
                shapes = {given[call].shape for call in pair} | {logits.shape}
                if len(shapes) == 1 and _close((given[first] + given[second]) / 2, logits):
                    return cls((called[first], called[second]), "row", tuple(which_call(called, call) for call in pair))
        raise HeadNotFoundError(
            f"{type(model).__name__} has no linear layer whose output makes its logits, so the classifier's input is "
            "not known; set feature_layer to the index of a hidden state to match that instead (with a matching_loss "
            "of your own where none of the built-in forms fits), or train with matching='none'"
        )

    @property
    def head(self) -> nn.Linear:
        """The head; the first of two."""
        return self.heads[0]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the heads were given in the last forward pass, each tensor once: one, or one for each of two heads."""
        return tuple({id(args[0]): args[0] for args, _ in self._calls}.values())

    @property
    def full(self) -> Tensor | None:
        """The head's full input in the last forward pass; the inputs of two heads side by side are a copy."""
        inputs = self.inputs
        return torch.cat(inputs, -1) if len(inputs) > 1 else inputs[0] if inputs else None

    def gradient(self, rows: Tensor, at_logits: Tensor) -> Tensor:
        """The gradient at the features of the last forward pass, `[rows, d]`, that a gradient at the logits makes.

        An adapter around a head has its part in it, but for the adapter's dropout: that mask is lost with the pass.
        """
        heads = nn.ModuleList(self.heads)
        rows = torch.zeros_like(rows, dtype=next(heads.parameters()).dtype, requires_grad=True)  # for the map is affine
        widths = [part.shape[-1] for part in self.inputs]
        parts = rows.split(widths, -1) if len(widths) > 1 else [rows] * len(heads)
        with probing(heads), torch.enable_grad():
            logits = torch.stack([head.forward(part) for head, part in zip(self.heads, parts, strict=True)]).mean(0)
        return torch.autograd.grad(logits, rows, at_logits.to(logits.dtype))[0]

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Within this context, under `torch.no_grad`, the graph begins at the head's input: body without, head with."""
        leaves: dict[int, Tensor] = {}  # heads that share an input keep sharing it

        def begin(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            torch.set_grad_enabled(True)
            return (leaves.setdefault(id(args[0]), args[0].detach().requires_grad_()), *args[1:])

        handles = [head.register_forward_pre_hook(begin) for head in self.heads]
        try:
            with torch.no_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def rows(self, outputs: Any, attention_mask: Tensor | None = None) -> Tensor:
        """The features of the last forward pass, `[rows, d]`, with gradient: what the head made each row's logits of.

        Args:
            outputs: what the model returned.
            attention_mask: `[rows, tokens]`, as the model got it.

        Raises:
            RuntimeError: if the head was not called since the hook was put on or cleared.
        """
        logits, full = logits_of(outputs), self.full
        if full is None or logits is None:
            raise RuntimeError(
                "the classification head was not reached in the last forward pass; a model compiled before the hook "
                "was put on ignores it: let ITRATrainer compile the model (torch_compile=True)"
            )
        if self.pooling == "row":
            return full
        tokens = full.flatten(1, -2)
        if self.pooling == "mean":
            return masked_mean(tokens, attention_mask)
        position = _picked_position(self._calls[0][1].flatten(1, -2), logits, attention_mask)
        return tokens[torch.arange(len(tokens), device=tokens.device), position]


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
        with reader.attached(), probing(model):
            outputs = model(**batch)
            rows.append(reader.rows(outputs, batch.get("attention_mask")).cpu())
    return torch.cat(rows)


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


def _close(average: Tensor, logits: Tensor) -> bool:
    """Whether an average is the logits, up to the rounding of its precision."""
    tolerance = 16 * torch.finfo(average.dtype).eps * float(logits.abs().max())
    return torch.allclose(average.to(logits.dtype), logits, rtol=0.0, atol=tolerance)


def _picked_position(output: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
    """The token whose head output became the logits, `[rows]`; of several the last one that is attended."""
    distance = (output - logits[:, None]).abs().amax(-1)
    matches = (distance == distance.amin(1, keepdim=True)) * (1 + attended(output, mask))
    tokens = matches.shape[1]
    return (matches * tokens + torch.arange(tokens, device=matches.device)).argmax(1)
