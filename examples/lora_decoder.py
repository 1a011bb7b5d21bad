"""Fine-tune a decoder with LoRA and ITRATrainer.

Without arguments it runs offline, on a small Llama with random weights; `--matching none` makes it the run of Trainer:

    python examples/lora_decoder.py

A decoder and a data set of the Hub, with any option of ITRAConfig:

    python examples/lora_decoder.py --model_name_or_path Qwen/Qwen2.5-0.5B --dataset_name legacy-datasets/banking77 \\
        --learning_rate 2e-4 --num_train_epochs 3

Adapters, head and model card go to `--output_dir`, the small Llama to its folder `base`. To load them again:

    AutoPeftModelForSequenceClassification.from_pretrained("outputs/lora", num_labels=4)
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, load_dataset
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

STATES = ["on on", "on off", "off on", "off off"]  # of the lamp and the fan
SMALL_MODEL = {"max_steps": 200, "per_device_train_batch_size": 32, "learning_rate": 3e-3, "logging_steps": 50}


@dataclass
class ScriptArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "By default a small Llama."})
    dataset_name: str | None = field(default=None, metadata={"help": "Columns: text and label."})


def parse(argv: list[str]) -> tuple[Any, ...]:
    parser = HfArgumentParser((ScriptArguments, ITRAConfig))  # type: ignore[arg-type]
    parser.set_defaults(output_dir="outputs/lora")
    if parser.parse_args_into_dataclasses(argv)[0].model_name_or_path is None:
        parser.set_defaults(**SMALL_MODEL)
    return parser.parse_args_into_dataclasses(argv)


def requests(rows: int, seed: int) -> Dataset:
    """Requests that name three things in any order; the class says what the lamp and the fan shall be."""
    rng, texts, labels = np.random.default_rng(seed), [], [row % len(STATES) for row in range(rows)]
    for lamp, fan in (STATES[label].split() for label in labels):
        parts = [f"the lamp {lamp}", f"the fan {fan}", f"the radio {rng.choice(['on', 'off'])}"]
        texts.append("turn " + " and ".join(rng.permutation(parts)))
    return Dataset.from_dict({"text": texts, "label": labels}).cast_column("label", ClassLabel(names=STATES))


def load_splits(script: ScriptArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to train and to evaluate on; a fifth is held out where the data set has no split for it."""
    if not script.dataset_name:
        return requests(64, seed), requests(480, seed + 1)
    splits = load_dataset(script.dataset_name)
    if len(splits) == 1:
        splits = splits["train"].train_test_split(0.2, stratify_by_column="label", seed=seed)
    return splits["train"], splits["validation" if "validation" in splits else "test"]


def save_small_llama(folder: str, texts: list[str]) -> str:
    """A Llama with random weights, and a tokenizer of the words in these texts."""
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    words = Tokenizer(models.WordLevel(unk_token=special["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=list(special.values())))
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192}
    config = LlamaConfig(vocab_size=words.get_vocab_size(), pad_token_id=0, num_labels=len(STATES), **sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def load_model(name: str, num_labels: int) -> tuple[Any, Any]:
    """The decoder with a new head and adapters in its linear layers, which alone are trained, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    base = AutoModelForSequenceClassification.from_pretrained(name, num_labels=num_labels, ignore_mismatched_sizes=True)
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
    model, tokenizer = load_model(name, train.features["label"].num_classes)
    train, test = (rows.map(lambda row: tokenizer(row["text"], truncation=True)) for rows in (train, test))
    datasets: dict[str, Any] = {"train_dataset": train, "eval_dataset": test}
    trainer = ITRATrainer(model, args, **datasets, processing_class=tokenizer, compute_metrics=accuracy)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    scores = trainer.evaluate()
    trainer.save_model()
    (trainer.push_to_hub if args.push_to_hub else trainer.create_model_card)(dataset=script.dataset_name or "requests")
    print(f"Accuracy {scores['eval_accuracy']:.2%} on {len(test)} texts. The adapters are in {args.output_dir}.")
    return scores


if __name__ == "__main__":
    main()
