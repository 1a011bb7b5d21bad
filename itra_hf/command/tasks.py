"""The tasks of the command line: the prepared rows, and the model."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from datasets import Audio, Dataset, Image
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

from itra_hf.command.checks import broken_picture
from itra_hf.command.data import TaskArguments, read_rows
from itra_hf.files import reading
from itra_hf.hub.public import is_local

KINDS: dict[str, tuple[Any, Any]] = {
    "text": (AutoModelForSequenceClassification, AutoTokenizer),
    "image": (AutoModelForImageClassification, AutoImageProcessor),
    "audio": (AutoModelForAudioClassification, AutoFeatureExtractor),
}

PLACES = ("model_name_or_path", "dataset_name", "train_file", "validation_file")  # a comparison knows their contents


@dataclass
class Task:
    """A model, its data and its metrics.

    Args:
        kind: `"text"`, `"image"` or `"audio"`.
        train, test: rows with the column `labels`.
        names: of the classes; None for a regression.
        processor: tokenizer, image processor or feature extractor.
        collator: makes a batch of rows.
        new_model: gives a new model; what is random in it comes from torch's global generator.
        model_name, dataset_name: what to call them in the card.
        source: how the rows were made of the data, by argument.
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
        """Whether compactness can be measured: the evaluation rows hold two classes, and two rows of one of them."""
        counts = Counter(self.test["labels"]).values()
        return self.names is not None and len(counts) > 1 and max(counts) > 1

    def drawn(self, samples: int, seed: int) -> "Task":
        """The same task with this many random training rows of each class."""
        if self.names is None:
            raise ValueError(f"samples_per_class={samples} needs classes; the labels are decimal numbers")
        labels, draw, rows = np.asarray(self.train["labels"]), np.random.default_rng(seed), list[int]()
        for label, name in enumerate(self.names):
            own = np.flatnonzero(labels == label)
            if len(own) < samples:
                raise ValueError(
                    f"samples_per_class={samples}: the class {name!r} has {len(own)} training rows; give less"
                )
            rows += draw.choice(own, samples, replace=False).tolist()
        return replace(self, train=self.train.select(rows))

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
    mode: str  # of images
    max_seconds: float  # of sounds

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = [row[self.column] for row in rows]
        if self.kind == "image":
            pictures = [np.atleast_3d(_decoded(cell, self.mode)) for cell in inputs]  # grey ones get an axis
            batch = self.processor(pictures, return_tensors="pt")
        else:
            rate = self.processor.sampling_rate
            clips = [np.asarray(clip["array"], np.float32)[: int(rate * self.max_seconds)] for clip in inputs]
            batch = self.processor(clips, sampling_rate=rate, padding=True, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}


def _decoded(cell: dict[str, Any], mode: str) -> Any:
    try:
        picture = Image().decode_example(cell)
        if picture.mode[0] in "IF":  # more than 8 bits, which `convert` would cut off
            pixels = np.asarray(picture)
            if picture.mode == "F" or pixels.max() >= 2**16:
                raise ValueError("its pixel format is not supported; save it with 8 or 16 bits")
            picture = PIL.Image.fromarray((pixels // 256).astype(np.uint8))
        return picture.convert(mode)
    except Exception as error:  # whatever a decoder may raise
        raise broken_picture(cell, "a row", error) from error


def load_task(data: TaskArguments, seed: int) -> Task:
    """The data as `read_rows` finds them, and a model and processor for them.

    Raises:
        ValueError: if the data cannot be trained on, or the model cannot be loaded.
    """
    name = data.model_name_or_path
    if is_local(name) and not Path(name).is_dir():
        raise ValueError(f"there is no folder {name}; give model_name_or_path a folder, or a name on the Hub")
    train, test, columns, kind, names = read_rows(data, seed)
    if names is not None and len(names) < 2:
        raise ValueError(f"all rows have the label {names[0]!r}; a classifier needs two classes")
    auto_model, auto_processor = KINDS[kind]
    with reading(f"a {auto_processor.__name__.removeprefix('Auto')} of {name} for the {kind}s of the data"):
        processor = auto_processor.from_pretrained(name)
    labels: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    if names is not None:
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        labels["problem_type"] = "single_label_classification"  # whatever the model was trained for before

    def new_model() -> Any:
        with reading(f"the model {name}"):
            model = auto_model.from_pretrained(name, ignore_mismatched_sizes=True, **labels)
        if kind == "text" and model.config.pad_token_id is None:
            model.config.pad_token_id = processor.pad_token_id
        return model

    collator: Any
    if kind == "text":
        train, test = _tokenized((train, test), columns, processor, data.max_length)
        collator = DataCollatorWithPadding(processor)
    else:
        is_audio = kind == "audio"  # a picture is decoded by the collator, which names a broken one
        media = Audio(sampling_rate=processor.sampling_rate) if is_audio else Image(decode=False)
        train, test = (part.cast_column(columns[0], media) for part in (train, test))
        mode = "L" if getattr(new_model().config, "num_channels", 3) == 1 else "RGB"
        collator = _Collator(kind, processor, columns[0], mode, data.max_seconds)
    dataset_name = data.dataset_name or Path(data.train_file or "").stem
    source = {option: value for option, value in asdict(data).items() if option not in PLACES}
    return Task(kind, train, test, names, processor, collator, new_model, name, dataset_name, source)


def _tokenized(parts: tuple[Dataset, Dataset], columns: list[str], processor: Any, max_length: int) -> list[Dataset]:
    """The rows as token ids."""
    processor.pad_token = processor.pad_token or processor.eos_token

    def tokenize(rows: dict[str, Any]) -> Any:
        return processor(*(rows[column] for column in columns), truncation=True, max_length=max_length)

    tokens = [part.map(tokenize, batched=True, remove_columns=columns) for part in parts]
    tokenize({column: [""] for column in columns})  # rows from the cache leave the tokenizer without its truncation
    return tokens
