"""Fine-tune a text classifier with ITRATrainer: the script to start from.

    python examples/text_classification.py --model_name_or_path distilbert/distilbert-base-uncased \\
        --train_file train.csv --validation_file dev.csv --label_column intent --output_dir outputs/intents

Data come from csv, tsv, json or jsonl files or, with `--dataset_name`, from the Hub. The Trainer baseline is the same
command with `--matching none`; LoRA is `--use_lora`. A yaml file may stand in for the flags, and flags after it
override it. Several GPUs take `accelerate launch`, several processes on a CPU `torchrun` and `--use_cpu`:

    python examples/text_classification.py examples/text_classification.yaml --matching none
    accelerate launch --num_processes 2 examples/text_classification.py examples/text_classification.yaml
    torchrun --nproc_per_node 2 examples/text_classification.py examples/text_classification.yaml --use_cpu

With `--use_lora` the output folder holds the adapters and the head, and in `base_config` the labels' names. It can be
the `--model_name_or_path` of a later run; in your own code load it by

    config = AutoConfig.from_pretrained(folder, subfolder="base_config")
    base = AutoModelForSequenceClassification.from_pretrained(base_name, config=config, ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(base, folder)

where `base_name` is the model that was fine-tuned.

Without `--do_train`, `--do_eval` or `--do_predict` the script trains and evaluates. Where it does both and there are no
validation data, it holds out a fifth of the training rows, the same ones for the same `--seed`.
"""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import yaml  # type: ignore[import-untyped]
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    set_seed,
)

from itra_hf import ITRAConfig, ITRATrainer


@dataclass
class ModelArguments:
    """The model, and whether LoRA trains it."""

    model_name_or_path: str = field(default="", metadata={"help": "A model of the Hub, or its folder."})
    use_lora: bool = field(default=False, metadata={"help": "Train low-rank adapters and the head alone."})
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of the adapters, over their rank."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout before the adapters."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Names of the layers that get adapters; by default peft's choice."}
    )

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise ValueError("no model; give --model_name_or_path, a name on the Hub or a folder")


@dataclass
class DataArguments:
    """Where the texts come from."""

    dataset_name: str | None = field(default=None, metadata={"help": "A data set of the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: str | None = field(default=None, metadata={"help": "A csv, tsv, json or jsonl file."})
    validation_file: str | None = field(
        default=None, metadata={"help": "The same, to evaluate on; by default a fifth is held out."}
    )
    test_file: str | None = field(default=None, metadata={"help": "The same, to predict; labels are optional."})
    text_column: str = field(default="text", metadata={"help": "The column that holds the texts."})
    label_column: str = field(default="label", metadata={"help": "The column that holds the classes."})
    max_length: int = field(default=128, metadata={"help": "Longer texts are cut to this many tokens."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many random rows."})
    samples_per_class: int | None = field(default=None, metadata={"help": "Train on this many random rows a class."})

    def __post_init__(self) -> None:
        if bool(self.dataset_name) == bool(self.train_file):
            raise ValueError(
                f"got dataset_name={self.dataset_name!r} and train_file={self.train_file!r}; give one of the two"
            )
        for name, goes_with, given in (
            ("validation_file", "train_file", "dataset_name"),
            ("test_file", "train_file", "dataset_name"),
            ("dataset_config_name", "dataset_name", "train_file"),
        ):
            if getattr(self, name) and getattr(self, given):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} goes with {goes_with}, not with {given}={getattr(self, given)!r}; "
                    f"leave it out, or give {goes_with}"
                )
        for name in ("max_train_samples", "samples_per_class", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


ARGUMENTS = (ModelArguments, DataArguments, ITRAConfig)


class Accuracy(evaluate.Metric):
    """The share of rows whose class was predicted."""

    def _info(self) -> evaluate.MetricInfo:
        return _metric_info(self.__doc__)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(evaluate.Metric):
    """The F1 score of each class, averaged with equal weights."""

    def _info(self) -> evaluate.MetricInfo:
        return _metric_info(self.__doc__)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0))}


