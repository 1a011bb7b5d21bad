"""Train an image classifier twice, with Trainer and with ITRATrainer, and compare the two.

Without arguments it takes scikit-learn's handwritten digits, 300 of them to train on, and a small ViT from scratch:

    python examples/image_classification.py

Your own images, one folder per class, or a data set of the Hub, with a model of the Hub and any option of ITRAConfig:

    python examples/image_classification.py --train_dir flowers/train --test_dir flowers/test \\
        --model_name_or_path google/vit-base-patch16-224-in21k --learning_rate 2e-5 --matching_weight 0.5
    python examples/image_classification.py --dataset_name AI-Lab-Makerere/beans --label_column labels \\
        --model_name_or_path microsoft/resnet-50

The ITRA model, its card and a picture of both feature spaces go to `--output_dir`, by default `outputs/demo`.
"""

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value, load_dataset
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    set_seed,
)

from itra_hf import ITRAConfig, ITRATrainer
from itra_hf.diagnostics import compactness
from itra_hf.features import extract_features

# For the small ViT on the digits. With your own images every option starts from the default of TrainingArguments.
DIGITS = {
    "train_size": 300,
    "max_steps": 1000,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 256,
    "learning_rate": 1e-3,
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
    "logging_steps": 100,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
}


@dataclass
class DataArguments:
    """What to train on, and which model; nothing given means the digits and a small ViT from scratch."""

    train_dir: str | None = field(default=None, metadata={"help": "Training images, one folder per class."})
    test_dir: str | None = field(default=None, metadata={"help": "Test images; without them a fifth is held out."})
    dataset_name: str | None = field(default=None, metadata={"help": "A data set of the Hub, instead of folders."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "A model of the Hub, or its folder."})
    image_column: str = field(default="image", metadata={"help": "The column that holds the images."})
    label_column: str = field(default="label", metadata={"help": "The column that holds the classes."})
    train_size: int | None = field(default=None, metadata={"help": "Train on this many images, 300 for the digits."})

    def __post_init__(self) -> None:
        if self.train_dir and self.dataset_name:
            raise ValueError(f"got both train_dir={self.train_dir!r} and dataset_name={self.dataset_name!r}; give one")
        if self.test_dir and self.dataset_name:
            raise ValueError(
                f"test_dir={self.test_dir!r} goes with train_dir, not with dataset_name={self.dataset_name!r}; "
                "leave it out, or give train_dir"
            )
        if self.is_digits and (self.test_dir or self.model_name_or_path):
            raise ValueError("--test_dir and --model_name_or_path need --train_dir or --dataset_name beside them")
        if not self.is_digits and not self.model_name_or_path:
            raise ValueError(f"{self.train_dir or self.dataset_name} needs a model; give --model_name_or_path")

    @property
    def is_digits(self) -> bool:
        return not (self.train_dir or self.dataset_name)


def parse(argv: list[str]) -> tuple[DataArguments, ITRAConfig]:
    parser = HfArgumentParser((DataArguments, ITRAConfig))  # type: ignore[arg-type]
    parser.set_defaults(output_dir="outputs/demo", remove_unused_columns=False)
    data, args = parser.parse_args_into_dataclasses(argv)
    if data.is_digits:
        parser.set_defaults(**DIGITS)
        data, args = parser.parse_args_into_dataclasses(argv)
        torch.set_num_threads(1)  # as fast as two for so small a model, and unmoved by what else the machine does
    return data, args


