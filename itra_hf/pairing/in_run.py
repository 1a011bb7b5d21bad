"""Whether the rows of a run are paired by class, and why not."""

import copy
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import datasets
from torch import Tensor
from torch.utils.data import IterableDataset, Subset
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from itra_hf.features import kept_random_state
from itra_hf.labels import label_name, labels_in
from itra_hf.pairing.sampler import ClassPairedSampler


@dataclass(frozen=True)
class Pairing:
    """What orders the rows of a run, why a batch may hold no couples of one class, and what to do about it."""

    sampler: ClassPairedSampler | None = None  # None where something else orders them
    reason: str = ""
    way_out: str = "order the rows as itra_hf.ClassPairedSampler(labels) does"


WAS_OFF = Pairing(
    reason="the matching was off when the data loader was made",
    way_out="begin with a matching_weight above 0 and let matching_warmup_ratio raise it",
)
UNKNOWN = Pairing(
    reason="the classes of the training rows cannot be told without loading the rows",
    way_out="override get_train_labels(train_dataset) to return one integer for each row",
)


def pair_rows(trainer: Any, train_dataset: Any, parent_sampler: Any) -> Pairing:
    """How an ITRATrainer orders its rows under `pairing="class"`.

    The other arguments are what its `_get_train_sampler` is given, and that method of the class after ITRATrainer.
    """
    if not trainer.matching_is_on:
        return WAS_OFF
    args, dataset = trainer.args, trainer.train_dataset
    if has_length(train_dataset) and not (has_length(dataset) and len(dataset) == len(train_dataset)):
        dataset = train_dataset  # else the whole one: Trainer gives it without the columns that no model takes
    if not has_length(dataset):
        return not_asked(trainer)
    if args.train_sampling_strategy != "random":
        orders = f"train_sampling_strategy={args.train_sampling_strategy!r} decides on the order of the rows"
        return Pairing(reason=orders, way_out="take train_sampling_strategy='random'")
    if parent_sampler.__func__ is not Trainer._get_train_sampler:
        return Pairing(reason=f"{parent_sampler.__qualname__} decides on the order of the rows")
    labels = trainer.get_train_labels(dataset)
    if labels is None:
        return UNKNOWN
    if len(labels) != len(dataset):
        raise ValueError(
            f"get_train_labels gave {len(labels)} labels for {len(dataset)} training rows; give one a row, or None to "
            "pair rows at random"
        )
    sampler = ClassPairedSampler(labels, seed=args.seed if args.data_seed is None else args.data_seed)
    trainer.remove_callback(SetSamplerEpoch)
    trainer.add_callback(SetSamplerEpoch(sampler))
    those = " or ".join([*_own_methods(trainer), "the data set", "the data collator"])
    reason = f"{those} gives other rows than the sampler ordered"
    return Pairing(sampler, reason, way_out="let it keep the rows and their order")


def not_asked(trainer: Any) -> Pairing:
    """Where the data loader of a run has not asked ITRATrainer for a sampler."""
    dataset = trainer.train_dataset
    if not has_length(dataset) or isinstance(dataset, IterableDataset):
        return Pairing(reason="a stream has an order of its own")
    those = " and ".join(_own_methods(trainer)) or "the data loader"
    return Pairing(reason=f"{those} takes no sampler of ITRATrainer's")


def _own_methods(trainer: Any) -> list[str]:
    """The methods of a user's trainer that decide on the order of the rows."""
    methods = (type(trainer).get_train_dataloader, type(trainer)._get_train_sampler)
    names = [method.__qualname__.split(".")[-2:] for method in methods]
    return [".".join(name) for name in names if name[0] not in ("Trainer", "ITRATrainer")]


class Couples:
    """Looks at the classes of a run's first batches, whether their couples share one.

    A couple is one row on each side. The sides are dealt by class, or rows 2k and 2k + 1 are the couples.
    """

    LOOKED_AT = 64  # rows, in three batches at least

    def __init__(self) -> None:
        self.by_class, self.rows = True, 0  # rows of the first batch
        self._shares: list[float] = []

    def look_at(self, labels: Tensor) -> None:
        """Note a batch, if it is one of the first that are as large as the very first."""
        if not self.are_seen and len(labels) >= max(self.rows, 2):
            self.rows = self.rows or len(labels)
            self._shares.append(2 * self._count(labels.tolist()) / len(labels))

    def _count(self, classes: list[int]) -> int:
        if self.by_class:
            return sum(count // 2 for count in Counter(classes).values())
        return sum(source == target for source, target in zip(classes[0::2], classes[1::2], strict=False))

    @property
    def are_seen(self) -> bool:
        """Whether enough batches were looked at."""
        return len(self._shares) >= max(3, self.LOOKED_AT / max(self.rows, 1))

    @property
    def first(self) -> float | None:
        """The share of the first batch; None where its rows have no class."""
        return self._shares[0] if self._shares else None

    def missing(self, pairing: Pairing) -> str | None:
        """A sentence where fewer couples share a class than should; None where they do, or nothing was seen.

        Without the sampler nine in ten are enough: by chance as many are of one class where batches hold few classes.
        With it there may be fewer in a few batches, into which more of the left-over rows fall than into others.
        """
        if not self._shares:
            return None
        share, enough = sum(self._shares) / len(self._shares), 0.9
        if pairing.sampler is not None:
            enough = 0.8 * pairing.sampler.share_in_couples * (1 - self.rows % 2 / self.rows) - 0.1
        if share >= enough:
            return None
        reason, way_out = pairing.reason, pairing.way_out
        if pairing.sampler is not None and self.rows % 2 and not self.by_class:
            reason, way_out = f"batches of {self.rows} rows cut couples apart", "take an even batch size"
        return (
            f"{share:.0%} of the rows in the first batches are in couples of one class, because {reason}; {way_out}, "
            "or set pairing='random'"
        )


def collated_labels(trainer: Any, dataset: Any, rows: list[int]) -> Any:
    """The labels that the trainer's model gets for some rows of a data set; None where they do not collate."""
    with kept_random_state(trainer.args.device), suppress(Exception):  # what serves only in training: the names decide
        few = dataset.select(rows) if isinstance(dataset, datasets.Dataset) else Subset(dataset, rows)
        loader = trainer.get_test_dataloader(few)
        examples = [copy.deepcopy(loader.dataset[number]) for number in range(len(rows))]  # a collator may edit them
        return labels_in(loader.collate_fn(examples), label_name(trainer.label_names))
    return None


class SetSamplerEpoch(TrainerCallback):
    """Tells the sampler which epoch begins, also where a resumed data loader hides it."""

    def __init__(self, sampler: ClassPairedSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch."""
        self.sampler.set_epoch(int((state.epoch or 0) + 1e-6))
