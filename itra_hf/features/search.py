"""The search for a model's head: the one linear layer whose output explains the logits of a forward pass.

The layer's name does not matter, and the order in which modules are defined does not either. Where several layers
explain the logits, an error asks the user to name one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from itra_hf.features.head import HeadInput
from itra_hf.features.layers import linear_layers, listed, module_named
from itra_hf.features.pooling import masked_mean
from itra_hf.features.reader import AmbiguousHeadError, FeatureReader, HeadNotFoundError
from itra_hf.features.recorder import Call, Recorder, possible_logits
from itra_hf.features.undisturbed import undisturbed

FindReader = Callable[[nn.Module, Mapping[str, Any]], FeatureReader]


def find_head(model: nn.Module, inputs: Mapping[str, Any]) -> HeadInput:
    """Find the head by one forward pass of `inputs`, which leaves model and random state as they were.

    Raises:
        HeadNotFoundError: if no linear layer's output explains the logits, or several do.
    """
    recorder = Recorder(linear_layers(model))
    with recorder.on(model), undisturbed(model), torch.no_grad():
        model(**inputs)
    return head_in(model, recorder, patient=False)


def extract_features(model: nn.Module, batches: Iterable[Mapping[str, Any]], find: FindReader = find_head) -> Tensor:
    """The features of every example in `batches`, `[rows, d]` on the CPU, in evaluation mode and without gradient.

    They keep the model's dtype, because `compactness` needs it to tell rounding from scatter; numpy has no bfloat16.

    Args:
        model: a classification model.
        batches: keyword arguments of the model, batch by batch, on the model's device.
        find: takes the model and the first batch, and returns a reader; by default one of the classifier's input.

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


def head_in(model: nn.Module, seen: Recorder, patient: bool) -> HeadInput:
    """The head, given the calls of a model's linear layers in a forward pass.

    Raises:
        AmbiguousHeadError: if several layers explain the logits; or if one layer does so in several ways, and `patient`
            says that a later pass may decide.
        HeadNotFoundError: if none does.
    """
    possible = possible_logits(seen.outputs, getattr(getattr(model, "config", None), "num_labels", None))
    found = {place: _explanations(seen, logits, place) for place, logits in possible.items()}
    heads = [head for explained in found.values() for head in explained]
    if not heads:
        _refuse(model, seen.calls, list(possible.values()))
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
    return _one_way(model, heads, seen, patient)


def named_head(model: nn.Module, name: str, seen: Recorder, pooling: str, patient: bool) -> HeadInput:
    """The input of the module that the user named; if its output is not the logits, its tokens are pooled.

    Raises:
        HeadNotFoundError: if the module was not called, or its input is not features of rows.
    """
    ways = [
        way for place, logits in possible_logits(seen.outputs).items() for way in _explanations(seen, logits, place)
    ]
    if ways:
        return _one_way(model, ways, seen, patient)
    given = seen.calls[-1].given if seen.calls else None
    if given is None or not given.is_floating_point() or given.ndim not in (2, 3, 4):
        what = "no tensor, or was not called with a graph (as within reentrant checkpointing)"
        what = what if given is None else f"{given.dtype} of shape {tuple(given.shape)}"
        raise HeadNotFoundError(
            f"the module {name!r} was given {what}; features must be floats [rows, d], [rows, tokens, d] or "
            "[rows, d, height, width]; take another feature_layer"
        )
    return HeadInput(module_named(model, name), {2: "row", 3: pooling, 4: "places"}[given.ndim])


def refuse_multiple_choice(model: nn.Module) -> NoReturn:
    """Raise `HeadNotFoundError` for a model that has one logit for each choice."""
    raise HeadNotFoundError(
        f"{type(model).__name__} chooses among several texts: each choice has a logit and features of its own, so a "
        "row has none; train with matching='none'"
    )


def _one_way(model: nn.Module, heads: Sequence[HeadInput], seen: Recorder, patient: bool) -> HeadInput:
    """The first of several ways from one layer to the logits, unless they differ and another batch may decide."""
    if patient and any(head.differs_from(heads[0], seen) for head in heads[1:]):
        raise AmbiguousHeadError(
            f"{type(model).__name__} makes its logits of the outputs of {listed(model, heads[0].heads)} in several "
            "ways, as far as one batch shows"
        )
    return heads[0]


def _explanations(seen: Recorder, logits: Tensor, place: Any) -> list[HeadInput]:
    """Every way in which one of these layers outputs the logits; else, ways as averages of two calls."""
    if logits.ndim != 2:
        return []
    logits = logits.detach()
    made = [call for call in seen.calls if isinstance(call.output, Tensor)]

    def way(calls: Sequence[Call], pooling: str) -> HeadInput:
        return HeadInput(tuple(call.module for call in calls), pooling, tuple(map(seen.index, calls)), place)

    found = []
    for module in dict.fromkeys(call.module for call in reversed(made)):
        own = [call for call in made if call.module is module]
        if len(own) > 1 and _is_mean(own, logits):
            found.append(way(own, "row"))
        for call in reversed(own):
            found += [way([call], pooling) for pooling in _poolings(call.output.detach(), logits, seen.mask)]
    if not found:
        fits = [call for call in made if call.output.shape == logits.shape]
        found = [way(pair, "row") for pair in combinations(fits, 2) if _is_mean(pair, logits)]
    return found


def _poolings(output: Tensor, logits: Tensor, mask: Tensor | None) -> list[str]:
    """The ways from a head's output to the logits, by their names in `HeadInput`."""
    if output.ndim < 2 or len(output) != len(logits) or output.shape[-1] != logits.shape[-1]:
        return []
    output, logits = output.nan_to_num(), logits.nan_to_num()  # a row of NaN hides no head
    if output.ndim == 2:
        return ["row"] if torch.equal(output.to(logits.dtype), logits) else []
    output = output.flatten(1, -2)
    is_picked = (output.to(logits.dtype) == logits[:, None]).all(-1).any(1).all()
    return ["picked"] * bool(is_picked) + ["mean"] * _is_close(masked_mean(output, mask), logits)


def _is_mean(calls: Sequence[Call], logits: Tensor) -> bool:
    """Whether the logits are the mean of the outputs of several calls of a head, or of two heads."""
    outputs = [call.output.detach() for call in calls]
    same_shape = all(output.shape == logits.shape for output in outputs)
    return same_shape and _is_close(torch.stack(outputs).mean(0), logits)


def _is_close(average: Tensor, logits: Tensor) -> bool:
    """Whether an average is the logits, up to the rounding of its precision."""
    tolerance = 16 * torch.finfo(average.dtype).eps * float(logits.abs().max())
    return torch.allclose(average.to(logits.dtype), logits, rtol=0.0, atol=tolerance)


def _refuse(model: nn.Module, calls: Sequence[Call], logits: Sequence[Tensor]) -> NoReturn:
    """Raise `HeadNotFoundError`, with the reason why no head was found and the layers that could be meant."""
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
        f"feature_layer{could}"
    )
