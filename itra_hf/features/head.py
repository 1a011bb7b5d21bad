"""The classifier's input: found once in any model, read at every forward pass, one row per example.

The head is the one linear layer whose output explains the logits of a forward pass. Its name does not matter, and
neither does the order in which modules are defined. Where several layers explain them, the user is asked, by an error,
to name one. Where the logits are the average of several calls of
one head (multi-sample dropout), the feature is the average of its inputs. Where they are the average of two heads, the
features are both inputs side by side, for the average is one linear map of these, `[W1 / 2, W2 / 2]`; heads that share
an input have it once, and the map `(W1 + W2) / 2`.

The rule on dropout: where one stands before the head, the features are what the head is given, after the dropout
(`benchmarks/dropout.py` compares this with the other choice).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any, NoReturn, Self, cast

import torch
from torch import Tensor, nn

from itra_hf.features.layers import linear_layers, listed, module_named
from itra_hf.features.pooling import end_token, masked_mean, picked_position, rows_at
from itra_hf.features.reader import AmbiguousHeadError, FeatureReader, HeadNotFoundError
from itra_hf.features.recorder import Call, Recorder, logits_at, possible_logits
from itra_hf.features.undisturbed import undisturbed
from itra_hf.features.ways import is_mean, poolings

FindReader = Callable[[nn.Module, Mapping[str, Any]], FeatureReader]


class HeadInput(FeatureReader):
    """Reads the input of a model's classification head, one row per example.

    Args:
        head: the module that makes the logits, or those whose average they are, one for each call.
        pooling: how the model gets from the head's output to the logits: `"row"` (one output per example),
            `"picked"` (the head is applied to every token and one is picked) or `"mean"` (the outputs are averaged
            over the attention mask). Of a module whose output does not make the logits: `"first"`, `"last"` or `"mean"`
            of the tokens that it is given; of a map `[rows, d, height, width]` `"places"`, the mean over its places.
        call_index: as of `FeatureReader`.
        place: as of `FeatureReader`.

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
        self,
        head: nn.Module | tuple[nn.Module, ...],
        pooling: str,
        call_index: tuple[int | None, ...] = (),
        place: Any = "logits",
    ) -> None:
        modules = head if isinstance(head, tuple) else (head,)
        super().__init__(modules, call_index or [None] * len(modules), outputs=pooling == "picked", place=place)
        self.heads = tuple(dict.fromkeys(modules))
        self.pooling = pooling

    @classmethod
    def find(cls, model: nn.Module, inputs: Mapping[str, Any]) -> Self:
        """Find the head by one forward pass of `inputs`, which leaves model and random state as they were.

        Raises:
            HeadNotFoundError: if no linear layer's output explains the logits, or several do.
        """
        recorder = Recorder(linear_layers(model))
        with recorder.on(), undisturbed(model), torch.no_grad():
            outputs = model(**inputs)
        return cls.only(model, recorder.calls, outputs, inputs.get("attention_mask"), patient=False)

    @classmethod
    def only(
        cls, model: nn.Module, calls: Sequence[Call], outputs: Any, mask: Tensor | None, patient: bool = True
    ) -> Self:
        """The head of a model, given the calls of its linear layers in a forward pass.

        Args:
            model: that has the layers.
            calls: of the layers.
            outputs: of the model.
            mask: `[rows, tokens]`, as the model got it.
            patient: whether another pass may tell what this one leaves open: which call or which tokens of the head.

        Raises:
            AmbiguousHeadError: if several layers explain the logits, or one does in several ways.
            HeadNotFoundError: if none does.
        """
        possible = possible_logits(outputs, getattr(getattr(model, "config", None), "num_labels", None))
        found = {place: cls.explanations(calls, logits, mask, place) for place, logits in possible.items()}
        heads = [head for explained in found.values() for head in explained]
        if not heads:
            _refuse(model, calls, possible)
        names = listed(model, dict.fromkeys(module for head in heads for module in head.heads))
        if len({head.heads for head in heads}) > 1:
            raise AmbiguousHeadError(
                f"{type(model).__name__} has several layers whose outputs are its logits ({names}); name the "
                "classifier by feature_layer"
            )
        if not all(found.values()):
            raise AmbiguousHeadError(
                f"{type(model).__name__} has several outputs that could be its logits; call them 'logits', set "
                f"config.num_labels, or name the classifier by feature_layer (it could be {names})"
            )
        return cls._one_way(model, heads, calls, outputs, mask, patient)

    @classmethod
    def _one_way(
        cls,
        model: nn.Module,
        heads: Sequence[Self],
        calls: Sequence[Call],
        outputs: Any,
        mask: Tensor | None,
        patient: bool,
    ) -> Self:
        """The first of several ways from one layer to the logits, once a batch has told them apart if it may."""
        if patient and any(head.differs_from(heads[0], calls, outputs, mask) for head in heads[1:]):
            raise AmbiguousHeadError(
                f"{type(model).__name__} makes its logits of the outputs of {listed(model, heads[0].heads)} in several "
                "ways, as far as one batch shows"
            )
        return heads[0]

    @classmethod
    def explanations(cls, calls: Sequence[Call], logits: Tensor, mask: Tensor | None, place: Any) -> list[Self]:
        """Every way in which the logits are the outputs of one of these layers; else such averages of two calls."""
        if logits.ndim != 2:
            return []
        logits = logits.detach()
        made = [(call.module, call.output.detach()) for call in calls if isinstance(call.output, Tensor)]
        modules = [module for module, _ in made]
        found = []
        for module in dict.fromkeys(modules[::-1]):
            own = [output for each, output in made if each is module]
            if len(own) > 1 and is_mean(own, logits):
                found.append(cls((module,) * len(own), "row", tuple(range(len(own))), place))
            for number, output in reversed(list(enumerate(own))):
                index = None if len(own) == 1 else number
                found += [cls(module, pooling, (index,), place) for pooling in poolings(output, logits, mask)]
        if found:
            return found
        fits = [number for number, (_, output) in enumerate(made) if output.shape == logits.shape]
        pairs = [pair for pair in combinations(fits, 2) if is_mean([made[number][1] for number in pair], logits)]
        return [
            cls(tuple(modules[n] for n in pair), "row", tuple(_call_index(modules, n) for n in pair), place)
            for pair in pairs
        ]

    def differs_from(self, other: "HeadInput", calls: Sequence[Call], outputs: Any, mask: Tensor | None) -> bool:
        """Whether another way to the same logits gives other features, in this pass or with other tokens."""
        if self.pooling != other.pooling:
            return True
        chosen = [(each, each.select(calls)) for each in (self, other)]
        ours, theirs = (each.pool(each.tensors(own), own, outputs, mask) for each, own in chosen)
        return not torch.allclose(ours, theirs, equal_nan=True)

    @classmethod
    def named(
        cls,
        model: nn.Module,
        name: str,
        calls: Sequence[Call],
        outputs: Any,
        mask: Tensor | None,
        pooling: str,
        patient: bool = True,
    ) -> Self:
        """The input of the module that the user has named, whether its output is the logits or not.

        Args:
            model: that has the module.
            name: as of `module_named`.
            calls: of the module, in a forward pass.
            outputs: of the model.
            mask: `[rows, tokens]`, as the model got it.
            pooling: of tokens, where the output is not the logits.
            patient: as of `only`.

        Raises:
            HeadNotFoundError: if the module was not called, or with something else than features of rows.
        """
        module = module_named(model, name)
        possible = possible_logits(outputs)
        ways = [way for place, logits in possible.items() for way in cls.explanations(calls, logits, mask, place)]
        if ways:
            return cls._one_way(model, ways, calls, outputs, mask, patient)
        given = calls[-1].given if calls else None
        if given is None or not given.is_floating_point() or given.ndim not in (2, 3, 4):
            what = "no tensor, or was not called with a graph (as within reentrant checkpointing)"
            what = what if given is None else f"{given.dtype} of shape {tuple(given.shape)}"
            raise HeadNotFoundError(
                f"the module {name!r} was given {what}, and features are floats [rows, d], [rows, tokens, d] or "
                "[rows, d, height, width]; take another feature_layer"
            )
        poolings = {2: "row", 3: pooling, 4: "places"}
        return cls(module, poolings[given.ndim])

    @property
    def head(self) -> nn.Module:
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
        if self.pooling == "places":
            return full.mean((2, 3))
        tokens = full.flatten(1, -2)
        if self.pooling == "mean":
            return masked_mean(tokens, mask)
        if self.pooling == "picked":
            logits = cast(Tensor, logits_at(outputs, self.place)).detach()
            return rows_at(tokens, picked_position(calls[0].output.detach().flatten(1, -2), logits, mask))
        return end_token(tokens, mask, last=self.pooling == "last")

    def describe(self, names: Mapping[nn.Module, str]) -> str:
        """The heads by name, and how often each is called."""
        heads = " and ".join(repr(names.get(head, "")) for head in self.heads)
        calls = f", the mean of {len(self.modules)} calls" if len(self.modules) > 1 else ""
        return f"the input of {heads}{calls}"

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


