"""What a user would try instead of ITRA, each from its paper, as a small Trainer with one `strength`.

Label smoothing is an option of Trainer, and dropout an option of the network.
"""

from typing import Any

import torch
from networks import find_head
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer

from itra_hf import ITRATrainer, features
from itra_hf.features import HeadInput


def centre_loss(features: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """`mean_i |x_i - c_(y_i)|^2 / 2` (Wen et al., ECCV 2016, with the mean of the batch for its sum)."""
    return (features - centres[labels]).square().sum(1).mean() / 2


def moved_centres(features: Tensor, labels: Tensor, centres: Tensor, rate: float = 0.5) -> Tensor:
    """`c_j - rate * sum_(i of j) (c_j - x_i) / (1 + n_j)`, the update of the same paper."""
    counts = torch.bincount(labels, minlength=len(centres))
    gaps = torch.zeros_like(centres).index_add_(0, labels, centres[labels] - features)
    return centres - rate * gaps / (1 + counts)[:, None]


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """`(KL(p || q) + KL(q || p)) / 2` of two rows of logits each, averaged over rows."""
    p, q = first.log_softmax(1), second.log_softmax(1)
    return ((p.exp() - q.exp()) * (p - q)).sum(1).mean() / 2


def flooded(loss: Tensor, level: float) -> Tensor:
    """`|loss - b| + b` (Ishida et al., ICML 2020)."""
    return (loss - level).abs() + level


def mixed_loss(logits: Tensor, labels: Tensor, order: Tensor, share: Tensor) -> Tensor:
    """`share * CE(logits, y) + (1 - share) * CE(logits, y[order])`."""
    first, second = (functional.cross_entropy(logits, target) for target in (labels, labels[order]))
    return share * first + (1 - share) * second


class Rival(Trainer):
    """A Trainer whose training loss is `training_loss`; evaluation is Trainer's."""

    def __init__(self, *args: Any, strength: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.strength = strength
        self._head: HeadInput | None = None

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = self.training_loss(model, dict(inputs))
        return (loss, outputs) if return_outputs else loss

    def training_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def task_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """Trainer's loss, and the outputs."""
        return super().compute_loss(model, inputs, True)

    def with_features(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any, Tensor]:
        """Trainer's loss, the outputs, and the head's input `[rows, d]`."""
        if self._head is None:
            self._head = features.find_head(self.model, inputs)
        with self._head.attached():
            loss, outputs = self.task_loss(model, inputs)
            return loss, outputs, self._head.rows(outputs, inputs.get("attention_mask")).float()


class CentreLossTrainer(Rival):
    """Cross-entropy and `strength` times the centre loss; the centres start at 0 and move with the features."""

    centres: Tensor | None = None

    def training_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        loss, outputs, features = self.with_features(model, inputs)
        if self.centres is None:
            self.centres = features.new_zeros(outputs["logits"].shape[1], features.shape[1])
        pull = centre_loss(features, inputs["labels"], self.centres)
        self.centres = moved_centres(features.detach(), inputs["labels"], self.centres)
        return loss + self.strength * pull, outputs


class SupConTrainer(Rival):
    """`(1 - strength) * CE + strength * SupCon` at temperature 0.1 (Khosla et al. 2020; Gunel et al., ICLR 2021)."""

    def training_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        loss, outputs, features = self.with_features(model, inputs)
        contrast = SupConLoss(temperature=0.1)(features, inputs["labels"])
        return (1 - self.strength) * loss + self.strength * contrast, outputs


class RDropTrainer(Rival):
    """`CE + strength * symmetric_kl` of two passes with different dropout masks (Wu et al., NeurIPS 2021).

    Every row is forwarded twice, as in the paper: twice the cost of the other methods.
    """

    def training_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        twice = {name: torch.cat([value, value]) for name, value in inputs.items()}
        loss, outputs = self.task_loss(model, twice)
        first, second = outputs["logits"].float().chunk(2)
        return loss + self.strength * symmetric_kl(first, second), outputs


class MixupTrainer(Rival):
    """Mixup with shares from Beta(strength, strength): of images (Zhang et al., ICLR 2018), of the head's input
    for texts (Guo et al. 2019)."""

    def training_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        labels = inputs.pop("labels")
        order = torch.randperm(len(labels), device=labels.device)
        share = self.share().to(labels.device)

        def mix(rows: Tensor) -> Tensor:
            return share * rows + (1 - share) * rows[order]

        if "pixel_values" in inputs:
            outputs = model(**inputs | {"pixel_values": mix(inputs["pixel_values"])})
        else:
            handle = find_head(model).register_forward_pre_hook(lambda _, args: (mix(args[0]),))
            outputs = model(**inputs)
            handle.remove()
        return mixed_loss(outputs["logits"].float(), labels, order, share), outputs

    def share(self) -> Tensor:
        return torch.distributions.Beta(self.strength, self.strength).sample()


class ITRAMixupTrainer(ITRATrainer, MixupTrainer):
    """Mixup, whose mixed rows are matched by the class that has the larger share of them."""

    def share(self) -> Tensor:
        share = super().share()
        return torch.maximum(share, 1 - share)


class FloodingTrainer(Rival):
    """Cross-entropy that is kept near `strength`."""

    def training_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        loss, outputs = self.task_loss(model, inputs)
        return flooded(loss, self.strength), outputs
