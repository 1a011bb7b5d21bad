"""The classifier's input: found once in any model, read at every forward pass, one row per example.

The head is the last `nn.Linear` called in a forward pass whose output explains the logits. Its name does not
matter, and neither does the order in which modules are defined.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class HeadNotFoundError(ValueError):
    """The model has no linear classification head whose input could be matched."""


def head_candidates(model: nn.Module) -> list[nn.Linear]:
    """The linear layers that could be the head: as many outputs as the config has labels (all, without a config)."""
    num_labels = getattr(getattr(model, "config", None), "num_labels", None)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [linear for linear in linears if num_labels is None or linear.out_features == num_labels]


def logits_of(outputs: Any) -> Tensor | None:
    """The logits in what a model returned: by name, or the first tensor with rows in a tuple; None without any."""
    if isinstance(outputs, Mapping):
        logits = outputs.get("logits")
        return logits if isinstance(logits, Tensor) else None
    entries = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return next((entry for entry in entries if isinstance(entry, Tensor) and entry.ndim >= 2), None)


class HeadInput:
    """Reads the input of a model's classification head, one row per example.

    Args:
        head: the linear layer that makes the logits.
        pooling: how the model gets from the head's output to the logits: `"row"` (one output per example),
            `"picked"` (the head is applied to every token and one is picked) or `"mean"` (the outputs are averaged
            over the attention mask).

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

    def __init__(self, head: nn.Linear, pooling: str) -> None:
        self.head = head
        self.pooling = pooling
        self.loss_is_known = False
        self.full: Tensor | None = None
        self._output: Tensor | None = None
        self._handle: RemovableHandle | None = None

    @classmethod
    def find(cls, model: nn.Module, inputs: Mapping[str, Any]) -> Self:
        """Find the head by one forward pass of `inputs`, which leaves model and random state as they were.

        Raises:
            HeadNotFoundError: if no linear layer's output explains the logits.
        """
        calls: list[tuple[nn.Linear, Tensor]] = []

        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            calls.append((module, output))  # type: ignore[arg-type]

        handles = [linear.register_forward_hook(record) for linear in head_candidates(model)]
        try:
            with _probing(model):
                logits = logits_of(model(**inputs))
        finally:
            for handle in handles:
                handle.remove()
        if logits is not None:
            for module, output in reversed(calls):
                pooling = _explain(output, logits, inputs.get("attention_mask"))
                if pooling is not None:
                    return cls(module, pooling)
        raise HeadNotFoundError(
            f"{type(model).__name__} has no linear layer whose output makes its logits, so its features are not known; "
            "train with matching='none', or give a model with a classification head"
        )

    @contextmanager
    def attached(self) -> Iterator[Self]:
        """Read every forward pass within this context, and leave no hook behind."""
        self.attach()
        try:
            yield self
        finally:
            self.detach()

    def attach(self) -> None:
        """Put the hook on the head, once."""
        if self._handle is None:
            self._handle = self.head.register_forward_hook(self._read)

    def detach(self) -> None:
        """Take the hook off the head."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.clear()

    def clear(self) -> None:
        """Forget the last forward pass."""
        self.full = self._output = None

    def _read(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.full, self._output = args[0], output

    def rows(self, outputs: Any, attention_mask: Tensor | None = None) -> Tensor:
        """The features of the last forward pass, `[rows, d]`, with gradient: what the head made each row's logits of.

        Args:
            outputs: what the model returned.
            attention_mask: `[rows, tokens]`, as the model got it.

        Raises:
            RuntimeError: if the head was not called since the hook was put on or cleared.
        """
        logits = logits_of(outputs)
        if self.full is None or self._output is None or logits is None:
            raise RuntimeError(
                "the classification head was not reached in the last forward pass; a model compiled before the hook "
                "was put on ignores it: let ITRATrainer compile the model (torch_compile=True)"
            )
        if self.pooling == "row":
            return self.full
        tokens = self.full.flatten(1, -2)
        if self.pooling == "mean":
            return _masked_mean(tokens, attention_mask)
        position = _picked_position(self._output.flatten(1, -2), logits, attention_mask)
        return tokens[torch.arange(len(tokens), device=tokens.device), position]


def extract_features(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> Tensor:
    """The features of every example in `batches`, `[rows, d]` on the CPU, in evaluation mode and without gradient.

    Args:
        model: a classification model.
        batches: keyword arguments of the model, batch by batch, on the model's device.

    Raises:
        HeadNotFoundError: if the model has no linear classification head.
    """
    rows: list[Tensor] = []
    head_input: HeadInput | None = None
    for batch in batches:
        head_input = head_input or HeadInput.find(model, batch)
        with head_input.attached(), _probing(model):
            outputs = model(**batch)
            rows.append(head_input.rows(outputs, batch.get("attention_mask")).float().cpu())
    return torch.cat(rows)


@contextmanager
def _probing(model: nn.Module) -> Iterator[None]:
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


def _explain(output: Tensor, logits: Tensor, mask: Tensor | None) -> str | None:
    """How the logits come from the head's output, or None if they don't."""
    if output.ndim < 2 or len(output) != len(logits) or output.shape[-1] != logits.shape[-1] or logits.ndim != 2:
        return None
    if output.ndim == 2:
        return "row" if torch.equal(output.to(logits.dtype), logits) else None
    output = output.flatten(1, -2)
    if (output == logits[:, None]).all(-1).any(1).all():
        return "picked"
    if mask is not None and mask.shape != output.shape[:2]:
        return None
    return "mean" if torch.allclose(_masked_mean(output, mask).to(logits.dtype), logits, atol=1e-5) else None


def _picked_position(output: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
    """The token whose head output became the logits, `[rows]`; of several the last one that is attended."""
    matches = (output == logits[:, None]).all(-1).long()
    if mask is not None and mask.shape == matches.shape:
        matches = matches * (1 + mask.long())
    tokens = matches.shape[1]
    return (matches * tokens + torch.arange(tokens, device=matches.device)).argmax(1)


def _masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return tokens.mean(1)
    weights = mask.to(tokens.dtype)[..., None]
    return (tokens * weights).sum(1) / weights.sum(1)
