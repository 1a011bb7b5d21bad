"""Train an image classifier with ITRATrainer, and write a report of the run.

Without arguments it runs offline: a small ViT with random weights learns scikit-learn's digits from 300 images.
With `--matching none` it is the run of Trainer:

    python examples/image_classification.py

A model and a data set of the Hub, with any option of ITRAConfig:

    python examples/image_classification.py --model_name_or_path google/vit-base-patch16-224-in21k \\
        --dataset_name AI-Lab-Makerere/beans --label_column labels --learning_rate 2e-5

Model, image processor, model card and report go to `--output_dir`. For your own files there is `itra-hf train`.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from sklearn.datasets import load_digits
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    HfArgumentParser,
    ViTConfig,
    ViTImageProcessor,
    set_seed,
)

from itra_hf import ITRAConfig, ITRATrainer
from itra_hf.diagnostics import ITRADiagnosticsCallback
from itra_hf.report import write_report

SMALL_MODEL = {"max_steps": 600, "per_device_train_batch_size": 32, "learning_rate": 1e-3, "logging_steps": 50}


@dataclass
class ScriptArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "By default a small ViT."})
    dataset_name: str | None = field(default=None, metadata={"help": "By default scikit-learn's digits."})
    image_column: str = field(default="image", metadata={"help": "The column of the images."})
    label_column: str = field(default="label", metadata={"help": "The column of the classes, a ClassLabel."})


def parse(argv: list[str]) -> tuple[Any, ...]:
    parser = HfArgumentParser((ScriptArguments, ITRAConfig))  # type: ignore[arg-type]
    parser.set_defaults(output_dir="outputs/image", remove_unused_columns=False)  # the collator reads the images
    if parser.parse_args_into_dataclasses(argv)[0].model_name_or_path is None:
        parser.set_defaults(**SMALL_MODEL)
    return parser.parse_args_into_dataclasses(argv)


def digits() -> Dataset:
    bunch = load_digits()
    columns = Features({"image": Image(), "labels": ClassLabel(names=[str(name) for name in bunch.target_names])})
    images = (bunch.images * 255 / 16).astype(np.uint8)
    return Dataset.from_dict({"image": list(images), "labels": bunch.target}, features=columns)


def load_splits(script: ScriptArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to train and to evaluate on; a fifth is held out where the data set has no split for it."""
    if not script.dataset_name:
        splits = digits().train_test_split(train_size=300, stratify_by_column="labels", seed=seed)
        return splits["train"], splits["test"]
    splits = load_dataset(script.dataset_name)
    splits = splits.rename_columns({script.image_column: "image", script.label_column: "labels"})
    if len(splits) == 1:
        splits = splits["train"].train_test_split(0.2, stratify_by_column="labels", seed=seed)
    return splits["train"], splits["validation" if "validation" in splits else "test"]


def load_model(name: str | None, names: list[str]) -> tuple[Any, Any]:
    """A pretrained model, or a small ViT with random weights, and the image processor."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if name:
        model = AutoModelForImageClassification.from_pretrained(name, ignore_mismatched_sizes=True, **labels)
        return model, AutoImageProcessor.from_pretrained(name)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    model = AutoModelForImageClassification.from_config(ViTConfig(image_size=8, patch_size=4, **sizes, **labels))
    return model, ViTImageProcessor(size={"height": 8, "width": 8})


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, -1) == prediction.label_ids))}


def main(argv: list[str] | None = None) -> dict[str, float]:
    script, args = parse(sys.argv[1:] if argv is None else argv)
    set_seed(args.seed)
    train, test = load_splits(script, args.seed)
    model, processor = load_model(script.model_name_or_path, train.features["labels"].names)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = processor([row["image"].convert("RGB") for row in rows], return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    datasets: dict[str, Any] = {"train_dataset": train, "eval_dataset": test}
    options: dict[str, Any] = {"compute_metrics": accuracy, "callbacks": [ITRADiagnosticsCallback()]}
    trainer = ITRATrainer(model, args, collate, **datasets, processing_class=processor, **options)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    scores = trainer.evaluate()
    trainer.save_state()
    if trainer.is_world_process_zero():
        write_report(str(args.output_dir))  # first, so that the card shows its picture
    trainer.save_model()
    (trainer.push_to_hub if args.push_to_hub else trainer.create_model_card)(
        dataset=script.dataset_name or "scikit-learn digits"
    )
    print(
        f"Accuracy {scores['eval_accuracy']:.2%} on {len(test)} images. Model and report.html are in {args.output_dir}."
    )
    return scores


if __name__ == "__main__":
    main()
