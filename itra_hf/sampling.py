"""When the rows of a run are paired by class, and what keeps the sampler's epoch."""

from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import has_length
from transformers.utils import logging

from itra_hf.config import matching_arguments
from itra_hf.pairing import ClassPairedSampler

logger = logging.get_logger(__name__)


def class_pairs(trainer: Any, train_dataset: Any, parent_sampler: Any) -> Any:
    """The sampler for `pairing="class"`; with a warning the other one, where something else orders the rows.

    Args:
        trainer: whose arguments say how its rows are drawn, and which tells the class of every row.
        train_dataset: as `_get_train_sampler` is given it.
        parent_sampler: the method `_get_train_sampler` of the class after ITRATrainer.

    Raises:
        ValueError: if there is not one label a row.
    """
    args, orders, dataset = trainer.args, None, trainer.train_dataset
    if has_length(train_dataset) and not (has_length(dataset) and len(dataset) == len(train_dataset)):
        dataset = train_dataset  # else the whole one: Trainer gives it without the columns that no model takes
    labels = trainer.get_train_labels(dataset)
    if labels is None:
        return parent_sampler(train_dataset)
    if args.train_sampling_strategy != "random":
        orders = f"train_sampling_strategy={args.train_sampling_strategy!r}"
    elif parent_sampler.__func__ is not Trainer._get_train_sampler:
        orders = parent_sampler.__qualname__
    if orders is not None:
        logger.warning(
            f"{orders} decides on the order of the rows, so they are not paired by class, and the halves of a batch "
            "share a class by chance alone; pairing='random' has the same without this warning."
        )
        return parent_sampler(train_dataset)
    if len(labels) != len(dataset):
        raise ValueError(
            f"get_train_labels gave {len(labels)} labels for {len(dataset)} training rows; give one a row, or None to "
            "pair rows at random"
        )
    _warn_of_odd_batches(trainer)
    sampler = ClassPairedSampler(labels, seed=args.seed if args.data_seed is None else args.data_seed)
    trainer.remove_callback(SetSamplerEpoch)
    trainer.add_callback(SetSamplerEpoch(sampler))
    return sampler


def _warn_of_odd_batches(trainer: Trainer) -> None:
    args = trainer.args
    rows = args.train_batch_size
    if matching_arguments(args).matching_scope == "optimizer_step" and args.world_size == 1:
        rows *= args.gradient_accumulation_steps
    if rows % 2:
        logger.warning(
            f"per_device_train_batch_size={args.per_device_train_batch_size} is odd, which cuts couples of one class "
            "apart; take an even one."
        )


class SetSamplerEpoch(TrainerCallback):
    """Tells the sampler which epoch begins, also where a resumed data loader hides it."""

    def __init__(self, sampler: ClassPairedSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch."""
        self.sampler.set_epoch(int((state.epoch or 0) + 1e-6))