def digits() -> Dataset:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8 pixels."""
    bunch = load_digits()
    images = [(image * 255 / 16).astype(np.uint8) for image in bunch.images]
    columns = Features({"image": Image(), "label": ClassLabel(names=[str(name) for name in bunch.target_names])})
    return Dataset.from_dict({"image": images, "label": bunch.target}, features=columns)


def own_images(data: DataArguments) -> tuple[Dataset, Dataset | None]:
    """Images of the Hub or of folders, as columns `image` and `label`; None where there is no test set."""
    if data.dataset_name:
        splits = load_dataset(data.dataset_name)
    else:
        folders = {"train": data.train_dir, "test": data.test_dir}
        files = {split: f"{folder}/**" for split, folder in folders.items() if folder}
        splits = load_dataset("imagefolder", data_files=files)
    columns = {data.image_column: "image", data.label_column: "label"}
    missing = [column for column in columns if column not in splits["train"].column_names]
    if missing:
        raise ValueError(f"no column {missing[0]!r}; the data has {', '.join(splits['train'].column_names)}")
    splits = splits.select_columns(list(columns))
    splits = splits.rename_columns({old: new for old, new in columns.items() if old != new})
    if not isinstance(splits["train"].features["label"], ClassLabel):
        names = [str(name) for name in sorted(splits["train"].unique("label"))]
        splits = splits.cast_column("label", Value("string")).cast_column("label", ClassLabel(names=names))
    return splits["train"], splits.get("test", splits.get("validation"))


def load_images(data: DataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """The training and the test set, both with every class in its natural share."""
    train, test = (digits(), None) if data.is_digits else own_images(data)
    if test is None or (data.train_size is not None and data.train_size < len(train)):
        split = train.train_test_split(train_size=data.train_size or 0.8, stratify_by_column="label", seed=seed)
        train, test = split["train"], test or split["test"]
    return train, test


def load_model(data: DataArguments, names: list[str]) -> tuple[Any, Any]:
    """The model and its image processor: the Hub's, or a small ViT with random weights."""
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: label for label, name in enumerate(names)},
    }
    if data.model_name_or_path:
        source = data.model_name_or_path
        model = AutoModelForImageClassification.from_pretrained(source, ignore_mismatched_sizes=True, **labels)
        return model, AutoImageProcessor.from_pretrained(source)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_channels=1, **sizes, **labels))
    return model, ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])


def with_pixels(dataset: Dataset, processor: Any, model: Any) -> Dataset:
    """The data set with its images made ready for the model whenever a batch is read."""
    mode, channels = ("L", 1) if getattr(model.config, "num_channels", 3) == 1 else ("RGB", 3)

    def prepare(batch: dict[str, list[Any]]) -> dict[str, Any]:
        images = [
            np.asarray(image.convert(mode)).reshape(image.height, image.width, channels) for image in batch["image"]
        ]
        return {**processor(images, return_tensors="pt"), "labels": batch["label"]}

    return dataset.with_transform(prepare)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, -1) == prediction.label_ids))}


def run(trainer: Any, test: Dataset) -> dict[str, Any]:
    """Train, and measure on the test set; `features` are what the classifier sees of it."""
    print(f"\n{type(trainer).__name__}", flush=True)
    trained = trainer.train()
    scores = trainer.evaluate()
    features = extract_features(trainer.model, trainer.get_eval_dataloader())
    labels = np.asarray(test.with_format(None)["label"][:])
    return {
        "accuracy": scores["eval_accuracy"],
        "loss": scores["eval_loss"],
        "scatter": compactness(features, labels)["scatter_ratio"],
        "seconds": trained.metrics["train_runtime"] / max(trained.global_step, 1),
        "features": features.float().numpy(),
        "labels": labels,
    }