def _metric_info(description: str | None) -> evaluate.MetricInfo:
    columns = Features({"predictions": Value("int64"), "references": Value("int64")})
    return evaluate.MetricInfo(description=description, citation="", inputs_description="", features=columns)


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    scores: dict[str, float] = {}
    for metric in (Accuracy(keep_in_memory=True), MacroF1(keep_in_memory=True)):
        scores.update(metric.compute(predictions=logits.argmax(-1), references=prediction.label_ids))
    return scores


def parse(argv: list[str]) -> tuple[ModelArguments, DataArguments, ITRAConfig]:
    """The arguments: a yaml file first, if there is one, then the flags, which override it."""
    parser = HfArgumentParser(ARGUMENTS)  # type: ignore[arg-type]
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        values = yaml.safe_load(Path(argv[0]).read_text()) or {}
        unknown = set(values) - {item.name for kind in ARGUMENTS for item in fields(kind)}
        if unknown:
            raise ValueError(f"{argv[0]} sets {', '.join(sorted(unknown))}, which is no argument; see --help")
        parser.set_defaults(**values)
        argv = argv[1:]
    model_args, data_args, args = parser.parse_args_into_dataclasses(argv)
    if not (args.do_train or args.do_predict or (args.do_eval and args.eval_strategy == "no")):
        args.do_train = args.do_eval = True
    return model_args, data_args, args


def read_file(path: str) -> Dataset:
    """The rows of a csv, tsv, json or jsonl file."""
    readers = {".csv": ("csv", {}), ".tsv": ("csv", {"sep": "\t"}), ".json": ("json", {}), ".jsonl": ("json", {})}
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        raise ValueError(f"cannot read {path}; give a file that ends in {', '.join(readers)}")
    kind, options = readers[suffix]
    return load_dataset(kind, data_files=path, split="train", **options)


def load_splits(data: DataArguments) -> DatasetDict:
    """The splits train, validation and test as far as there are any, with the columns `text` and `label`."""
    if data.dataset_name:
        found = load_dataset(data.dataset_name, data.dataset_config_name)
    else:
        files = {"train": data.train_file, "validation": data.validation_file, "test": data.test_file}
        found = {split: read_file(path) for split, path in files.items() if path}
    names = [split for split in ("train", "validation", "test") if split in found]
    splits = DatasetDict({split: text_and_label(found[split], data, split) for split in names})
    classes = splits["train"].features["label"]
    if not isinstance(classes, ClassLabel):
        classes = class_names(splits["train"])
    for split, rows in splits.items():
        if "label" in rows.column_names and not isinstance(rows.features["label"], ClassLabel):
            splits[split] = rows.cast_column("label", Value("string")).cast_column("label", classes)
    return splits


def class_names(train: Dataset) -> ClassLabel:
    """The classes of the training rows in the order of their values, so that 10 comes after 9."""
    values = train.unique("label")
    names = train.cast_column("label", Value("string")).unique("label")  # of True, too, as a cast will write it
    return ClassLabel(names=[name for _, name in sorted(zip(values, names, strict=True))])


def text_and_label(rows: Dataset, data: DataArguments, split: str) -> Dataset:
    """The two columns in use, under the names `text` and `label`; only a test split may lack labels."""
    columns = {data.text_column: "text", data.label_column: "label"}
    missing = [column for column in columns if column not in rows.column_names]
    if missing and (split != "test" or data.text_column in missing):
        raise ValueError(f"no column {missing[0]!r} in the {split} data; it has {', '.join(rows.column_names)}")
    unlabelled = 0 if missing else rows[data.label_column][:].count(None)
    if unlabelled and split != "test":
        raise ValueError(f"{unlabelled} of the {len(rows)} {split} rows have no label; take them out, or label them")
    missing += [data.label_column] * bool(unlabelled)
    rows = rows.select_columns([column for column in columns if column not in missing])
    return rows.rename_columns({old: new for old, new in columns.items() if old != new and old not in missing})


def hold_out(train: Dataset, seed: int) -> dict[str, Dataset]:
    """Four fifths of the rows to train and one to validate on, every class in its natural share."""
    parts = train.train_test_split(test_size=0.2, stratify_by_column="label", seed=seed)
    return {"train": parts["train"], "validation": parts["test"]}


