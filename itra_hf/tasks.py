"""The tasks of the command line: texts, images or sounds with a label each, and a model for them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Image, Value, load_dataset
from sklearn.metrics import f1_score
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

KINDS: dict[str, tuple[Any, Any]] = {
    "text": (AutoModelForSequenceClassification, AutoTokenizer),
    "image": (AutoModelForImageClassification, AutoImageProcessor),
    "audio": (AutoModelForAudioClassification, AutoFeatureExtractor),
}
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
        for name in ("max_length", "max_seconds", "max_train_samples"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be positive")


@dataclass
class Task:
    """What to train on what.

    Args:
        kind: `"text"`, `"image"` or `"audio"`.
        train, test: rows with the column `labels`.
        names: of the classes; None for a regression.
        processor: tokenizer, image processor or feature extractor.
        collator: makes a batch of rows.
        new_model: gives a new model; what is random in it comes from torch's global generator.
        model_name, dataset_name: what to call them in the card.
    """

    kind: str
    train: Dataset
    test: Dataset
    names: list[str] | None
    processor: Any
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    new_model: Callable[[], Any]
    model_name: str
    dataset_name: str

    def trainer(self, cls: type[Trainer], args: TrainingArguments, callbacks: list[Any]) -> Trainer:
        """A trainer of a new model; images and sounds keep the columns that their collator reads."""
        args.remove_unused_columns = args.remove_unused_columns and self.kind == "text"
        return cls(
            self.new_model(),
            args,
            data_collator=self.collator,
            train_dataset=self.train,
            eval_dataset=self.test,
            processing_class=self.processor,
            compute_metrics=self.compute_metrics,
            callbacks=callbacks,
        )

    def compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Accuracy and macro-averaged F1 of classes; mean squared error and Pearson correlation of numbers."""
        given: Any = prediction.predictions
        logits, labels = given[0] if isinstance(given, tuple) else given, np.asarray(prediction.label_ids)
        if self.names is None:
            error = float(np.mean((logits[:, 0] - labels) ** 2))
            return {"mse": error, "pearson": float(np.corrcoef(logits[:, 0], labels)[0, 1])}
        classes = logits.argmax(-1)
        f1 = f1_score(labels, classes, average="macro", zero_division=0)
        return {"accuracy": float(np.mean(classes == labels)), "macro_f1": float(f1)}


@dataclass
class _Collator:
    """Makes a batch of images or sounds ready for the model."""

    kind: str
    processor: Any
    column: str
    mode: str = "RGB"
    max_seconds: float = 0.0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = [row[self.column] for row in rows]
        if self.kind == "image":
            pictures = [np.atleast_3d(image.convert(self.mode)) for image in inputs]  # grey ones get a channel axis
            batch = self.processor(pictures, return_tensors="pt")
        else:
            rate = self.processor.sampling_rate
            clips = [np.asarray(clip["array"], np.float32)[: int(rate * self.max_seconds)] for clip in inputs]
            batch = self.processor(clips, sampling_rate=rate, padding=True, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


def load_task(data: TaskArguments, seed: int) -> Task:
    """Read the data and find out what they are.

    Args:
        data: the arguments.
        seed: of the rows that are drawn or held out.

    Raises:
        ValueError: where columns are missing or their kind is none of the three.
    """
    splits = _read(data)
    columns, label, kind = _columns(splits["train"], data)
    splits = splits.select_columns([*columns, label]).rename_columns({} if label == "labels" else {label: "labels"})
    splits, names = _with_classes(splits)
    train, test = _split(splits, names is not None, data.max_train_samples, seed)

    auto_model, auto_processor = KINDS[kind]
    processor = auto_processor.from_pretrained(data.model_name_or_path)
    labels: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    if names is not None:
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}

    def new_model() -> Any:
        model = auto_model.from_pretrained(data.model_name_or_path, ignore_mismatched_sizes=True, **labels)
        if kind == "text" and model.config.pad_token_id is None:
            model.config.pad_token_id = processor.pad_token_id
        return model

    if kind == "text":
        processor.pad_token = processor.pad_token or processor.eos_token

        def tokenize(rows: dict[str, Any]) -> Any:
            return processor(*(rows[column] for column in columns), truncation=True, max_length=data.max_length)

        train, test = (part.map(tokenize, batched=True, remove_columns=columns) for part in (train, test))
        collator: Any = DataCollatorWithPadding(processor)
    else:
        if kind == "audio":
            audio = Audio(sampling_rate=processor.sampling_rate)
            train, test = (part.cast_column(columns[0], audio) for part in (train, test))
        mode = "L" if getattr(new_model().config, "num_channels", 3) == 1 else "RGB"
        collator = _Collator(kind, processor, columns[0], mode, data.max_seconds)
    dataset_name = data.dataset_name or Path(data.train_file or "").stem
    return Task(kind, train, test, names, processor, collator, new_model, data.model_name_or_path, dataset_name)


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


def _with_classes(splits: DatasetDict) -> tuple[DatasetDict, list[str] | None]:
    """The splits with labels 0, 1, 2, ..., and the names of the classes; None where labels are decimal numbers."""
    feature = splits["train"].features["labels"]
    if isinstance(feature, Value) and feature.dtype.startswith(("float", "double")):
        return splits.cast_column("labels", Value("float32")), None
    if not isinstance(feature, (Value, ClassLabel)):
        raise ValueError(f"the labels are {feature}; the command line takes one class or one decimal number a row")
    if not isinstance(feature, ClassLabel):
        names = [str(name) for name in sorted(splits["train"].unique("labels"))]
        feature = ClassLabel(names=names)
        splits = splits.cast_column("labels", Value("string")).cast_column("labels", feature)
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
