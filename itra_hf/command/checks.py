"""Checks of the data; an error names the file, the row and the column."""

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Audio, ClassLabel, Dataset, Features, Image, Value
from tqdm.auto import tqdm

LARGEST = 3.4e38  # of float32, in which a label is kept; above it, as NaN, it is not a number to train with
PICTURES = 10_000  # are checked before the first step

TEXTS = (Value("string"), Value("large_string"))
Places = Mapping[str, str]  # of each split: its file or data set


def check_columns(features: Features, columns: list[str], label: str, place: str) -> None:
    """Refuse columns that are missing, or that no task has, with file and column."""
    there = ", ".join(features)
    missing = [name for name in (*columns, label) if name not in features]
    if missing:
        hint = "; its pictures lie in a folder for each class" if there in ("image", "audio") else ""
        raise ValueError(f"{place} has no column {missing[0]!r}; it has {there}{hint}")
    if label in columns:
        raise ValueError(f"column {label!r} holds the labels and is no input; give another --input_column, of {there}")
    kinds = [features[name] for name in columns]
    texts = [kind in TEXTS for kind in kinds]
    if len(columns) > 2 or len(set(columns)) < len(columns) or (len(columns) > 1 and not all(texts)):
        raise ValueError(
            f"got input_column={', '.join(columns)}; give one column of texts, images or sounds, or two of texts"
        )
    if not texts[0] and not isinstance(kinds[0], (Audio, Image)):
        held = kinds[0].dtype if isinstance(kinds[0], Value) else type(kinds[0]).__name__
        raise ValueError(f"{place}, column {columns[0]!r}: it holds {held}, and an input is texts, images or sounds")


def check_labels(splits: Mapping[str, Dataset], places: Places, column: str) -> None:
    """Refuse rows without a label, and numbers that would turn the weights into NaN, with file, row and column."""
    for split, rows in splits.items():
        labels = rows["labels"][:]
        missing = labels.count(None)
        if missing:
            raise ValueError(
                f"{places[split]}, row {labels.index(None) + 1}, column {column!r}: {missing} of the {len(rows)} "
                f"{split} rows have no label; take them out, or give each its label"
            )
        is_class = isinstance(rows.features["labels"], ClassLabel)
        for number, label in enumerate(labels, 1):
            if (is_class and label < 0) or (isinstance(label, float) and not abs(label) <= LARGEST):
                raise ValueError(
                    f"{places[split]}, row {number}, column {column!r}: the label is {label}; take the row out, or "
                    "give it a number"
                )


def check_classes(splits: Mapping[str, Dataset], places: Places) -> None:
    """Refuse labels that no row to train on has, with file, row and label."""
    feature = splits["train"].features["labels"]
    name = feature.int2str if isinstance(feature, ClassLabel) else str
    known = set(splits["train"].unique("labels"))
    for split, rows in splits.items():
        for number, label in enumerate(rows["labels"][:], 1):
            if label not in known:
                listed = ", ".join(sorted(map(name, known))[:10]) + (" ..." if len(known) > 10 else "")
                raise ValueError(
                    f"{places[split]}, row {number}: the label {name(label)!r} is none of the training rows' labels, "
                    f"which are {listed}; fix it, or take the row out"
                )


def check_counts(labels: Iterable[int], names: list[str]) -> None:
    """Refuse to hold out a fifth of a class that has one row."""
    for label, count in Counter(labels).items():
        if count == 1:
            raise ValueError(
                f"the class {names[label]!r} has one row, but a fifth of each class is held out for evaluation; give "
                "--validation_file, or more rows of it"
            )


def check_inputs(splits: Mapping[str, Dataset], places: Places, columns: list[str]) -> None:
    """Refuse empty cells, which no tokenizer takes, and broken pictures, with file, row and column."""
    for split, rows in splits.items():
        for column in columns:
            cells = rows.with_format("arrow").select_columns([column])[:].column(column)
            if cells.null_count:
                number = cells.is_null().to_pylist().index(True) + 1
                raise ValueError(
                    f"{places[split]}, row {number}, column {column!r}: the cell is empty; take the row out, or fill it"
                )
            if isinstance(rows.features[column], Image):
                _check_pictures(rows.select(range(min(len(rows), PICTURES))), column, places[split])


def _check_pictures(rows: Dataset, column: str, place: str) -> None:
    cells = tqdm(rows.cast_column(column, Image(decode=False))[column], "looking at pictures", leave=False)
    for number, cell in enumerate(cells, 1):
        try:
            picture = PIL.Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))
            picture.verify()
        except Exception as error:  # whatever a decoder may raise
            raise broken_picture(cell, f"{place}, row {number}", error) from error


def broken_picture(cell: Mapping[str, Any], place: str, error: Exception) -> ValueError:
    """The error for a picture that cannot be decoded; it names the file, if there is one."""
    name = cell["path"] if cell["path"] and Path(cell["path"]).exists() else place
    return ValueError(f"{name} is a broken picture ({error}); take it out, or fix it")
