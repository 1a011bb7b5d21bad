"""The data of the command line: a data set of the Hub, a folder or a file, read into a training and a test split."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Audio, ClassLabel, Dataset, DatasetDict, Image, Value, load_dataset

READERS: dict[str, tuple[str, dict[str, str]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
}


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class TaskArguments:
    """The model and the data; the data say whether it is texts, images or sounds."""

    model_name_or_path: str = field(default="", metadata=_help("A model of the Hub, or its folder."))
    dataset_name: str | None = field(
        default=None, metadata=_help("A data set of the Hub, or a folder of images or sounds, one folder per class.")
    )
    dataset_config_name: str | None = field(default=None, metadata=_help("Its configuration."))
    train_file: str | None = field(default=None, metadata=_help("A csv, tsv, json or jsonl file, in place of it."))
    validation_file: str | None = field(
        default=None, metadata=_help("The same, to evaluate on; without one, a fifth of the rows is held out.")
    )
    input_column: list[str] | None = field(
        default=None, metadata=_help("The column of the texts (two for pairs), images or sounds; found if it is one.")
    )
    label_column: str | None = field(
        default=None, metadata=_help("The column of the labels: classes, or decimal numbers; 'label' or 'labels'.")
    )
    max_length: int = field(default=128, metadata=_help("Longer texts are cut to this many tokens."))
    max_seconds: float = field(default=10.0, metadata=_help("Longer sounds are cut to this length."))
    max_train_samples: int | None = field(default=None, metadata=_help("Train on this many random rows."))

    def __post_init__(self) -> None:
        if isinstance(self.input_column, str):  # one in a yaml file
            self.input_column = [self.input_column]
        if not self.model_name_or_path:
            raise ValueError("no model; give --model_name_or_path, a name on the Hub or a folder")
        if bool(self.dataset_name) == bool(self.train_file):
            raise ValueError(
                f"got dataset_name={self.dataset_name!r} and train_file={self.train_file!r}; give one of the two"
            )
        for name, goes_with, given in (
            ("validation_file", "train_file", "dataset_name"),
            ("dataset_config_name", "dataset_name", "train_file"),
        ):
            if getattr(self, name) and getattr(self, given):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} goes with {goes_with}, not with {given}={getattr(self, given)!r}; "
                    f"leave it out, or give {goes_with}"
                )
        for name in ("max_length", "max_seconds", "max_train_samples"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be positive")


class Rows(NamedTuple):
    """Rows to train on and to test on.

    Args:
        train, test: rows with the columns of inputs and the column `labels`.
        columns: of the inputs: one, or two for pairs of texts.
        kind: `"text"`, `"image"` or `"audio"`.
        names: of the classes; None where labels are decimal numbers.
    """

    train: Dataset
    test: Dataset
    columns: list[str]
    kind: str
    names: list[str] | None


def read_rows(data: TaskArguments, seed: int) -> Rows:
    """Read the data and find out what they are.

    Args:
        data: the arguments.
        seed: of the rows that are drawn or held out.

    Raises:
        ValueError: where a file is of no known kind, the training split or a column is missing, or labels are neither
            a class nor a number, or missing, NaN or infinite in a row.
    """
    splits = _read(data)
    if "train" not in splits:
        raise ValueError(f"no split 'train'; the data have {', '.join(splits)}")
    used = ("train", "validation" if "validation" in splits else "test")
    splits = DatasetDict({name: splits[name] for name in used if name in splits})
    columns, label, kind = _columns(splits["train"], data)
    splits = splits.select_columns([*columns, label]).rename_columns({} if label == "labels" else {label: "labels"})
    _check_labels(splits, data, label)
    _check_inputs(splits, data, columns)
    splits, names = _with_classes(splits)
    train, test = _split(splits, names is not None, data.max_train_samples, seed)
    return Rows(train, test, columns, kind, names)


def _read(data: TaskArguments) -> DatasetDict:
    """The data set's splits, or the files'."""
    if data.dataset_name:
        return load_dataset(data.dataset_name, data.dataset_config_name)
    splits = DatasetDict()
    for split, path in (("train", data.train_file), ("validation", data.validation_file)):
        if path:
            if Path(path).suffix.lower() not in READERS:
                raise ValueError(f"cannot read {path}; give a file that ends in {', '.join(READERS)}")
            reader, options = READERS[Path(path).suffix.lower()]
            splits[split] = load_dataset(reader, data_files=path, split="train", **options)
    return splits


def _columns(train: Dataset, data: TaskArguments) -> tuple[list[str], str, str]:
    """The columns of the inputs, that of the labels, and the kind of task."""
    there = train.column_names
    label = data.label_column or next((name for name in ("label", "labels") if name in there), "label")
    media = [name for name in there if isinstance(train.features[name], (Image, Audio))]
    texts = [name for name in there if train.features[name] in (Value("string"), Value("large_string"))]
    columns = data.input_column or media[:1] or [name for name in texts if name != label]
    missing = [name for name in (*columns, label) if name not in there]
    if missing:
        raise ValueError(f"no column {missing[0]!r}; the data have {', '.join(there)}")
    if not columns or (data.input_column is None and len(columns) > 1):
        raise ValueError(f"which column holds the inputs? The data have {', '.join(there)}; give --input_column")
    feature = train.features[columns[0]]
    kind = "image" if isinstance(feature, Image) else "audio" if isinstance(feature, Audio) else "text"
    return columns, label, kind


def _check_labels(splits: DatasetDict, data: TaskArguments, column: str) -> None:
    """Refuse rows without a label, and numbers that would turn the weights into NaN."""
    for split, rows in splits.items():
        labels = rows["labels"][:]
        missing = labels.count(None)
        if missing:
            raise ValueError(
                f"{missing} of the {len(rows)} {split} rows have no label; take them out, or give each its label"
            )
        for number, label in enumerate(labels, 1):
            if isinstance(label, float) and not math.isfinite(label):
                raise ValueError(
                    f"{_source(data, split)}, row {number}, column {column!r}: the label is {label}; take the row "
                    "out, or give it a number"
                )


def _check_inputs(splits: DatasetDict, data: TaskArguments, columns: list[str]) -> None:
    """Refuse empty cells, which no tokenizer takes."""
    for split, rows in splits.items():
        for column in columns:
            cells = rows.with_format("arrow").select_columns([column])[:].column(column)
            if cells.null_count:
                number = cells.is_null().to_pylist().index(True) + 1
                raise ValueError(
                    f"{_source(data, split)}, row {number}, column {column!r}: the cell is empty; take the row out, or "
                    "fill it"
                )


def _source(data: TaskArguments, split: str) -> str | None:
    return data.dataset_name or (data.validation_file if split == "validation" else data.train_file)


def _with_classes(splits: DatasetDict) -> tuple[DatasetDict, list[str] | None]:
    """The splits with labels 0, 1, 2, ..., and the names of the classes; None where labels are decimal numbers."""
    feature = splits["train"].features["labels"]
    if isinstance(feature, Value) and feature.dtype.startswith(("float", "double")):
        return splits.cast_column("labels", Value("float32")), None
    if not isinstance(feature, (Value, ClassLabel)):
        raise ValueError(f"the labels are {feature}; the command line takes one class or one decimal number a row")
    if not isinstance(feature, ClassLabel):
        values = splits["train"].unique("labels")
        splits = splits.cast_column("labels", Value("string"))
        texts = splits["train"].unique("labels")  # in the order of the values, which numbers are to be sorted by
        feature = ClassLabel(names=[text for _, text in sorted(zip(values, texts, strict=True))])
        splits = splits.cast_column("labels", feature)
    return splits, feature.names


def _split(splits: DatasetDict, classes: bool, rows: int | None, seed: int) -> tuple[Dataset, Dataset]:
    """The rows to train and to evaluate on, every class in its natural share."""
    train, test = splits["train"], splits.get("validation", splits.get("test"))
    options: dict[str, Any] = {"seed": seed, "stratify_by_column": "labels" if classes else None}
    if test is None:
        parts = train.train_test_split(test_size=0.2, **options)
        train, test = parts["train"], parts["test"]
    if rows is not None and rows < len(train):
        train = train.train_test_split(train_size=rows, **options)["train"]
    return train, test
