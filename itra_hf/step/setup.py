"""What the setup of a run means for its matching: what is refused, and the share of the weight that its rows leave."""

from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import has_length
from transformers.utils import logging
from transformers.utils.hub import PushToHubMixin

from itra_hf.config import MatchingArguments, matching_arguments
from itra_hf.features import HeadNotFoundError, head_candidates
from itra_hf.labels import LABEL_COLUMNS, label_column, label_kind
from itra_hf.sampling import SetSamplerEpoch
from itra_hf.step.forms import choose_matching_loss
from itra_hf.step.guards import ramp, share_for_rows

logger = logging.get_logger(__name__)

OTHER_FEATURES = "a model with a classification head, or a hidden state (feature_layer) and matching='marginal'"


def check_head(model: nn.Module) -> None:
    """Raise `HeadNotFoundError` if a model of transformers or peft has no layer that its config's labels fit."""
    if isinstance(model, PushToHubMixin) and not head_candidates(model):
        labels = cast(Any, model).config.num_labels
        raise HeadNotFoundError(
            f"{type(model).__name__} has no linear classification head (config.num_labels={labels})"
        )


def is_asked(trainer: Any) -> bool:
    """Whether the user of an ITRATrainer has asked for its matching, so that it is an error where it cannot be had."""
    return matching_arguments(trainer.args).matching != "auto" or trainer.matching_loss is not None


def refuse(trainer: Any, reason: str, way_out: str = OTHER_FEATURES, asked: bool = False) -> None:
    """No matching in this run: an error where one was asked for, else one warning.

    Args:
        trainer: an ITRATrainer.
        reason: why it cannot match.
        way_out: what to do instead.
        asked: whether another option asks for what cannot be had.
    """
    if asked or is_asked(trainer):
        raise HeadNotFoundError(f"{reason}; take matching='none', or {way_out}")
    is_paired = any(isinstance(callback, SetSamplerEpoch) for callback in trainer.callback_handler.callbacks)
    but = " but for the order of the rows, which are paired already (matching='none' has Trainer's)"
    if not trainer.cannot_match:
        logger.warning(f"{reason}; training goes on without matching, as under Trainer{but if is_paired else ''}.")
    trainer.cannot_match = True


def asked_weight(trainer: Trainer) -> float:
    """The matching's weight in this step, before the cap: for so many rows, after the ramp."""
    args = matching_arguments(trainer.args)
    ramped = ramp(trainer.state.global_step, trainer.state.max_steps, args.matching_warmup_ratio)
    return args.matching_weight * matching_share(trainer) * ramped


def matching_share(trainer: Trainer) -> float:
    """The share of `matching_weight` that the rows and epochs of a run leave; known once training has begun.

    Less than an epoch, or a training set without length, counts as one epoch of the rows of all steps.
    """
    planned = trainer.state.max_steps * trainer.get_total_train_batch_size(trainer.args)
    rows = min(len(trainer.train_dataset), planned) if has_length(trainer.train_dataset) else planned
    return share_for_rows(rows, planned / rows, matching_arguments(trainer.args).matching_full_weight_rows)


def check_setup(trainer: Any, rows: int, training: bool) -> None:
    """Refuse, before anything runs, what no matching can be done with.

    Args:
        trainer: an ITRATrainer that matches.
        rows: of a batch of one device; of all of them, where batches are split over the ranks.
        training: whether training begins, where `"auto"` warns of a model without a head.

    Raises:
        ValueError: with the value and the way out.
    """
    args = matching_arguments(trainer.args)
    try:
        if args.feature_layer == "head":
            check_head(trainer.model)
    except HeadNotFoundError as error:
        if training or is_asked(trainer):
            refuse(trainer, str(error))
        return
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
    kwargs = cast(dict[str, Any], trainer.args.gradient_checkpointing_kwargs or {})
    if args.feature_layer != "head" and trainer.args.gradient_checkpointing and kwargs.get("use_reentrant"):
        raise ValueError(
            f"feature_layer={args.feature_layer!r} lies where gradient checkpointing with use_reentrant=True keeps no "
            "graph; take gradient_checkpointing_kwargs={'use_reentrant': False}, or feature_layer='head'"
        )
    if trainer.args.train_sampling_strategy == "batch_rebalance" and args.pairing == "class":
        raise ValueError(
            "train_sampling_strategy='batch_rebalance' makes its own batches, which pairing='class' cannot keep; "
            "take pairing='random' or another strategy"
        )
    changed = not training or trainer.model_init is not None  # what was looked at before is not read again
    if changed and trainer.matching_loss is None and args.matching in ("class_conditional", "joint"):
        _check_labels(trainer, args)


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


def _check_labels(trainer: Trainer, args: MatchingArguments) -> None:
    """Refuse a form that the training set's labels, as far as they can be read at once, do not serve."""
    columns = getattr(trainer.train_dataset, "column_names", None)
    if trainer.args.remove_unused_columns and columns and not {*LABEL_COLUMNS, *trainer.label_names} & set(columns):
        raise ValueError(
            f"matching={args.matching!r} needs labels, but the training set has only the columns {columns}; "
            "name one 'labels', or take matching='marginal'"
        )
    values = label_column(trainer.train_dataset)
    if values is not None and values.dtype.kind in "iufb":
        choose_matching_loss(args, label_kind(torch.as_tensor(values[:1]), cast(Any, trainer.model)))
