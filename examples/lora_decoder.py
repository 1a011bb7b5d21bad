"""Fine-tune a decoder with LoRA and ITRATrainer.

Without arguments it runs offline: adapters in a small Llama with random weights learn what requests made here ask for.
With `--matching none` it is the run of Trainer:

    python examples/lora_decoder.py

A decoder and a data set of the Hub, with any option of ITRAConfig:

    python examples/lora_decoder.py --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name legacy-datasets/banking77 \\
        --learning_rate 2e-4 --num_train_epochs 3

Adapters, head, tokenizer and model card go to `--output_dir`, the small Llama to its folder `base`. To load them:

    AutoPeftModelForSequenceClassification.from_pretrained("outputs/lora", num_labels=4)
"""

import sys
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    HfArgumentParser,
    LlamaConfig,
    PreTrainedTokenizerFast,
    set_seed,
)

from itra_hf import ITRAConfig, ITRATrainer

THINGS = ["lamp", "fan", "heater", "radio", "kettle", "blind", "oven", "pump"]
STATES = [f"{first} {second} {third}" for first, second, third in product(("on", "off"), repeat=3)]
SMALL_MODEL = {"max_steps": 150, "per_device_train_batch_size": 32, "learning_rate": 3e-3, "logging_steps": 50}
SMALL_MODEL |= {"save_strategy": "no", "dataloader_pin_memory": False}


@dataclass
class ScriptArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "By default a small Llama."})
    dataset_name: str | None = field(default=None, metadata={"help": "By default requests made here."})
    text_column: str = field(default="text", metadata={"help": "The column of the texts."})
    label_column: str = field(default="label", metadata={"help": "The column of the classes, a ClassLabel."})


def parse(argv: list[str]) -> tuple[Any, ...]:
    parser = HfArgumentParser((ScriptArguments, ITRAConfig))  # type: ignore[arg-type]
    parser.set_defaults(output_dir="outputs/lora")
    if parser.parse_args_into_dataclasses(argv)[0].model_name_or_path is None:
        parser.set_defaults(**SMALL_MODEL)
    return parser.parse_args_into_dataclasses(argv)


def requests(rows: int, seed: int) -> Dataset:
    """Requests to turn three things on or off: the classes share their words, so the order counts."""
    rng, labels = np.random.default_rng(seed), [row % len(STATES) for row in range(rows)]
    drawn = [zip(rng.choice(THINGS, 3, replace=False), STATES[label].split(), strict=True) for label in labels]
    texts = ["turn the " + " and the ".join(f"{thing} {state}" for thing, state in pairs) for pairs in drawn]
    columns = Features({"text": Value("string"), "labels": ClassLabel(names=STATES)})
    return Dataset.from_dict({"text": texts, "labels": labels}, features=columns)


def load_splits(script: ScriptArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to train and to evaluate on; a fifth is held out where the data set has no validation or test split."""
    if not script.dataset_name:
        return requests(48, seed), requests(480, seed + 1)
    splits = load_dataset(script.dataset_name)
    splits = splits.rename_columns({script.text_column: "text", script.label_column: "labels"})
    if len(splits) == 1:
        splits = splits["train"].train_test_split(0.2, stratify_by_column="labels", seed=seed)
    return splits["train"], splits["validation" if "validation" in splits else "test"]


def save_small_llama(folder: str, texts: list[str]) -> str:
    """A Llama with random weights, and a tokenizer of the words in these texts."""
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    words = Tokenizer(models.WordLevel(unk_token=special["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=list(special.values())))
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192}
    tokens = {"vocab_size": words.get_vocab_size(), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    AutoModelForSequenceClassification.from_config(LlamaConfig(**sizes, **tokens)).save_pretrained(folder)
    return folder


def load_model(name: str, names: list[str]) -> tuple[Any, Any]:
    """The decoder with a new head and adapters in its linear layers, which alone are trained, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    base = AutoModelForSequenceClassification.from_pretrained(name, ignore_mismatched_sizes=True, **labels)
    base.config.pad_token_id = tokenizer.pad_token_id  # a decoder classifies its last token that is no padding
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear")
    return get_peft_model(base, lora), tokenizer


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, -1) == prediction.label_ids))}


def main(argv: list[str] | None = None) -> dict[str, float]:
    script, args = parse(sys.argv[1:] if argv is None else argv)
    set_seed(args.seed)
    train, test = load_splits(script, args.seed)
    name = script.model_name_or_path or save_small_llama(f"{args.output_dir}/base", train["text"][:])
    model, tokenizer = load_model(name, train.features["labels"].names)
    model.print_trainable_parameters()
    train, test = (rows.map(lambda row: tokenizer(row["text"], truncation=True)) for rows in (train, test))
    datasets: dict[str, Any] = {"train_dataset": train, "eval_dataset": test}
    trainer = ITRATrainer(model, args, **datasets, processing_class=tokenizer, compute_metrics=accuracy)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    scores = trainer.evaluate()
    trainer.save_model()
    card = {"tasks": "text-classification", "finetuned_from": script.model_name_or_path}
    card["dataset"] = script.dataset_name or "requests"
    (trainer.push_to_hub if args.push_to_hub else trainer.create_model_card)(**card)
    print(f"Accuracy {scores['eval_accuracy']:.2%} on {len(test)} texts. The adapters are in {args.output_dir}.")
    return scores


if __name__ == "__main__":
    main()