def print_table(plain: dict[str, Any], itra: dict[str, Any], seed: int) -> None:
    """The scores side by side, and what they say and don't say."""
    print(f"\n{'':<12}{'accuracy':>10}{'test loss':>11}{'within/between scatter':>24}{'seconds per step':>18}")
    for name, row in (("Trainer", plain), ("ITRATrainer", itra)):
        print(f"{name:<12}{row['accuracy']:>10.2%}{row['loss']:>11.4f}{row['scatter']:>24.4f}{row['seconds']:>18.4f}")
    gain = 100 * (itra["accuracy"] - plain["accuracy"])
    better, worse = ("ITRATrainer", "Trainer") if gain > 0 else ("Trainer", "ITRATrainer")
    verdict = (
        f"{better} beat {worse} by {abs(gain):.2f} points of test accuracy" if gain else "both are equally accurate"
    )
    loss, scatter = (itra[key] / plain[key] - 1 for key in ("loss", "scatter"))
    print(f"\nSeed {seed}: {verdict}.")
    print(f"ITRATrainer against Trainer (less is better): test loss {loss:+.1%}, scatter ratio {scatter:+.1%}.")
    print(f"One seed proves nothing. Repeat with --seed {seed + 1}, {seed + 2}, ... before you believe it.")


def draw(plain: dict[str, Any], itra: dict[str, Any], names: list[str], path: Path) -> None:
    """The test features of both models along their first two principal axes, side by side."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    for axis, title, row in zip(figure.subplots(1, 2), ("Trainer", "ITRATrainer"), (plain, itra), strict=True):
        points = PCA(2).fit_transform(row["features"])
        dots = axis.scatter(*points.T, c=row["labels"], cmap="tab10" if len(names) <= 10 else "tab20", s=9, alpha=0.75)
        axis.set_title(f"{title}: within/between scatter {row['scatter']:.3f}")
        axis.set(xlabel="1st principal axis", ylabel="2nd principal axis", aspect="equal", adjustable="datalim")
    if len(names) <= 20:
        handles, _ = dots.legend_elements(num=list(range(len(names))))
        figure.legend(handles, names, loc="outside right center", title="class", frameon=False)
    figure.suptitle(f"Features of {len(itra['labels']):,} test images")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def save(trainer: Trainer, data: DataArguments) -> None:
    """Save model, image processor and model card; to the Hub too with `--push_to_hub`."""
    trainer.save_model()
    dataset = "scikit-learn digits" if data.is_digits else data.dataset_name or Path(data.train_dir or "").name
    card: dict[str, Any] = {
        "tasks": "image-classification",
        "dataset": dataset,
        "finetuned_from": data.model_name_or_path,
    }
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)


def main(argv: list[str] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train both, compare, save, load again; returns the scores of Trainer and of ITRATrainer."""
    data, args = parse(sys.argv[1:] if argv is None else argv)
    output_dir = Path(args.output_dir or "outputs/demo")
    set_seed(args.seed)
    train, test = load_images(data, args.seed)
    names = train.features["label"].names
    model, processor = load_model(data, names)
    train, test = with_pixels(train, processor, model), with_pixels(test, processor, model)
    print(
        f"{len(train)} training and {len(test)} test images, {len(names)} classes, {model.num_parameters():,} weights"
    )

    plain_args = copy.copy(args)
    plain_args.push_to_hub = False
    if args.save_strategy != "no":
        plain_args.output_dir = str(output_dir / "trainer")  # so that its checkpoints lie apart
    common: dict[str, Any] = {"train_dataset": train, "eval_dataset": test, "compute_metrics": accuracy}
    plain = run(Trainer(copy.deepcopy(model), plain_args, **common), test)
    trainer = ITRATrainer(model, args, processing_class=processor, **common)
    itra = run(trainer, test)
    print_table(plain, itra, args.seed)

    draw(plain, itra, names, output_dir / "features.png")  # first, so that the card shows it
    save(trainer, data)
    loaded = AutoModelForImageClassification.from_pretrained(output_dir)
    again = Trainer(loaded, plain_args, **common).evaluate()["eval_accuracy"]
    if again != itra["accuracy"]:
        raise RuntimeError(f"the model in {output_dir} scores {again:.2%}, but scored {itra['accuracy']:.2%}")
    print(f"\nModel, card and features.png are in {output_dir}. Loaded again, the model scores the same {again:.2%}.")
    return plain, itra


if __name__ == "__main__":
    main()
