"""The class of every training row, read from the data set without loading its rows."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import wraps
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow.compute
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from itra_hf.labels import label_kind, label_name

COLUMNS = (Sequence, np.ndarray, Tensor, pandas.Series)
PROBED = 256  # rows that are collated at most, to see which of several columns the model gets

Collate = Callable[[list[int]], Any]


def label_names(names: Sequence[str] | None) -> tuple[str, ...]:
    """The columns that could hold the labels: the one of Trainer's `label_names`, then those that collators rename."""
    return tuple(dict.fromkeys([label_name(names), "labels", "label", "label_ids"]))


def class_column(dataset: Any, model: nn.Module, names: Sequence[str], labels_of: Collate) -> Tensor | None:
    """The class of every row, `[n]` integers that are equal where the labels are.

    Integers stay as they are. Strings, whole decimal numbers and missing values are numbered. Of several columns that
    could hold the labels, the one counts whose rows are alike where the collated labels are.

    Args:
        dataset: as `ITRATrainer.get_train_labels` knows them.
        model: whose config may say that labels are no classes.
        names: of the columns that could hold the labels, the likeliest first.
        labels_of: the labels that the model gets for some rows.

    Returns:
        None where rows have no class, or where it is unknown without loading the rows.
    """
    found = {name: _classes(values) for name, values in _columns(dataset, names).items()}
    known = {name: classes for name, classes in found.items() if classes is not None}
    if len(found) > 1 and known and not (len(known) == len(found) and _are_alike(*known.values())):
        known = _reaching(known, labels_of)
    classes = next(iter(known.values()), None)
    return classes if classes is not None and label_kind(classes, model) == "classes" else None


def first_labels(dataset: Any, names: Sequence[str]) -> list[Any]:
    """The label of the first row, from every column of a `datasets.Dataset` or a list that could hold it."""
    there = _names_in(dataset, names)
    if isinstance(dataset, datasets.Dataset) and there and len(dataset):
        return list(dataset.with_format(None).select_columns(there)[0].values())
    return [dataset[0][name] for name in there] if isinstance(dataset, list) else []


def _names_in(dataset: Any, names: Sequence[str]) -> list[str]:
    """Those of the names that a `datasets.Dataset` or a list of examples has."""
    if isinstance(dataset, datasets.Dataset):
        return [name for name in names if name in dataset.column_names]
    first = dataset[0] if isinstance(dataset, list) and dataset else None
    return [name for name in names if name in first] if isinstance(first, Mapping) else []


def _columns(dataset: Any, names: Sequence[str]) -> dict[str, np.ndarray | None]:
    """What could be the labels of all rows, `[n]`, by its name; None where rows have none or several."""
    if isinstance(dataset, Subset):
        indices, whole = np.asarray(dataset.indices, dtype=np.int64), _columns(dataset.dataset, names)
        return {name: None if values is None else values[indices] for name, values in whole.items()}
    if isinstance(dataset, ConcatDataset):
        return _joined([_columns(part, names) for part in dataset.datasets])
    if isinstance(dataset, TensorDataset):
        integers = [tensor for tensor in dataset.tensors if not (tensor.is_floating_point() or tensor.is_complex())]
        return {str(number): _flat(each) for number, each in enumerate(integers) if _is_one(each[:1])}
    if isinstance(dataset, (datasets.Dataset, list)):
        read = _of_rows if isinstance(dataset, list) else _arrow_column
        return {name: _flat(read(dataset, name)) for name in _names_in(dataset, names)}
    kept = {name: _attribute(dataset, name) for name in ("targets", "labels")}  # as in torchvision
    return {name: _flat(values) for name, values in kept.items() if values is not None}


def _joined(parts: list[dict[str, np.ndarray | None]]) -> dict[str, np.ndarray | None]:
    joined: dict[str, np.ndarray | None] = {}
    for name in parts[0]:
        columns = [values for part in parts if (values := part.get(name)) is not None]
        joined[name] = np.concatenate(columns) if len(columns) == len(parts) else None
    return joined


