"""Train an audio classifier with ITRATrainer.

Without arguments it makes half-second sounds of six classes, loud noise on all, and trains a small Audio Spectrogram
Transformer from scratch; `--matching none` makes it the run of Trainer:

    python examples/audio_classification.py
    python examples/audio_classification.py --matching none --seed 1

A data set and a model of the Hub, with any option of ITRAConfig; `datasets` decodes audio files with `torchcodec`
since its version 4, with `soundfile` and `librosa` before:

    python examples/audio_classification.py --dataset_name PolyAI/minds14 --dataset_config_name en-US \\
        --label_column intent_class --model_name_or_path facebook/wav2vec2-base --learning_rate 3e-5 \\
        --num_train_epochs 10 --output_dir outputs/minds14

Model, feature extractor and model card go to `--output_dir`, by default `outputs/audio`.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Audio, ClassLabel, Dataset, Features, Sequence, Value, load_dataset
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    set_seed,
)

from itra_hf import ITRAConfig, ITRATrainer

RATE, SECONDS = 16_000, 0.5
SOUNDS = ("tone", "two tones", "rising", "falling", "trembling", "clicks")

# For the small model on the sounds made here. With your own data every option starts from its usual default.
SYNTHETIC = {
    "max_steps": 300,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 128,
    "learning_rate": 1e-3,
    "warmup_steps": 0.1,
    "logging_steps": 50,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
}


@dataclass
class DataArguments:
    """What to train on, and which model; nothing given means sounds made here and a small model from scratch."""

    dataset_name: str | None = field(default=None, metadata={"help": "A data set of the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "A model of the Hub, or its folder."})
    audio_column: str = field(default="audio", metadata={"help": "The column that holds the sounds."})
    label_column: str = field(default="label", metadata={"help": "The column that holds the classes."})
    max_seconds: float = field(default=10.0, metadata={"help": "Longer sounds are cut to this length."})
    train_size: int = field(default=480, metadata={"help": "Sounds to make for training."})
    test_size: int = field(default=480, metadata={"help": "Sounds to make for the test."})

    def __post_init__(self) -> None:
        if bool(self.dataset_name) != bool(self.model_name_or_path):
            raise ValueError(
                f"got dataset_name={self.dataset_name!r} and model_name_or_path={self.model_name_or_path!r}; "
                "give both, or neither for the sounds made here"
            )
        if self.max_seconds <= 0:
            raise ValueError(f"max_seconds={self.max_seconds} must be positive")
        for name in ("train_size", "test_size"):
            if getattr(self, name) < len(SOUNDS):
                raise ValueError(f"{name}={getattr(self, name)} must be at least {len(SOUNDS)}, one sound a class")


def parse(argv: list[str]) -> tuple[DataArguments, ITRAConfig]:
    parser = HfArgumentParser((DataArguments, ITRAConfig))  # type: ignore[arg-type]
    parser.set_defaults(output_dir="outputs/audio")
    data, args = parser.parse_args_into_dataclasses(argv)
    if not data.dataset_name:
        parser.set_defaults(**SYNTHETIC)
        data, args = parser.parse_args_into_dataclasses(argv)
    args.remove_unused_columns = False  # the collator reads the sounds
    return data, args


def sound(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Half a second of a sound of random pitch, under white noise of random strength."""
    time = np.arange(int(RATE * SECONDS)) / RATE
    low = rng.uniform(300, 1500)
    high = low * rng.uniform(1.3, 2.5)
    sweep = (high - low) / (2 * SECONDS)
    wave: np.ndarray = {
        "tone": np.sin(2 * np.pi * low * time),
        "two tones": (np.sin(2 * np.pi * low * time) + np.sin(2 * np.pi * high * time)) / 2,
        "rising": np.sin(2 * np.pi * (low + sweep * time) * time),
        "falling": np.sin(2 * np.pi * (high - sweep * time) * time),
        "trembling": np.sin(2 * np.pi * low * time) * (1 + np.sin(2 * np.pi * rng.uniform(6, 12) * time)) / 2,
        "clicks": np.sin(2 * np.pi * low * time) * (time * rng.uniform(6, 12) % 1 < 0.15),
    }[kind]
    return (0.3 * wave + rng.uniform(0.02, 0.3) * rng.standard_normal(len(time))).astype(np.float32)


def synthetic(rows: int, rng: np.random.Generator) -> Dataset:
    """As many sounds of each class, in the columns `audio` and `labels`."""
    labels = [row % len(SOUNDS) for row in range(rows)]
    columns = Features({"audio": Sequence(Value("float32")), "labels": ClassLabel(names=list(SOUNDS))})
    return Dataset.from_dict({"audio": [sound(SOUNDS[i], rng) for i in labels], "labels": labels}, features=columns)