def choose_rows(train: Dataset, data: DataArguments, seed: int) -> Dataset:
    """The rows to train on, `samples_per_class` of each class and `max_train_samples` in all, drawn by `seed`."""
    order = np.random.default_rng(seed).permutation(len(train))
    if data.samples_per_class is not None:
        labels = np.asarray(train["label"][:])[order]
        order = np.concatenate([order[labels == label][: data.samples_per_class] for label in np.unique(labels)])
        order = np.random.default_rng(seed).permutation(order)
    if data.samples_per_class is None and data.max_train_samples is None:
        return train
    return train.select(order[: data.max_train_samples])


def load_model(options: ModelArguments, names: list[str]) -> tuple[Any, Any]:
    """The model with a head for these classes, under LoRA if asked for or saved with it, and its tokenizer."""
    labels: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    source = options.model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(source)
    adapters = source if Path(source, "adapter_config.json").is_file() else None
    if adapters:
        source = str(PeftConfig.from_pretrained(adapters).base_model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(source, ignore_mismatched_sizes=True, **labels)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if adapters:
        model = PeftModel.from_pretrained(model, adapters, is_trainable=True)
    elif options.use_lora:
        lora = LoraConfig(
            task_type=TaskType.SEQ_CLS,  # trains the head too, and saves it with the adapters
            r=options.lora_r,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            target_modules=options.lora_target_modules,
        )
        model = get_peft_model(model, lora)
        model.print_trainable_parameters()
    return model, tokenizer


def save(trainer: Any, options: ModelArguments, data: DataArguments) -> None:
    """Save the model, its labels' names and its card; to the Hub too with `--push_to_hub`."""
    trainer.save_model()
    trainer.save_state()
    if isinstance(trainer.model, PeftModel) and trainer.is_world_process_zero():
        # peft saves the adapters alone; a config.json right beside them would pass for a whole model.
        trainer.model.config.save_pretrained(Path(trainer.args.output_dir, "base_config"))
    card: dict[str, Any] = {
        "finetuned_from": options.model_name_or_path,
        "tasks": "text-classification",
        "dataset": data.dataset_name or Path(data.train_file or "").stem,
    }
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)


def predict(trainer: Any, test: Dataset, names: list[str]) -> None:
    """Write the predicted classes to `predict_results.txt`; with labels, log the scores too."""
    labelled = "label" in test.column_names and min(test["label"], default=-1) >= 0
    prediction = trainer.predict(test if labelled else test.remove_columns({"label"} & set(test.column_names)))
    if labelled:
        trainer.log_metrics("predict", prediction.metrics)
        trainer.save_metrics("predict", prediction.metrics)
    if trainer.is_world_process_zero():
        logits = prediction.predictions
        classes = (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)
        lines = [f"{index}\t{names[label]}" for index, label in enumerate(classes)]
        Path(trainer.args.output_dir, "predict_results.txt").write_text("\n".join(["index\tprediction", *lines, ""]))


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate and predict as asked; returns the scores of the evaluation."""
    options, data, args = parse(sys.argv[1:] if argv is None else argv)
    set_seed(args.seed)
    with args.main_process_first(desc="reading the data"):
        splits = load_splits(data)
        if args.do_train and args.do_eval and "validation" not in splits:
            splits |= hold_out(splits["train"], args.seed)
    for wanted, flag, split in ((args.do_eval, "--do_eval", "validation"), (args.do_predict, "--do_predict", "test")):
        if wanted and split not in splits:
            raise ValueError(
                f"{flag} needs a {split} split, but there is only {', '.join(splits)}; "
                f"give --{split}_file beside --train_file"
            )
    names = splits["train"].features["label"].names
    splits["train"] = choose_rows(splits["train"], data, args.seed)
    model, tokenizer = load_model(options, names)
    with args.main_process_first(desc="tokenizing"):
        splits = splits.map(
            lambda rows: tokenizer(rows["text"], truncation=True, max_length=data.max_length), batched=True
        )
    trainer = ITRATrainer(
        model,
        args,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )
    scores: dict[str, float] = {}
    if args.do_train:
        metrics = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
    if args.do_eval:
        scores = trainer.evaluate()
        trainer.log_metrics("eval", scores)
        trainer.save_metrics("eval", scores)
    if args.do_predict:
        predict(trainer, splits["test"], names)
    if args.do_train:
        save(trainer, options, data)
    return scores


if __name__ == "__main__":
    main()
