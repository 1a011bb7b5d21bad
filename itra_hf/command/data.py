"""The data of the command line: a data set of the Hub, a folder or a file, read into a training and a test split."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Audio, ClassLabel, Dataset, DatasetDict, Image, Value, load_dataset

from itra_hf.command.checks import TEXTS, Places, check_classes, check_columns, check_counts, check_inputs, check_labels
from itra_hf.files import reading

READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class TaskArguments:
    """The model and the data; the columns say whether these are texts, images or sounds."""

    model_name_or_path: str = field(default="", metadata=_help("A model of the Hub, or its folder."))
    dataset_name: str | None = field(
        default=None, metadata=_help("A data set of the Hub, or a folder of images or sounds, one folder per class.")
    )
    dataset_config_name: str | None = field(default=None, metadata=_help("The configuration of the data set."))
    train_file: str | None = field(
        default=None, metadata=_help("A csv, tsv, json or jsonl file, instead of a data set.")
    )
    validation_file: str | None = field(
        default=None, metadata=_help("A file to evaluate on; without one, a fifth of the rows is held out.")
    )
    input_column: list[str] | None = field(
        default=None,
        metadata=_help("The column of texts (two for pairs), images or sounds; needed only if there are several."),
    )
    label_column: str | None = field(
        default=None,
        metadata=_help("The column of labels (classes or decimal numbers); by default 'label' or 'labels'."),
    )
    max_length: int = field(default=128, metadata=_help("Longer texts are cut to this many tokens."))
    max_seconds: float = field(default=10.0, metadata=_help("Longer sounds are cut to this length."))
    max_train_samples: int | None = field(default=None, metadata=_help("Train on this many random rows."))

    def __post_init__(self) -> None:
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


class TaskRows(NamedTuple):
    """Rows to train on and to test on."""

    train: Dataset  # with the columns of the inputs and the column `labels`
    test: Dataset
    columns: list[str]  # of the inputs: one, or two for pairs of texts
    kind: str  # "text", "image" or "audio"
    names: list[str] | None  # of the classes; None if labels are decimal numbers


def read_rows(data: TaskArguments, seed: int) -> TaskRows:
    """Read the data and find out what they are; the seed draws the rows that are kept or held out.

    Raises:
        ValueError: if a file cannot be read, if the training split or a column is missing, or if a row has an unusable
            input or label.
    """
    splits = _read(data)
    if "train" not in splits:
        raise ValueError(f"no split 'train'; the data have {', '.join(splits)}")
    used = ("train", "validation" if "validation" in splits else "test")
    splits = DatasetDict({name: splits[name] for name in used if name in splits})
    places = dict.fromkeys(splits, str(data.dataset_name or data.train_file))
    places |= {"validation": data.validation_file} if data.validation_file else {}
    columns, label, kind = _columns(splits["train"], data)
    for split, rows in splits.items():
        check_columns(rows.features, columns, label, places[split])
    splits = splits.select_columns([*columns, label]).rename_columns({} if label == "labels" else {label: "labels"})
    check_labels(splits, places, label)
    check_inputs(splits, places, columns)
    splits, names = _with_classes(splits, places)
    train, test = _split(splits, names, data.max_train_samples, seed)
    return TaskRows(train, test, columns, kind, names)


def _read(data: TaskArguments) -> DatasetDict:
    """The data set's splits, or the files'."""
    if data.dataset_name:
        with reading(data.dataset_name):
            return load_dataset(data.dataset_name, data.dataset_config_name)
    splits = DatasetDict()
    for split, path in (("train", data.train_file), ("validation", data.validation_file)):
        if path:
            if Path(path).suffix.lower() not in READERS:
                raise ValueError(f"cannot read {path}; give a file that ends in {', '.join(READERS)}")
            if Path(path).is_file() and Path(path).stat().st_size == 0:
                raise ValueError(f"{path} is empty; give a file with rows")
            options = {"sep": "\t"} if Path(path).suffix.lower() == ".tsv" else {}
            with reading(path):
                reader = READERS[Path(path).suffix.lower()]
                splits[split] = load_dataset(reader, data_files=path, split="train", **options)
    return splits


def _columns(train: Dataset, data: TaskArguments) -> tuple[list[str], str, str]:
    """The columns of the inputs, that of the labels, and the kind of task."""
    there = train.column_names
    label = data.label_column or next((name for name in ("label", "labels") if name in there), "label")
    media = [name for name in there if isinstance(train.features[name], (Image, Audio))]
    texts = [name for name in there if train.features[name] in TEXTS]
    columns = data.input_column or media[:1] or [name for name in texts if name != label]
    if label in there and (not columns or (data.input_column is None and len(columns) > 1)):
        raise ValueError(f"which column holds the inputs? The data have {', '.join(there)}; give --input_column")
    feature = train.features.get(columns[0]) if columns else None
    kind = "image" if isinstance(feature, Image) else "audio" if isinstance(feature, Audio) else "text"
    return columns, label, kind


def _with_classes(splits: DatasetDict, places: Places) -> tuple[DatasetDict, list[str] | None]:
    """The splits with labels 0, 1, 2, ..., and the names of the classes; None where labels are decimal numbers."""
    feature = splits["train"].features["labels"]
    if isinstance(feature, Value) and feature.dtype.startswith(("float", "double")):
        for split, rows in splits.items():
            with reading(f"the labels of {places[split]} as numbers"):
                splits[split] = rows.cast_column("labels", Value("float32"))
        return splits, None
    if not isinstance(feature, (Value, ClassLabel)):
        raise ValueError(f"the labels are {feature}; the command line takes one class or one decimal number a row")
    if isinstance(feature, ClassLabel):
        if Path(places["train"]).is_dir():  # where a folder's name may be misspelt
            check_classes(splits, places)
        return splits, feature.names
    values = splits["train"].unique("labels")
    splits = splits.cast_column("labels", Value("string"))
    texts = splits["train"].unique("labels")  # in the order of the values, which numbers are to be sorted by
    check_classes(splits, places)
    names = [text for _, text in sorted(zip(values, texts, strict=True))]
    return splits.cast_column("labels", ClassLabel(names=names)), names


def _split(splits: DatasetDict, names: list[str] | None, rows: int | None, seed: int) -> tuple[Dataset, Dataset]:
    """The rows to train and to evaluate on, every class in its natural share."""
    train, test = splits["train"], splits.get("validation", splits.get("test"))
    options: dict[str, Any] = {"seed": seed, "stratify_by_column": None if names is None else "labels"}
    if test is None:
        if names is not None:
            check_counts(train["labels"], names)
        parts = train.train_test_split(test_size=0.2, **options)
        train, test = parts["train"], parts["test"]
    if rows is not None and rows < len(train):
        try:
            train = train.train_test_split(train_size=rows, **options)["train"]
        except ValueError:  # one class has a single row, or is too rare for so few rows, or for the few that are left
            train = train.shuffle(seed).select(range(rows))
    return train, test
