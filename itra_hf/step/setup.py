"""What the setup of a run means for its matching: what is refused, and the share of the weight that its rows leave."""

from typing import Any, cast

import datasets
import numpy as np
import torch
from torch import nn
from transformers import Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES
from transformers.trainer_utils import has_length
from transformers.utils import logging
from transformers.utils.hub import PushToHubMixin

from itra_hf.config import MatchingArguments, matching_arguments
from itra_hf.features import (
    FeatureReader,
    HeadNotFoundError,
    head_candidates,
    hidden_state_index,
    module_named,
    refuse_multiple_choice,
)
from itra_hf.labels import label_kind
from itra_hf.pairing import first_labels, label_names
from itra_hf.step.forms import choose_matching_loss
from itra_hf.step.guards import ramp, share_for_rows
from itra_hf.step.matching import Matching

logger = logging.get_logger(__name__)


def _check_head(model: nn.Module) -> None:
    """Raise `HeadNotFoundError` if a model of transformers or peft has no layer that its config's labels fit."""
    if type(model).__name__ in MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES.values():
        refuse_multiple_choice(model)
    is_known = type(model).__module__.startswith(("transformers.", "peft."))  # of others the first step tells
    if is_known and isinstance(model, PushToHubMixin) and not head_candidates(model):
        labels = cast(Any, model).config.num_labels
        raise HeadNotFoundError(
            f"{type(model).__name__} has no linear classification head (config.num_labels={labels}); name "
            "another module by feature_layer, with matching='marginal' where a row has no label of its own"
        )


def is_asked(trainer: Any) -> bool:
    """Whether the user of an ITRATrainer has asked for its matching, so that it is an error where it cannot be had."""
    return matching_arguments(trainer.args).matching != "auto" or trainer.matching_loss is not None


def raise_or_go_without(trainer: Any, reason: str | Exception, asked: bool = False) -> None:
    """No matching in this run: an error where it, or what cannot be had, was asked for; else one warning."""
    if asked or is_asked(trainer):
        error = reason if isinstance(reason, Exception) else HeadNotFoundError(reason)
        if "matching='none'" in str(error):
            raise error
        raise type(error)(f"{error}, or take matching='none'")
    but = ""
    if trainer.row_order is not None and trainer.row_order.sampler is not None:
        but = " but for the order of the rows, which are paired already (matching='none' has Trainer's)"
    if not trainer.cannot_match:
        logger.warning(f"{reason}; training goes on without matching, as under Trainer{but}.")
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
    return share_for_rows(rows, planned / max(rows, 1), matching_arguments(trainer.args).matching_full_weight_rows)


def micro_batches_and_divisor(trainer: Trainer, num_items_in_batch: Any) -> tuple[int, int]:
    """The micro-batches of this optimizer step, and by how many of them the matching loss is still to be divided.

    Trainer divides the loss by them, unless by its own rule the task loss is a mean over the step already.
    """
    micro_batches = trainer.current_gradient_accumulation_steps
    is_mean = getattr(trainer, "loss_is_scaled_for_ga", None)  # since transformers 5.23
    if is_mean is None:
        counted = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        is_mean = counted or trainer.compute_loss_func is not None
    return micro_batches, micro_batches if is_mean else 1


def check_setup(trainer: Any, rows: int, training: bool) -> None:
    """Refuse, before anything runs, what an ITRATrainer cannot match; as training begins, `"auto"` warns of it.

    The rows are those of a batch of one device, or of all of them where batches are split over the ranks.
    """
    args = matching_arguments(trainer.args)
    layer = str(args.feature_layer)
    if layer != "head" and hidden_state_index(layer) is None:
        module_named(trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False), layer)
    try:
        if layer == "head":
            _check_head(trainer.model)
        _check_rows(trainer, rows)
    except ValueError as error:
        if training or is_asked(trainer):
            raise_or_go_without(trainer, error)
        return
    whole_step = args.matching_scope == "optimizer_step"
    if whole_step and trainer.args.torch_compile:
        raise ValueError(
            "matching_scope='optimizer_step' runs every micro-batch twice with the same dropout masks, which a "
            "compiled model cannot promise; take torch_compile=False, or matching_scope='micro_batch'"
        )
    kwargs = cast(dict[str, Any], trainer.args.gradient_checkpointing_kwargs or {})
    inside = hidden_state_index(layer) is not None or (layer != "head" and whole_step)
    if inside and trainer.args.gradient_checkpointing and kwargs.get("use_reentrant"):
        raise ValueError(
            f"feature_layer={args.feature_layer!r} lies where gradient checkpointing with use_reentrant=True keeps no "
            "graph; take gradient_checkpointing_kwargs={'use_reentrant': False}"
        )
    changed = not training or trainer.model_init is not None  # what was looked at before is not read again
    if changed and trainer.matching_loss is None and args.matching in ("class_conditional", "joint"):
        _check_labels(trainer, args)


