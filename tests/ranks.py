"""Trains scenarios and saves what came out. Run by test_distributed.py, in one process and in two."""

import copy
import gc
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import reference
import tiny
import torch
from accelerate import DistributedType, PartialState
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, default_data_collator

from itra_hf import ITRATrainer
from itra_hf.diagnostics import Compactness, ITRADiagnosticsCallback
from itra_hf.distributed import BatchGatherer, RanksDisagreeError
from itra_hf.losses import class_conditional_mmd

ROWS_PER_STEP = 16


def energy_distance(source: Tensor, target: Tensor, source_labels: Tensor, target_labels: Tensor) -> Tensor:
    """A user's own matching loss, here a smooth one that also weighs the labels."""
    weight = (source_labels[:, None] == target_labels[None]).to(source.dtype) + 0.5
    return ((source[:, None] - target[None]).square().sum(-1) * weight).mean()


class ShardedTrainer(ITRATrainer):
    """FSDP2 on the CPU: accelerate shards on accelerators only, so the ranks' processes pass for some."""

    def create_accelerator_and_postprocess(self) -> None:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()


def full_weights(model: nn.Module) -> Tensor:
    """All parameters and buffers in one vector of float64, from all ranks where they are sharded."""
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):  # as DeepSpeed's ZeRO 3 shards it
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters(list(model.parameters())):
            return torch.cat([value.detach().double().flatten() for value in model.state_dict().values()])
    values = model.state_dict().values()
    values = [value.full_tensor() if isinstance(value, DTensor) else value for value in values]
    return torch.cat([value.double().flatten() for value in values])


def two_halves(source: Tensor, target: Tensor, source_labels: Tensor, target_labels: Tensor) -> Tensor:
    """What two ranks that match their own rows alone add up to, in one process."""
    rows, labels = (torch.stack(pair, 1).flatten(0, 1) for pair in ((source, target), (source_labels, target_labels)))
    values = []
    for own_rows, own_labels in zip(rows.chunk(2), labels.chunk(2), strict=True):
        sides = reference.dealt(own_labels)
        values.append(class_conditional_mmd(*(part[side] for part in (own_rows, own_labels) for side in sides)))
    return torch.stack(values).mean()


class Unsupervised(tiny.Mlp):
    """Has a loss where a batch has no labels, too."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        outputs = super().forward(x, labels)
        return {"loss": outputs["logits"].square().mean()} | outputs


def squared_error(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A loss that no model has: the Brier score."""
    right = nn.functional.one_hot(labels, tiny.NUM_LABELS)
    return (outputs["logits"].softmax(-1) - right).square().sum() / (num_items_in_batch or len(labels))


class TwoHeads(tiny.Mlp):
    """Takes another head for a batch that begins with a large number."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(dropout=dropout)
        self.other = nn.Linear(6, tiny.NUM_LABELS)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        head = self.other if x[0, 0] > 50 else self.head
        logits = head(self.body(x))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


MODELS = {
    "two_heads": TwoHeads,
    "counting": tiny.CountingMlp,
    "mlp": tiny.Mlp,
    "bert": tiny.bert,
    "unsupervised": Unsupervised,
}
MATCHING_LOSSES = {"energy": energy_distance, "two_halves": two_halves}


class Collator:
    """Takes note of the rows that this rank collates."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, examples: list[dict]) -> dict[str, Tensor]:
        self.seen.append([example.get("index", -1) for example in examples])
        return default_data_collator([{k: v for k, v in example.items() if k != "index"} for example in examples])


