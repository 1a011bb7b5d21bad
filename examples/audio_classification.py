"""Train an audio classifier with ITRATrainer.

Without arguments it runs offline: a small Audio Spectrogram Transformer with random weights learns four kinds of sounds
that are made here, under loud noise. With `--matching none` it is the run of Trainer:

    python examples/audio_classification.py

A model and a data set of the Hub, with any option of ITRAConfig; `datasets` decodes audio files with `torchcodec`
since its version 4, with `soundfile` and `librosa` before:

    python examples/audio_classification.py --model_name_or_path facebook/wav2vec2-base --dataset_name PolyAI/minds14 \\
        --dataset_config_name en-US --label_column intent_class --learning_rate 3e-5 --num_train_epochs 10

Model, feature extractor and model card go to `--output_dir`. Sounds of your own, one folder for each class, need no
script: `itra-hf train` reads them.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Audio, ClassLabel, Dataset, Features, Value, load_dataset
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    EvalPrediction,
    HfArgumentParser,
    set_seed,
)

from itra_hf import ITRAConfig, ITRATrainer

RATE = 16_000
SOUNDS = ["tone", "rising", "falling", "trembling"]
SMALL_MODEL = {"max_steps": 200, "per_device_train_batch_size": 32, "learning_rate": 1e-3, "logging_steps": 50}
SMALL_MODEL |= {"save_strategy": "no", "dataloader_pin_memory": False}


@dataclass
class ScriptArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "By default a small AST."})
    dataset_name: str | None = field(default=None, metadata={"help": "By default sounds made here."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of the data set."})
    audio_column: str = field(default="audio", metadata={"help": "The column of the sounds."})
    label_column: str = field(default="label", metadata={"help": "The column of the classes, a ClassLabel."})


def parse(argv: list[str]) -> tuple[Any, ...]:
    parser = HfArgumentParser((ScriptArguments, ITRAConfig))  # type: ignore[arg-type]
    parser.set_defaults(output_dir="outputs/audio", remove_unused_columns=False)  # the collator reads the sounds
    if parser.parse_args_into_dataclasses(argv)[0].model_name_or_path is None:
        parser.set_defaults(**SMALL_MODEL)
    return parser.parse_args_into_dataclasses(argv)


def sound(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Half a second of a sound of random pitch, under white noise of random strength."""
    time, pitch = np.arange(RATE // 2) / RATE, rng.uniform(500, 1500)
    bend = {"rising": 600, "falling": -600}.get(kind, 0)
    wave = np.sin(2 * np.pi * (pitch + bend * (time - 0.5)) * time)
    if kind == "trembling":
        wave *= (1 + np.sin(2 * np.pi * rng.uniform(6, 12) * time)) / 2
    return 0.3 * wave + rng.uniform(0.02, 0.3) * rng.standard_normal(len(time))


def sounds(rows: int, seed: int) -> Dataset:
    rng, labels = np.random.default_rng(seed), [row % len(SOUNDS) for row in range(rows)]
    columns = Features({"audio": {"array": [Value("float32")]}, "labels": ClassLabel(names=SOUNDS)})
    clips = [{"array": sound(SOUNDS[label], rng)} for label in labels]
    return Dataset.from_dict({"audio": clips, "labels": labels}, features=columns)


def load_splits(script: ScriptArguments, rate: int, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to train and to evaluate on; a fifth is held out where the data set has no validation or test split."""
    if not script.dataset_name:
        return sounds(120, seed), sounds(480, seed + 1)
    splits = load_dataset(script.dataset_name, script.dataset_config_name)
    splits = splits.rename_columns({script.audio_column: "audio", script.label_column: "labels"})
    splits = splits.cast_column("audio", Audio(sampling_rate=rate))
    if len(splits) == 1:
        splits = splits["train"].train_test_split(0.2, stratify_by_column="labels", seed=seed)
    return splits["train"], splits["validation" if "validation" in splits else "test"]


def load_model(name: str | None, names: list[str]) -> Any:
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if name:
        return AutoModelForAudioClassification.from_pretrained(name, ignore_mismatched_sizes=True, **labels)
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
    image = {"max_length": 48, "num_mel_bins": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
    config = ASTConfig(initializer_range=0.1, **sizes, **image, **labels)  # at 0.02 so small a model hardly learns
    return AutoModelForAudioClassification.from_config(config)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, -1) == prediction.label_ids))}


def main(argv: list[str] | None = None) -> dict[str, float]:
    script, args = parse(sys.argv[1:] if argv is None else argv)
    set_seed(args.seed)
    extractor: Any = ASTFeatureExtractor(num_mel_bins=32, max_length=48, mean=4.5, std=1.5)
    if script.model_name_or_path:
        extractor = AutoFeatureExtractor.from_pretrained(script.model_name_or_path)
    rate = extractor.sampling_rate
    train, test = load_splits(script, rate, args.seed)
    model = load_model(script.model_name_or_path, train.features["labels"].names)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        clips = [np.asarray(row["audio"]["array"])[: 10 * rate] for row in rows]
        batch = extractor(clips, sampling_rate=rate, padding=True, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    datasets: dict[str, Any] = {"train_dataset": train, "eval_dataset": test}
    trainer = ITRATrainer(model, args, collate, **datasets, processing_class=extractor, compute_metrics=accuracy)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    scores = trainer.evaluate()
    trainer.save_model()
    card = {"tasks": "audio-classification", "finetuned_from": script.model_name_or_path}
    card["dataset"] = script.dataset_name or "sounds"
    (trainer.push_to_hub if args.push_to_hub else trainer.create_model_card)(**card)
    print(f"Accuracy {scores['eval_accuracy']:.2%} on {len(test)} sounds. The model is in {args.output_dir}.")
    return scores


if __name__ == "__main__":
    main()