def _check_rows(trainer: Trainer, rows: int) -> None:
    """Refuse batches that leave no pair to match on a device, or that threads share."""
    if trainer.args.n_gpu > 1:
        raise ValueError(
            f"ITRA cannot match features under nn.DataParallel ({trainer.args.n_gpu} devices in one process); start "
            "the script with `accelerate launch`, or make one device visible"
        )
    if trainer.accelerator.split_batches:
        rows //= trainer.args.world_size
    whole_step = matching_arguments(trainer.args).matching_scope == "optimizer_step"
    if (rows * trainer.args.gradient_accumulation_steps if whole_step else rows) < 2:
        compiled = trainer.args.torch_compile  # which admits no other scope
        accumulate = "" if compiled else "accumulate gradients with matching_scope='optimizer_step', or "
        raise ValueError(
            f"{rows} row in a batch of one device (per_device_train_batch_size="
            f"{trainer.args.per_device_train_batch_size}) leaves no pair to match; take at least 2 for each device, or "
            f"{accumulate}take matching='none'"
        )


def _check_labels(trainer: Trainer, args: MatchingArguments) -> None:
    """Refuse a form that the labels of the first row do not serve, where they reach the model as they are.

    A collator or a transform of the user's own may make other labels of them; then the first batch tells.
    """
    dataset: Any = trainer.train_dataset
    collator: Any = trainer.data_collator
    is_datasets = isinstance(dataset, datasets.Dataset)
    module = getattr(collator, "__module__", "")  # of a function, or of an object's class
    if not module.startswith("transformers.") or (is_datasets and dataset.format["type"] == "custom"):
        return
    names = label_names(trainer.label_names)
    if is_datasets and trainer.args.remove_unused_columns and not {*names, *trainer.label_names} & {*dataset.features}:
        raise ValueError(
            f"matching={args.matching!r} needs labels, but the training set has only the columns "
            f"{dataset.column_names}; name one 'labels', or take matching='marginal'"
        )
    labels, model = first_labels(dataset, names), cast(Any, trainer.model)
    try:
        first = torch.as_tensor(np.asarray(labels))
    except (TypeError, ValueError):  # strings, lists of unequal length
        return
    width = model.config.num_labels if isinstance(trainer.model, PushToHubMixin) else None
    kind = label_kind(first, model, width)
    if len(first) == 1 and (kind != "tokens" or width is not None):  # else the batches tell
        choose_matching_loss(args, kind)


def in_one_line(trainer: Any, matching: Matching, reader: FeatureReader) -> str:
    """What a run matches, with which weight and guards, and how many of the first batch's rows are in couples."""
    args, share = matching_arguments(trainer.args), matching_share(trainer)
    own = getattr(trainer.matching_loss, "__name__", type(trainer.matching_loss).__name__)
    form = matching.form if trainer.matching_loss is None else f"matching_loss={own}"
    names = {module: name for name, module in matching.model.named_modules()}
    first = matching.couples.first
    couples = "" if first is None else f"{first:.0%} of the first batch in couples of one class; "
    return (
        f"ITRA matches {reader.describe(names)} {list(matching.shape)} by {form}; {couples}weight "
        f"{args.matching_weight:g} x {share:.3g} for the rows of the run, over a ramp of "
        f"{args.matching_warmup_ratio:.0%} of the steps, cap {args.matching_max_grad_ratio}"
    )