def refuse_multiple_choice(model: nn.Module) -> NoReturn:
    """Raise `HeadNotFoundError` for a model that has one logit for each choice."""
    raise HeadNotFoundError(
        f"{type(model).__name__} chooses among several texts: each choice has a logit and features of its own, so a "
        "row has none; train with matching='none'"
    )


def _refuse(model: nn.Module, calls: Sequence[Call], possible: Mapping[Any, Tensor]) -> NoReturn:
    """Raise `HeadNotFoundError`, with what stands in the way of finding a head and which layers could be meant."""
    logits = list(possible.values())
    for output in (call.output for call in calls if isinstance(call.output, Tensor) and call.output.shape[-1] == 1):
        alike = [entry for entry in logits if output.numel() == entry.numel() > len(entry)]
        if any(torch.equal(output.reshape(entry.shape).to(entry.dtype), entry) for entry in alike):
            refuse_multiple_choice(model)
    widths = {entry.shape[-1] for entry in logits}
    called = list(dict.fromkeys(call.module for call in calls))[::-1]
    fit = [module for module in called if cast(nn.Linear, module).out_features in widths] or called
    names = listed(model, fit[:3])
    could = f" (it could be {names})" if names else ""
    raise HeadNotFoundError(
        f"{type(model).__name__} has no linear layer whose output makes its logits; name the classifier by "
        f"feature_layer{could}, or take a hidden state (with a matching_loss of your own where no form fits)"
    )


def _call_index(modules: Sequence[nn.Module], number: int) -> int | None:
    """Of modules in the order of their calls, which of its own calls one is; None if it is the only."""
    module = modules[number]
    return None if modules.count(module) == 1 else modules[:number].count(module)
