"""A fixed sample of a trainer's rows, and what is measured on it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import datasets
import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from transformers import Trainer

from itra_hf.config import MatchingArguments
from itra_hf.diagnostics.gradients import gradient_scatter, over_adaptation
from itra_hf.diagnostics.modes import mode_separation
from itra_hf.diagnostics.scatter import compactness
from itra_hf.features import extract_features, find_features, find_head, undisturbed
from itra_hf.labels import label_name

LabelledFeatures = tuple[Tensor, Tensor]  # `[n, d]` and `[n]`


class Probe:
    """Measures a trainer's model on the same rows every time; the arguments are those of the callback.

    Every rank measures all of these rows itself, so that nothing has to be sent between ranks.
    """

    def __init__(
        self,
        trainer: Trainer,
        measures: Sequence[str],
        dataset: Any,
        modes: Sequence[Any] | None,
        max_rows: int,
        num_batches: int,
        seed: int,
    ) -> None:
        self.trainer, self.measures = trainer, measures
        evaluation: Any = trainer.eval_dataset if dataset is None else dataset
        if isinstance(evaluation, dict):
            evaluation = next(iter(evaluation.values()))
        self.prefix = "train_" if evaluation is None else "eval_"
        rows: Any = trainer.train_dataset if evaluation is None else evaluation
        indices = sorted(_drawn(rows, max_rows, seed))
        if modes is not None and len(modes) != len(rows):
            raise ValueError(f"{len(modes)} modes do not fit the {len(rows)} rows of the data set; give one a row")
        self.modes = None if modes is None else np.asarray(modes)[indices]
        self._feature_batches = self._loader(rows, indices, trainer.args.eval_batch_size)
        self._train_batches: Iterable[Any] = ()
        if {"gradient_scatter", "over_adaptation"} & set(measures):
            size = trainer.args.train_batch_size
            drawn = _drawn(trainer.train_dataset, size * num_batches, seed)
            if len(drawn) <= size:
                raise ValueError(
                    f"{len(drawn)} training rows are one mini-batch of train_batch_size={size}, and its gradient has "
                    "nothing to be compared with; take smaller batches, or measures=('compactness',)"
                )
            self._train_batches = self._loader(trainer.train_dataset, drawn, size)

    def features(self) -> LabelledFeatures:
        """The features of the sample's rows that have a class, and their labels; the model is left as it was."""
        labels: list[Tensor] = []
        name = label_name(self.trainer.label_names)

        def noting_labels() -> Iterator[Mapping[str, Any]]:
            for batch in self._on_device(self._feature_batches):
                if name not in batch:
                    raise ValueError(f"the rows to measure hold no {name!r}; give the callback a labelled dataset")
                labels.append(batch[name].cpu())
                yield batch

        args = self.trainer.args
        find: Any = find_head
        if isinstance(args, MatchingArguments) and args.feature_layer != "head":
            find = partial(find_features, layer=str(args.feature_layer), pooling=args.feature_pooling)
        with undisturbed(self._model):
            rows = extract_features(self._model, noting_labels(), find)
        classes = torch.cat(labels)
        self._has_class = classes >= 0 if classes.ndim == 1 else torch.ones(len(classes), dtype=torch.bool)
        return rows[self._has_class], classes[self._has_class]

    def measure(self) -> tuple[dict[str, float], LabelledFeatures | None]:
        """The measures by their names in the log, and the features; model, optimizer and random state stay."""
        found: dict[str, float] = {}
        features: LabelledFeatures | None = None
        if "compactness" in self.measures or self.modes is not None:
            features = self.features()
            if "compactness" in self.measures:
                found |= compactness(*features)
            if self.modes is not None:
                found |= mode_separation(features[0], self.modes[self._has_class.numpy()], features[1])
        found = {f"{self.prefix}{name}": value for name, value in found.items()}
        with undisturbed(self._model):
            batches = list(self._on_device(self._train_batches))
            if "gradient_scatter" in self.measures:
                found |= gradient_scatter(self._model, batches, self._loss)
            if "over_adaptation" in self.measures:
                found |= self._over_adaptation(batches)
        return found, features

    @property
    def _model(self) -> nn.Module:
        return cast(nn.Module, self.trainer.model)

    def _over_adaptation(self, batches: list[Any]) -> dict[str, float]:
        """The means over pairs of a mini-batch and the one after it; nothing while the learning rate is 0."""
        optimizer = self.trainer.optimizer
        if optimizer is None or not any(group["lr"] > 0 for group in optimizer.param_groups):
            return {}
        pairs = zip(batches[::2], batches[1::2], strict=False)
        found = [over_adaptation(self._model, optimizer, *pair, self._loss) for pair in pairs]
        return {name: sum(each[name] for each in found) / len(found) for name in found[0]}

    def _loss(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """The task loss by the trainer's own rule, with label smoothing and all."""
        with self.trainer.compute_loss_context_manager():
            return cast(Tensor, self.trainer.compute_loss(model, dict(batch)))

    def _loader(self, dataset: Any, indices: list[int], batch_size: int) -> DataLoader[Any]:
        """Batches as the trainer collates them, all of them on every rank."""
        rows = dataset.select(indices) if isinstance(dataset, datasets.Dataset) else Subset(dataset, indices)
        prepared = self.trainer.get_test_dataloader(rows)
        return DataLoader(prepared.dataset, batch_size, collate_fn=prepared.collate_fn)

    def _on_device(self, batches: Iterable[Any]) -> Iterator[Any]:
        return (send_to_device(batch, self.trainer.args.device) for batch in batches)


def _drawn(dataset: Any, number: int, seed: int) -> list[int]:
    """Indices of rows drawn at random, without the global random state."""
    try:
        length = len(dataset)
    except TypeError as error:
        raise ValueError(
            f"a {type(dataset).__name__} has no length to draw rows from; give ITRADiagnosticsCallback a dataset that "
            "has, and measures=('compactness',) where the training set is a stream"
        ) from error
    drawn = torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:number]
    indices: list[int] = drawn.tolist()
    return indices