def make_rows(kind: str, changes: dict) -> Any:
    """The training set of a scenario, whose own options are taken out of `changes`."""
    rows = (tiny.texts if kind == "bert" else tiny.vectors)(changes.pop("rows", 64))
    if changes.pop("learnable", False):
        rows = [row | {"labels": int(row["x"][:3].argmax())} for row in rows]
    if changes.pop("one_class_per_rank", False):  # in sequential order rank 0 gets the first half of each global batch
        rows = [row | {"x": row["x"] + i % 16 // 8, "labels": i % 16 // 8} for i, row in enumerate(rows)]
    for row in changes.pop("large", []):
        rows[row]["x"] = torch.full((4,), 99.0)
    for row in changes.pop("not_a_number", []):
        rows[row]["x"] = torch.full((4,), math.nan)
    for row in changes.pop("unlabelled", []):
        del rows[row]["labels"]
    if changes.pop("seen", False):
        changes["remove_unused_columns"] = False
        rows = [row | {"index": index} for index, row in enumerate(rows)]
    return tiny.Stream(rows) if changes.pop("stream", False) else rows


def train(trainer: Trainer, may_fail: bool) -> str | None:
    """The error, where one is expected."""
    try:
        trainer.train()
    except (RuntimeError, ValueError) as error:
        if may_fail:
            return f"{type(error).__name__}: {error}"
        raise
    return None


def run(name: str, changes: dict, folder: Path, world_size: int) -> None:
    torch.manual_seed(0)
    kind = changes.pop("model", "mlp")
    model = MODELS[kind](dropout=changes.pop("dropout", 0))
    start, resume_at = copy.deepcopy(model), changes.pop("resume_at", None)
    if resume_at is not None:
        changes |= {"save_strategy": "steps", "save_steps": resume_at}
    may_fail, rows, collator = "unlabelled" in changes, make_rows(kind, changes), Collator()
    if changes.pop("guessed", False):
        rows = tiny.guessed(model, rows)
    keywords = {"data_collator": collator, "matching_loss": MATCHING_LOSSES.get(changes.pop("loss", None))}
    if changes.pop("compute_loss_func", False):
        keywords["compute_loss_func"] = squared_error
    measures = changes.pop("measures", None)
    if measures:
        keywords["callbacks"] = [ITRADiagnosticsCallback(measures, every=2, max_share=1)]
    per_device = changes.pop("rows_per_step", ROWS_PER_STEP) // world_size
    options = {"max_steps": 6, "logging_steps": 1, "per_device_train_batch_size": per_device, "learning_rate": 0.05}
    options |= {"optim": "sgd", "matching_warmup_ratio": 0.5, "matching_weight": 3.0} | changes
    cls = ShardedTrainer if "fsdp" in changes else ITRATrainer
    trainer = tiny.trainer(folder / name, model, rows, cls, keywords=keywords, **options)
    result = {"error": train(trainer, may_fail), "log": trainer.state.log_history, "steps": trainer.state.global_step}
    result |= {"weights": full_weights(trainer.model), "start": full_weights(start), "seen": collator.seen}
    result["engine"] = type(trainer.model_wrapped).__name__
    result["sharded"] = all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    if resume_at is not None:
        resumed = tiny.trainer(folder / name, start, rows, cls, keywords=keywords, **options)
        resumed.train(resume_from_checkpoint=str(folder / name / f"checkpoint-{resume_at}"))
        result |= {"weights": full_weights(resumed.model), "uninterrupted": result["weights"]}
    torch.save(result, folder / f"{name}-{world_size}-{trainer.args.process_index}.pt")


def collectives(folder: Path, world_size: int) -> None:
    """What goes over the wire in a step, and in its backward pass."""
    counted = {}
    for name, cls, changes in (
        ("Trainer", Trainer, {}),
        ("ITRATrainer", ITRATrainer, {}),
        ("whole step", ITRATrainer, {"matching_scope": "optimizer_step"}),
    ):
        counted[name] = {}
        for part in ("step", "backward"):  # the second is a part of the first; profilers cannot be nested
            events: list[str] = []

            def recorded(function: Any, into: list[str]) -> Any:
                def wrapped(*args: Any, **kwargs: Any) -> Any:
                    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                        result = function(*args, **kwargs)
                    into.extend(event.name for event in profile.events() if event.name.startswith("c10d::"))
                    return result

                return wrapped

            options = {"gradient_accumulation_steps": 2, "max_steps": 2, "matching_warmup_ratio": 0.0} | changes
            trainer = tiny.trainer(folder / name, tiny.Mlp(), tiny.vectors(64), cls, **options)
            if part == "step":
                trainer.training_step = recorded(trainer.training_step, events)
            else:
                trainer.accelerator.backward = recorded(trainer.accelerator.backward, events)
            trainer.train()
            counted[name][part] = events
    torch.save(counted, folder / f"collectives-{world_size}-{distributed.get_rank()}.pt")


OTHER_DTYPES = [
    (("float32", "bool"), ("float32", None)),
    (("float32", "int64"), ("float32", "float64")),
    (("bfloat16", "int64"), ("float16", "int64")),
    (("float32", "bool"), ("float32", "uint8")),
]


def gather(folder: Path, world_size: int) -> None:
    """Rows of unequal number on the ranks, then more on one of them; then rows that do not go together."""
    rank = distributed.get_rank()
    gatherer, kept = BatchGatherer(), []
    for count in ((3, 1), (3, 5), (1, 0)):
        mine = 10.0 * rank + torch.arange(3.0 * count[rank]).view(-1, 3)
        rows, labels = zip(*gatherer.gather(mine, torch.tensor([[rank, 1 - rank]]).repeat(len(mine), 1)), strict=True)
        kept.append({"rows": rows, "labels": labels})
    errors = []
    for dtypes in OTHER_DTYPES:
        kinds = [None if dtype is None else getattr(torch, dtype) for dtype in dtypes[rank]]
        labels = None if kinds[1] is None else torch.zeros(2, dtype=kinds[1])
        try:
            gatherer.gather(torch.zeros(2, 3, dtype=kinds[0]), labels)
        except RanksDisagreeError as error:
            errors.append(str(error))
    torch.save([*kept, errors], folder / f"gather-{world_size}-{rank}.pt")


def metric(folder: Path, world_size: int) -> None:
    """evaluate's metric of rows that are spread over the ranks."""
    rank = distributed.get_rank()
    options = {"num_process": world_size, "process_id": rank, "experiment_id": "ranks"}
    distributed_metric = Compactness(cache_dir=str(folder / "metrics"), **options)
    rows = torch.stack([row["x"] for row in tiny.vectors(30)])
    labels = torch.arange(30) % tiny.NUM_LABELS
    for part in torch.arange(30)[rank::world_size].split(7):
        distributed_metric.add_batch(predictions=rows[part], references=labels[part])
    distributed.barrier()
    torch.save(distributed_metric.compute(), folder / f"metric-{world_size}-{rank}.pt")


CHECKS = {"collectives": collectives, "gather": gather, "metric": metric}

if __name__ == "__main__":
    gc.freeze()  # what is imported, which each run would look through for garbage
    folder, world_size = Path(sys.argv[1]), int(sys.argv[2])
    for name, changes in json.loads(sys.argv[3]).items():
        if name in CHECKS:
            CHECKS[name](folder, world_size)
        else:
            run(name, changes, folder, world_size)
    if world_size > 1:
        distributed.barrier()
        os._exit(0)  # the destructors of torch's process groups may abort, or wait for each other for ever