def _or_none(read: Callable[..., Any]) -> Callable[..., Any]:
    """None where reading fails, however: rows whose classes cannot be read can still be trained in a random order."""

    @wraps(read)
    def guarded(*args: Any) -> Any:
        try:
            return read(*args)
        except Exception:
            return None

    return guarded


@_or_none
def _arrow_column(dataset: datasets.Dataset, name: str) -> Any:
    """A column without transform; of lists, pictures and other structures only lists of one entry are read."""
    is_scalar = isinstance(dataset.features[name], (datasets.Value, datasets.ClassLabel))
    if not is_scalar and not _is_one(next(iter(first_labels(dataset, [name])), [])):
        return None
    column, indices = dataset.data.column(name), dataset._indices  # whose public ways gather row by row
    column = column if indices is None else column.take(indices.column(0))
    while pyarrow.types.is_nested(column.type):
        lengths = pyarrow.compute.min_max(pyarrow.compute.list_value_length(column))  # only of lists; else an error
        if column.null_count or set(lengths.as_py().values()) != {1}:
            return None
        column = pyarrow.compute.list_flatten(column)
    if pyarrow.types.is_primitive(column.type):
        return column.to_numpy()
    coded = column.combine_chunks().dictionary_encode()  # one object for each class, not for each row
    known = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
    return known[coded.indices.fill_null(-1)]


@_or_none
def _of_rows(rows: list[Mapping[str, Any]], name: str) -> list[Any]:
    return [row.get(name) for row in rows]


@_or_none
def _attribute(dataset: Any, name: str) -> Any:
    """Labels that a data set keeps; None where it keeps something else."""
    values = getattr(dataset, name)
    return values if isinstance(values, COLUMNS) and len(values) == len(dataset) else None


@_or_none
def _flat(values: Any) -> np.ndarray | None:
    """One value for each row, `[n]`; None where a row has none or several."""
    if isinstance(values, (Tensor, pandas.Series)):
        values = values.numpy(force=True) if isinstance(values, Tensor) else values.to_numpy()
    if not _is_one(values[0]):
        return None
    if isinstance(values[0], str) or values[0] is None:  # else an array has the space of the longest for each
        return np.fromiter(values, dtype=object, count=len(values))
    array = np.asarray(values)
    return array.reshape(-1) if array.size == len(values) else None


def _is_one(label: Any) -> bool:
    """Whether the label of a row is one value, and no vector, picture or structure."""
    if isinstance(label, (Tensor, np.ndarray)):
        return label.size == 1 if isinstance(label, np.ndarray) else label.numel() == 1
    if isinstance(label, (list, tuple)):
        return len(label) == 1 and _is_one(label[0])
    return isinstance(label, Hashable)


def _classes(values: np.ndarray | None) -> Tensor | None:
    """Numbers for the values, equal where these are; None where they are no classes."""
    if values is None or values.dtype.kind == "c":
        return None
    if values.dtype.kind in "iub":
        return torch.as_tensor(values.astype(np.int64))  # a copy, because arrow's memory is read-only
    try:
        codes, known = pandas.factorize(values, use_na_sentinel=False)
    except TypeError:  # such as dicts
        return None
    decimals = [value for value in known if isinstance(value, (float, np.floating)) and np.isfinite(value)]
    return None if any(value % 1 for value in decimals) else torch.as_tensor(codes)


def _reaching(known: dict[str, Tensor], labels_of: Collate) -> dict[str, Tensor]:
    """Of several columns those that the model gets; all where that is unknown."""
    rows = np.unique(np.stack([np.asarray(classes) for classes in known.values()]), axis=1, return_index=True)[1]
    rows = rows[:PROBED]
    given = labels_of(rows.tolist())
    if given is None:
        return known
    labels = _classes(_flat(given)) if isinstance(given, COLUMNS) else None
    if labels is None or len(labels) != len(rows):
        return {}
    return {name: classes for name, classes in known.items() if _are_alike(classes[rows], labels)}


def _are_alike(*columns: Tensor) -> bool:
    """Whether rows that are of one class in one column are so in all."""
    first, *others = (pandas.factorize(np.asarray(classes))[0] for classes in columns)
    return all(np.array_equal(first, other) for other in others)