def from_hub(data: DataArguments, rate: int, seed: int) -> tuple[Dataset, Dataset]:
    """Training and test set of the Hub, decoded at the model's rate; without a test set a fifth is held out."""
    splits = load_dataset(data.dataset_name, data.dataset_config_name)
    columns = {data.audio_column: "audio", data.label_column: "labels"}
    missing = [column for column in columns if column not in splits["train"].column_names]
    if missing:
        raise ValueError(f"no column {missing[0]!r}; the data has {', '.join(splits['train'].column_names)}")
    splits = splits.select_columns(list(columns))
    splits = splits.rename_columns({old: new for old, new in columns.items() if old != new})
    if not isinstance(splits["train"].features["labels"], ClassLabel):
        names = [str(name) for name in sorted(splits["train"].unique("labels"))]
        splits = splits.cast_column("labels", Value("string")).cast_column("labels", ClassLabel(names=names))
    splits = splits.cast_column("audio", Audio(sampling_rate=rate))
    test = splits.get("test", splits.get("validation"))
    if test is not None:
        return splits["train"], test
    parts = splits["train"].train_test_split(test_size=0.2, stratify_by_column="labels", seed=seed)
    return parts["train"], parts["test"]


def load_model(data: DataArguments, names: list[str]) -> Any:
    """The Hub's model with a head for these classes, or a small one with random weights."""
    labels: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if data.model_name_or_path:
        source = data.model_name_or_path
        return AutoModelForAudioClassification.from_pretrained(source, ignore_mismatched_sizes=True, **labels)
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 128, "initializer_range": 0.1}  # at AST's usual 0.02 so small a model hardly learns
    image: dict[str, Any] = {"max_length": 48, "num_mel_bins": 32, "patch_size": 8}
    image |= {"frequency_stride": 8, "time_stride": 8}
    return ASTForAudioClassification(ASTConfig(**sizes, **image, **labels))


@dataclass
class Collator:
    """Makes a batch of sounds ready for the model: cut, padded to the longest, as the extractor wants them."""

    extractor: Any
    max_seconds: float

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        rate = self.extractor.sampling_rate
        clips = [self.samples(row["audio"])[: int(rate * self.max_seconds)] for row in rows]
        batch = self.extractor(clips, sampling_rate=rate, padding=True, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    @staticmethod
    def samples(audio: Any) -> np.ndarray:
        """The samples of a sound: a list where it was made here, else what `Audio` has decoded."""
        return np.asarray(audio if isinstance(audio, list) else audio["array"], dtype=np.float32)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float(np.mean(np.argmax(logits, -1) == prediction.label_ids))}


def save(trainer: Trainer, data: DataArguments) -> None:
    """Save model, feature extractor and model card; to the Hub too with `--push_to_hub`."""
    trainer.save_model()
    dataset = data.dataset_name or "synthetic sounds"
    card: dict[str, Any] = {"tasks": "audio-classification", "dataset": dataset}
    card["finetuned_from"] = data.model_name_or_path
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, evaluate, save and load again; returns the scores of the evaluation."""
    data, args = parse(sys.argv[1:] if argv is None else argv)
    output_dir = str(args.output_dir)
    set_seed(args.seed)
    if data.dataset_name:
        extractor = AutoFeatureExtractor.from_pretrained(data.model_name_or_path)
        train, test = from_hub(data, extractor.sampling_rate, args.seed)
    else:
        rng = np.random.default_rng(args.seed)
        extractor = ASTFeatureExtractor(sampling_rate=RATE, num_mel_bins=32, max_length=48, mean=4.5, std=1.5)
        train, test = synthetic(data.train_size, rng), synthetic(data.test_size, rng)
    model = load_model(data, train.features["labels"].names)
    print(f"{len(train)} training and {len(test)} test sounds, {model.num_parameters():,} weights")

    common: dict[str, Any] = {"eval_dataset": test, "data_collator": Collator(extractor, data.max_seconds)}
    common["compute_metrics"] = accuracy
    trainer = ITRATrainer(model, args, train_dataset=train, processing_class=extractor, **common)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    scores = trainer.evaluate()
    print(f"\nTest accuracy {scores['eval_accuracy']:.2%}, matching={args.matching!r}, seed {args.seed}")

    save(trainer, data)
    loaded = AutoModelForAudioClassification.from_pretrained(output_dir)
    args.push_to_hub = False
    again = Trainer(loaded, args, **common).evaluate()["eval_accuracy"]
    if again != scores["eval_accuracy"]:
        raise RuntimeError(f"the model in {output_dir} scores {again:.2%}, not {scores['eval_accuracy']:.2%}")
    print(f"The model is in {output_dir}. Loaded again, it scores the same {again:.2%}.")
    return scores


if __name__ == "__main__":
    main()
