"""Train an audio classifier with ITRATrainer.

Without arguments it runs offline, on sounds made here; `--matching none` makes it the run of Trainer:

    python examples/audio_classification.py

A model and a data set of the Hub, with any option of ITRAConfig; `datasets` needs `torchcodec` to decode audio files:

    python examples/audio_classification.py --model_name_or_path facebook/wav2vec2-base --dataset_name PolyAI/minds14 \\
        --dataset_config_name en-US --label_column intent_class --learning_rate 3e-5 --num_train_epochs 10

Model, feature extractor and model card go to `--output_dir`. For your own files there is `itra-hf train`.
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
SOUNDS = {"steady": 0, "rising": 600, "falling": -600}  # by how much the pitch changes in half a second, in Hertz
SMALL_MODEL = {"max_steps": 200, "per_device_train_batch_size": 32, "learning_rate": 1e-3, "logging_steps": 50}


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


def sounds(rows: int, seed: int) -> Dataset:
    """Sounds of half a second and of random pitch, under white noise of random strength."""
    rng, time = np.random.default_rng(seed), np.arange(RATE // 2) / RATE
    labels, clips = [row % len(SOUNDS) for row in range(rows)], []
    for label in labels:
        pitch = rng.uniform(500, 1500) + list(SOUNDS.values())[label] * (time - 0.5)
        noise = rng.uniform(0.02, 0.3) * rng.standard_normal(len(time))
        clips.append({"array": 0.3 * np.sin(2 * np.pi * pitch * time) + noise})
    columns = Features({"audio": {"array": [Value("float32")]}, "labels": ClassLabel(names=list(SOUNDS))})
    return Dataset.from_dict({"audio": clips, "labels": labels}, features=columns)


def load_splits(script: ScriptArguments, rate: int, seed: int) -> tuple[Dataset, Dataset]:
    """Rows to train and to evaluate on; a fifth is held out where the data set has no split for it."""
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
    train, test = load_splits(script, extractor.sampling_rate, args.seed)
    model = load_model(script.model_name_or_path, train.features["labels"].names)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        rate = extractor.sampling_rate
        clips = [np.asarray(row["audio"]["array"])[: 10 * rate] for row in rows]  # ten seconds at most
        batch = extractor(clips, sampling_rate=rate, padding=True, return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

    datasets: dict[str, Any] = {"train_dataset": train, "eval_dataset": test}
    trainer = ITRATrainer(model, args, collate, **datasets, processing_class=extractor, compute_metrics=accuracy)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    scores = trainer.evaluate()
    trainer.save_model()
    (trainer.push_to_hub if args.push_to_hub else trainer.create_model_card)(dataset=script.dataset_name or "sounds")
    print(f"Accuracy {scores['eval_accuracy']:.2%} on {len(test)} sounds. The model is in {args.output_dir}.")
    return scores


if __name__ == "__main__":
    main()
