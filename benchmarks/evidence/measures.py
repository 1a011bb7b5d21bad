"""What is measured of a trained model, all of it on rows that it was not trained on."""

import platform
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from itra_hf.diagnostics import compactness
from itra_hf.features import find_head


class StepCost(TrainerCallback):
    """Seconds of the median step (CPU time; on a GPU what passed until it had finished), and how much the peak of
    resident (on a GPU: allocated) memory rose."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._memory = peak_memory()

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        self._start = clock()

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.seconds.append(clock() - self._start)

    def measured(self) -> dict[str, float]:
        return {"step_seconds": statistics.median(self.seconds), "memory": peak_memory() - self._memory}


def clock() -> float:
    """Seconds: this process's CPU time, or on a GPU, once that has finished, the time that passed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def machine() -> str:
    """What a run's time depends on: processor or GPU, torch and transformers."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    processor = f"{len(names)} cores of {names[0]}" if names else platform.processor()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor
    return f"{device}, torch {torch.__version__}, transformers {transformers.__version__}"


def peak_memory() -> float:
    """Megabytes: the process's resident memory at its peak, or the GPU's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@torch.no_grad()
def predict(trainer: Trainer, rows: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits `[n, classes]`, features `[n, d]` and labels `[n]` of rows, in evaluation mode."""
    model = trainer.model.eval()
    head_input, parts = None, []
    for batch in DataLoader(rows, trainer.args.per_device_eval_batch_size, collate_fn=trainer.data_collator):
        batch = {name: values.to(trainer.args.device) for name, values in batch.items()}
        labels = batch.pop("labels")
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=trainer.args.bf16):
            head_input = head_input or find_head(model, batch)
            with head_input.attached():
                outputs = model(**batch)
                features = head_input.rows(outputs, batch.get("attention_mask"))
        parts.append([part.cpu() for part in (outputs["logits"].float(), features.float(), labels)])
    logits, features, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return logits, features, labels


def measure(trainer: Trainer, rows: Sequence[Any]) -> dict[str, float]:
    """Accuracy, macro F1, loss, calibration and compactness on rows."""
    logits, features, labels = predict(trainer, rows)
    guessed = logits.argmax(1)
    return {
        "accuracy": float(accuracy_score(labels, guessed)),
        "macro_f1": float(f1_score(labels, guessed, average="macro", zero_division=0)),
        "loss": float(functional.cross_entropy(logits, labels)),
        "ece": expected_calibration_error(logits.softmax(1), labels),
        "nc1": nc1(features, labels),
        "scatter": compactness(features, labels)["scatter_ratio"],
    }


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """`sum_b n_b / n |accuracy_b - confidence_b|` over bins of equal width (Guo et al., ICML 2017)."""
    confidence, guessed = probabilities.double().max(1)
    hits = (guessed == labels).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, hits - confidence)
    return float(gaps.abs().sum() / len(labels))


def nc1(features: Tensor, labels: Tensor) -> float:
    """`trace(S_W pinv(S_B)) / K`: within- against between-class covariance (Papyan, Han and Donoho, PNAS 2020)."""
    features = features.double()
    means = torch.stack([features[labels == label].mean(0) for label in labels.unique()])
    _, classes = labels.unique(return_inverse=True)
    centred = features - means[classes]
    spread = means - means.mean(0)
    within, between = centred.T @ centred / len(features), spread.T @ spread / len(means)
    return float(torch.trace(within @ torch.linalg.pinv(between, rtol=1e-10, hermitian=True)) / len(means))
