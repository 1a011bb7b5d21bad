"""Fine-tune a decoder with LoRA and ITRATrainer, and load its adapters again.

Without arguments it makes short requests of eight intents, trains a tokenizer on them, and puts adapters into a small
Llama whose own weights stay random; `--matching none` makes it the run of Trainer:

    python examples/lora_decoder.py
    python examples/lora_decoder.py --matching none --seed 1

A data set and a decoder of the Hub, with any option of ITRAConfig:

    python examples/lora_decoder.py --dataset_name legacy-datasets/banking77 --model_name_or_path Qwen/Qwen2.5-0.5B \\
        --learning_rate 2e-4 --num_train_epochs 3 --output_dir outputs/banking77

Adapters, head and tokenizer go to `--output_dir`, by default `outputs/lora`; the small Llama to its folder `base`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

from itra_hf import ITRAConfig, ITRATrainer

# The same words in every intent; only who does what to which of two things tells them apart, so order matters.
OPENINGS = ("please", "could you", "I want you to", "hey,", "when you can,", "now")
ENDINGS = ("", "today", "for me", "before dinner", "if that works", "as always")
THINGS = ("lamp", "fan", "heater", "radio", "kettle", "blind")
ROOMS = ("kitchen", "hall", "cellar", "attic", "office")
INTENTS = {
    "switch on": "turn the {thing} in the {room} on and leave the {other} off",
    "switch off": "turn the {thing} in the {room} off and leave the {other} on",
    "swap": "turn the {thing} in the {room} off and turn the {other} on",
    "both on": "turn the {thing} in the {room} on and turn the {other} on",
    "both off": "turn the {thing} in the {room} off and turn the {other} off",
    "ask on": "tell me if the {thing} in the {room} is on and leave the {other} off",
    "ask off": "tell me if the {thing} in the {room} is off and leave the {other} on",
    "leave": "leave the {thing} in the {room} on and leave the {other} off",
}

# For the small Llama on the requests made here. With your own data every option starts from its usual default.
SYNTHETIC = {
    "max_steps": 200,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 128,
    "learning_rate": 3e-3,
    "warmup_steps": 0.1,
    "logging_steps": 50,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
}


@dataclass
class ScriptArguments:
    """What to train on, and how; nothing given means requests made here and a small Llama."""

    dataset_name: str | None = field(default=None, metadata={"help": "A data set of the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "A decoder of the Hub, or its folder."})
    text_column: str = field(default="text", metadata={"help": "The column that holds the texts."})
    label_column: str = field(default="label", metadata={"help": "The column that holds the classes."})
    max_length: int = field(default=128, metadata={"help": "Longer texts are cut to this many tokens."})
    train_size: int = field(default=120, metadata={"help": "Requests to make for training."})
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of the adapters, over their rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapters."})

    def __post_init__(self) -> None:
        if bool(self.dataset_name) != bool(self.model_name_or_path):
            raise ValueError(
                f"got dataset_name={self.dataset_name!r} and model_name_or_path={self.model_name_or_path!r}; "
                "give both, or neither for the requests made here"
            )
        for name, least in (("max_length", 1), ("lora_r", 1), ("train_size", len(INTENTS))):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")


def parse(argv: list[str]) -> tuple[ScriptArguments, ITRAConfig]:
    parser = HfArgumentParser((ScriptArguments, ITRAConfig))  # type: ignore[arg-type]
    parser.set_defaults(output_dir="outputs/lora")
    options, args = parser.parse_args_into_dataclasses(argv)
    if not options.dataset_name:
        parser.set_defaults(**SYNTHETIC)
        options, args = parser.parse_args_into_dataclasses(argv)
    return options, args


def synthetic(rows: int, rng: np.random.Generator) -> Dataset:
    """As many requests of each intent, in the columns `text` and `label`."""
    names, texts = list(INTENTS), []
    for row in range(rows):
        thing, other = rng.choice(THINGS, 2, replace=False)
        request = INTENTS[names[row % len(names)]].format(thing=thing, other=other, room=rng.choice(ROOMS))
        texts.append(f"{rng.choice(OPENINGS)} {request} {rng.choice(ENDINGS)}".strip())
    columns = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"text": texts, "label": [row % len(names) for row in range(rows)]}, features=columns)


def from_hub(options: ScriptArguments, seed: int) -> tuple[Dataset, Dataset]:
    """Training and test set of the Hub; without a test set a fifth is held out."""
    splits = load_dataset(options.dataset_name, options.dataset_config_name)
    columns = {options.text_column: "text", options.label_column: "label"}
    missing = [column for column in columns if column not in splits["train"].column_names]
    if missing:
        raise ValueError(f"no column {missing[0]!r}; the data has {', '.join(splits['train'].column_names)}")
    splits = splits.select_columns(list(columns))
    splits = splits.rename_columns({old: new for old, new in columns.items() if old != new})
    if not isinstance(splits["train"].features["label"], ClassLabel):
        names = [str(name) for name in sorted(splits["train"].unique("label"))]
        splits = splits.cast_column("label", Value("string")).cast_column("label", ClassLabel(names=names))
    test = splits.get("test", splits.get("validation"))
    if test is not None:
        return splits["train"], test
    parts = splits["train"].train_test_split(test_size=0.2, stratify_by_column="label", seed=seed)
    return parts["train"], parts["test"]


def save_small_llama(folder: Path, texts: list[str], num_labels: int) -> None:
    """A Llama with random weights, and a tokenizer of the words in these texts."""
    special = ["<pad>", "<unk>"]
    words = Tokenizer(models.WordLevel(unk_token=special[1]))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=special[0], unk_token=special[1])
    sizes: dict[str, Any] = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 192, "num_labels": num_labels}
    tokens: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": None}
    config = LlamaConfig(vocab_size=len(tokenizer), **sizes, **tokens)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_base(source: str, names: list[str], tokenizer: Any) -> Any:
    """The decoder with a head for these classes."""
    labels: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    base = AutoModelForSequenceClassification.from_pretrained(source, ignore_mismatched_sizes=True, **labels)
    base.config.pad_token_id = tokenizer.pad_token_id  # a decoder classifies its last token that is no padding
    return base


def add_lora(base: Any, options: ScriptArguments) -> PeftModel:
    """The decoder with adapters in all its linear layers; they and the head are all that is trained."""
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,  # trains the head too, and saves it with the adapters
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear",
    )
    return get_peft_model(base, lora)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float(np.mean(np.argmax(logits, -1) == prediction.label_ids))}


def save(trainer: Any, options: ScriptArguments) -> None:
    """Save adapters, head, tokenizer and model card; to the Hub too with `--push_to_hub`."""
    trainer.save_model()
    dataset = options.dataset_name or "synthetic requests"
    card: dict[str, Any] = {"tasks": "text-classification", "dataset": dataset}
    card["finetuned_from"] = options.model_name_or_path
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate, save and load again; returns the scores of the evaluation."""
    options, args = parse(sys.argv[1:] if argv is None else argv)
    output_dir = str(args.output_dir)
    set_seed(args.seed)
    source = options.model_name_or_path or str(Path(output_dir, "base"))
    if options.dataset_name:
        train, test = from_hub(options, args.seed)
    else:
        rng = np.random.default_rng(args.seed)
        train, test = synthetic(options.train_size, rng), synthetic(480, rng)
        save_small_llama(Path(source), list(train["text"]), len(INTENTS))
    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    names = train.features["label"].names
    model = add_lora(load_base(source, names, tokenizer), options)
    print(f"{len(train)} training and {len(test)} test texts, {len(names)} classes")
    model.print_trainable_parameters()

    def tokenize(batch: dict[str, Any]) -> Any:
        return tokenizer(batch["text"], truncation=True, max_length=options.max_length, return_token_type_ids=False)

    train, test = train.map(tokenize, batched=True), test.map(tokenize, batched=True)
    common: dict[str, Any] = {"eval_dataset": test, "compute_metrics": accuracy}
    common["data_collator"] = DataCollatorWithPadding(tokenizer)
    trainer = ITRATrainer(model, args, train_dataset=train, processing_class=tokenizer, **common)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    predicted = trainer.predict(test, metric_key_prefix="eval")
    logits, scores = np.asarray(predicted.predictions), predicted.metrics or {}
    trainer.log(scores)  # for the model card
    print(f"\nTest accuracy {scores['eval_accuracy']:.2%}, matching={args.matching!r}, seed {args.seed}")

    save(trainer, options)
    loaded = PeftModel.from_pretrained(load_base(source, names, tokenizer), output_dir)
    args.push_to_hub = False
    again = np.asarray(ITRATrainer(loaded, args, **common).predict(test).predictions)
    if not np.allclose(logits, again, rtol=1e-4, atol=1e-4):
        worst = np.abs(logits - again).max()
        raise RuntimeError(f"the adapters in {output_dir} predict otherwise than before: logits differ by {worst}")
    print(f"The adapters are in {output_dir}. Loaded again, they predict the same.")
    return scores


if __name__ == "__main__":
    main()
