"""Fine-tune a text classifier with ITRATrainer.

Without arguments it runs offline: a small DistilBERT with random weights learns which library a docstring is from.
With `--matching none` it is the run of Trainer:

    python examples/text_classification.py

A model and a data set of the Hub, with any option of ITRAConfig; a yaml file may hold them:

    python examples/text_classification.py --model_name_or_path distilbert/distilbert-base-uncased \\
        --dataset_name legacy-datasets/banking77 --learning_rate 5e-5 --num_train_epochs 3
    accelerate launch --num_processes 2 examples/text_classification.py examples/text_classification.yaml

Model, tokenizer and model card go to `--output_dir`. For your own files there is `itra-hf train`.
"""

import importlib
import inspect
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    set_seed,
)

from itra_hf import ITRAConfig, ITRATrainer

LIBRARIES = ["numpy", "scipy.signal", "scipy.special", "scipy.stats", "torch"]
SMALL_MODEL = {"max_steps": 200, "per_device_train_batch_size": 32, "learning_rate": 1e-3, "logging_steps": 50}


@dataclass
class ScriptArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "By default a small DistilBERT."})
    dataset_name: str | None = field(default=None, metadata={"help": "By default the first lines of docstrings."})
    text_column: str = field(default="text", metadata={"help": "The column of the texts."})
    label_column: str = field(default="label", metadata={"help": "The column of the classes, a ClassLabel."})


def parse(argv: list[str]) -> tuple[Any, ...]:
    parser = HfArgumentParser((ScriptArguments, ITRAConfig))  # type: ignore[arg-type]
    if len(argv) == 1 and argv[0].endswith(".yaml"):
        return parser.parse_yaml_file(argv[0])
    parser.set_defaults(output_dir="outputs/text")
    if parser.parse_args_into_dataclasses(argv)[0].model_name_or_path is None:
        parser.set_defaults(**SMALL_MODEL)
    return parser.parse_args_into_dataclasses(argv)


def docstrings() -> Dataset:
    rows: dict[str, list[Any]] = {"text": [], "label": []}
    for label, library in enumerate(LIBRARIES):
        docs = (inspect.getdoc(item) for item in vars(importlib.import_module(library)).values() if callable(item))
        texts = sorted({doc.strip().partition("\n")[0] for doc in docs if doc})
        rows["text"] += texts
        rows["label"] += [label] * len(texts)
    return Dataset.from_dict(rows, Features({"text": Value("string"), "label": ClassLabel(names=LIBRARIES)}))


def load_splits(script: ScriptArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to train and to evaluate on; a fifth is held out where the data set has no split for it."""
    splits = load_dataset(script.dataset_name) if script.dataset_name else DatasetDict(train=docstrings())
    splits = splits.rename_columns({script.text_column: "text", script.label_column: "labels"})
    if len(splits) == 1:
        splits = splits["train"].train_test_split(0.2, stratify_by_column="labels", seed=seed)
    return splits["train"], splits["validation" if "validation" in splits else "test"]


def load_model(name: str | None, train: Dataset) -> tuple[Any, Any]:
    """A pretrained model and its tokenizer, or a small model and a tokenizer of the words in the training rows."""
    names = train.features["labels"].names
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if name:
        model = AutoModelForSequenceClassification.from_pretrained(name, ignore_mismatched_sizes=True, **labels)
        return model, AutoTokenizer.from_pretrained(name)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    words = Tokenizer(models.WordLevel(unk_token=special["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(train["text"][:], trainers.WordLevelTrainer(special_tokens=list(special.values())))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    sizes = {"vocab_size": len(tokenizer), "dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4}
    return AutoModelForSequenceClassification.from_config(DistilBertConfig(**sizes, **labels)), tokenizer


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float(np.mean(np.argmax(logits, -1) == prediction.label_ids))}


def main(argv: list[str] | None = None) -> dict[str, float]:
    script, args = parse(sys.argv[1:] if argv is None else argv)
    set_seed(args.seed)
    with args.main_process_first(desc="reading the data"):
        splits = load_splits(script, args.seed)
        model, tokenizer = load_model(script.model_name_or_path, splits[0])
        train, test = (rows.map(lambda row: tokenizer(row["text"], truncation=True)) for rows in splits)
    datasets: dict[str, Any] = {"train_dataset": train, "eval_dataset": test}
    trainer = ITRATrainer(model, args, **datasets, processing_class=tokenizer, compute_metrics=accuracy)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    scores = trainer.evaluate()
    trainer.save_model()
    (trainer.push_to_hub if args.push_to_hub else trainer.create_model_card)(
        dataset=script.dataset_name or "docstrings"
    )
    print(f"Accuracy {scores['eval_accuracy']:.2%} on {len(test)} texts. The model is in {args.output_dir}.")
    return scores


if __name__ == "__main__":
    main()
