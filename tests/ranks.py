"""Trains scenarios and saves what came out. Run by test_distributed.py, in one process and in two."""

import copy
import json
import sys
from pathlib import Path

import tiny
import torch
from accelerate import DistributedType, PartialState
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from itra_hf import ITRATrainer
from itra_hf.diagnostics import Compactness, ITRADiagnosticsCallback
from itra_hf.distributed import gather_rows

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
    values = model.state_dict().values()
    values = [value.full_tensor() if isinstance(value, DTensor) else value for value in values]
    return torch.cat([value.double().flatten() for value in values])


def run(name: str, changes: dict, folder: Path, world_size: int) -> None:
    torch.manual_seed(0)
    kind = changes.pop("model", "mlp")
    model = {"counting": tiny.CountingMlp, "mlp": tiny.Mlp, "bert": tiny.bert}[kind](dropout=changes.pop("dropout", 0))
    start, resume_at = copy.deepcopy(model), changes.pop("resume_at", None)
    if resume_at is not None:
        changes |= {"save_strategy": "steps", "save_steps": resume_at}
    rows = (tiny.texts if kind == "bert" else tiny.vectors)(changes.pop("rows", 64))
    one_class_per_rank = changes.pop("one_class_per_rank", False)
    if one_class_per_rank:  # with a sequential order rank 0 gets the first half of each global batch
        rows = [row | {"labels": i % 16 // 8} for i, row in enumerate(rows)]
    keywords = {"matching_loss": energy_distance} if changes.pop("custom", False) else {}
    measures = changes.pop("measures", None)
    if measures:
        keywords["callbacks"] = [ITRADiagnosticsCallback(measures, every=2, max_share=1)]
    per_device = changes.pop("rows_per_step", ROWS_PER_STEP) // world_size
    options = {"max_steps": 6, "logging_steps": 1, "per_device_train_batch_size": per_device, "learning_rate": 0.05}
    options |= {"optim": "sgd", "matching_warmup_ratio": 0.5, "matching_weight": 3.0} | changes
    cls = ShardedTrainer if "fsdp" in changes else ITRATrainer
    trainer = tiny.trainer(folder / name, model, rows, cls, keywords=keywords, **options)
    trainer.train()
    result = {"weights": full_weights(trainer.model), "log": trainer.state.log_history}
    result["engine"] = type(trainer.model_wrapped).__name__
    result["sharded"] = all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    if resume_at is not None:
        resumed = tiny.trainer(folder / name, start, rows, cls, keywords=keywords, **options)
        resumed.train(resume_from_checkpoint=str(folder / name / f"checkpoint-{resume_at}"))
        result |= {"weights": full_weights(resumed.model), "uninterrupted": result["weights"]}
    torch.save(result, folder / f"{name}-{world_size}-{trainer.args.process_index}.pt")


def gather(folder: Path, world_size: int) -> None:
    """Rows of unequal number on the ranks, and the gradient at this rank's rows."""
    rank = distributed.get_rank()
    mine = (torch.arange(6.0).view(3, 2) if rank == 0 else 10 + torch.arange(2.0).view(1, 2)).requires_grad_()
    rows = gather_rows(mine)
    (rows.square().sum() / 2).backward()
    torch.save({"rows": rows.detach(), "grad": mine.grad}, folder / f"gather-{world_size}-{rank}.pt")


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


if __name__ == "__main__":
    folder, world_size = Path(sys.argv[1]), int(sys.argv[2])
    for name, changes in json.loads(sys.argv[3]).items():
        run(name, changes, folder, world_size)
    if world_size > 1:
        gather(folder, world_size)
        metric(folder, world_size)
        distributed.destroy_process_group()
