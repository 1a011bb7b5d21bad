"""The tasks of the command line: rows made ready for a model, and the model."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Audio, Dataset
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

from itra_hf.data import TaskArguments, read_rows

KINDS: dict[str, tuple[Any, Any]] = {
    "text": (AutoModelForSequenceClassification, AutoTokenizer),
    "image": (AutoModelForImageClassification, AutoImageProcessor),
    "audio": (AutoModelForAudioClassification, AutoFeatureExtractor),
}


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
        source: where the data come from, for a comparison to know them again: the arguments, and digests of files.
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
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def has_scatter(self) -> bool:
        """Whether the rows to evaluate on tell how compact classes are: two classes, and two rows of one of them."""
        counts = Counter(self.test["labels"]).values()
        return self.names is not None and len(counts) > 1 and max(counts) > 1

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
    """The data as `read_rows` finds them, and a model and processor for them."""
    train, test, columns, kind, names = read_rows(data, seed)
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
    named = [path for path in (data.train_file, data.validation_file) if path]
    files = [path for path in named if Path(path).is_file()]  # the others are addresses
    source = asdict(data) | {path: _digest(path) for path in files}
    name = data.model_name_or_path
    return Task(kind, train, test, names, processor, collator, new_model, name, dataset_name, source)


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
