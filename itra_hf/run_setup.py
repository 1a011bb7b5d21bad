"""What the setup of a run means for its matching: what is refused, and the share of the weight that its rows leave."""

import torch
from torch import nn
from transformers import Trainer
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.trainer_utils import has_length

from itra_hf.config import MatchingArguments, matching_arguments
from itra_hf.guards import share_for_rows
from itra_hf.labels import LABEL_COLUMNS, label_column, label_kind
from itra_hf.matching import choose_matching_loss


def matching_share(trainer: Trainer) -> float:
    """The share of `matching_weight` that the rows and epochs of a run leave; known once training has begun.

    Less than an epoch, or a training set without length, counts as one epoch of the rows of all steps.
    """
    planned = trainer.state.max_steps * trainer.get_total_train_batch_size(trainer.args)
    rows = min(len(trainer.train_dataset), planned) if has_length(trainer.train_dataset) else planned
    return share_for_rows(rows, planned / rows, matching_arguments(trainer.args).matching_full_weight_rows)


def check_setup(trainer: Trainer, model: nn.Module, rows: int, own_loss: bool) -> None:
    """Refuse, before anything runs, what no matching can be done with.

    Args:
        trainer: as its constructor leaves it.
        model: the one it trains.
        rows: of a batch of one device; of all of them, where batches are split over the ranks.
        own_loss: whether a loss of the user's matches, which takes any labels.

    Raises:
        ValueError: with the value and the way out.
    """
    args = matching_arguments(trainer.args)
    if trainer.args.n_gpu > 1:
        raise ValueError(
            f"ITRA cannot match features under nn.DataParallel ({trainer.args.n_gpu} devices in one process); start "
            "the script with `accelerate launch`, or make one device visible"
        )
    check_rows(trainer, rows)
    whole_step = args.matching_scope == "optimizer_step"
    if whole_step and trainer.args.torch_compile:
        raise ValueError(
            "matching_scope='optimizer_step' runs every micro-batch twice with the same dropout masks, which a "
            "compiled model cannot promise; take torch_compile=False, or matching_scope='micro_batch'"
        )
    if trainer.args.torch_compile and args.feature_layer != "head" and args.matching_max_grad_ratio is not None:
        raise ValueError(
            f"a compiled model hides the task's gradient at a hidden state (feature_layer={args.feature_layer!r}), so "
            "the cap on the matching's gradient cannot be kept; take feature_layer='head', or set torch_compile=False "
            "or matching_max_grad_ratio=None"
        )
    if trainer.args.ddp_static_graph and trainer.args.world_size > 1 and args.matching_max_grad_ratio is not None:
        raise ValueError(
            "with ddp_static_graph=True DDP reduces the first gradient that is taken, which is the cap's, and the "
            "ranks drift apart; leave ddp_static_graph out, or set matching_max_grad_ratio=None"
        )
    if trainer.is_deepspeed_enabled and args.matching_max_grad_ratio is not None:
        _check_deepspeed(trainer)
    if trainer.args.train_sampling_strategy == "batch_rebalance" and args.pairing == "class":
        raise ValueError(
            "train_sampling_strategy='batch_rebalance' makes its own batches, which pairing='class' cannot keep; "
            "take pairing='random' or another strategy"
        )
    if not own_loss and args.matching in ("class_conditional", "joint"):
        _check_labels(trainer, args, model)


def check_rows(trainer: Trainer, rows: int) -> None:
    """Refuse batches that leave no pair to match.

    Args:
        trainer: as its constructor leaves it.
        rows: of a batch of one device; of all of them, where batches are split over the ranks.

    Raises:
        ValueError: where a device, or with `matching_scope="optimizer_step"` its whole step, has fewer than two rows.
    """
    if trainer.accelerator.split_batches:
        rows //= trainer.args.world_size
    whole_step = matching_arguments(trainer.args).matching_scope == "optimizer_step"
    if (rows * trainer.args.gradient_accumulation_steps if whole_step else rows) < 2:
        raise ValueError(
            f"{rows} row in a batch of one device (per_device_train_batch_size="
            f"{trainer.args.per_device_train_batch_size}) leaves no pair to match; take at least 2 for each device, or "
            "accumulate gradients with matching_scope='optimizer_step', or take matching='none'"
        )


def _check_deepspeed(trainer: Trainer) -> None:
    """Refuse what hides the task's gradient from the cap under DeepSpeed."""
    way_out = "set matching_max_grad_ratio=None and a small matching_weight, or train with DDP or FSDP2"
    if is_deepspeed_zero3_enabled():
        raise ValueError(f"DeepSpeed's ZeRO stage 3 shards the head's weight, which the cap needs; {way_out}")
    if trainer.label_smoother is not None or trainer.compute_loss_func is not None:
        raise ValueError(
            "under DeepSpeed the cap knows the loss that transformers takes of the logits, but not label smoothing or "
            f"compute_loss_func; {way_out}"
        )


def _check_labels(trainer: Trainer, args: MatchingArguments, model: nn.Module) -> None:
    """Refuse a form that the training set's labels, as far as they can be read at once, do not serve."""
    columns = getattr(trainer.train_dataset, "column_names", None)
    if trainer.args.remove_unused_columns and columns and not {*LABEL_COLUMNS, *trainer.label_names} & set(columns):
        raise ValueError(
            f"matching={args.matching!r} needs labels, but the training set has only the columns {columns}; "
            "name one 'labels', or take matching='marginal'"
        )
    values = label_column(trainer.train_dataset)
    if values is not None and values.dtype.kind in "iufb":
        choose_matching_loss(args, label_kind(torch.as_tensor(values[:1]), model))
