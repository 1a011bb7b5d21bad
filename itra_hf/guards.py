"""The guards against collapse: the ramp of the weight, the cap on its gradient, and a watch on the features."""

import torch
from torch import Tensor
from torch.nn import functional

LEAST_LEARNT = 0.1


def ramp(step: int, max_steps: int, warmup_ratio: float) -> float:
    """The share of the weight at a step: `min(1, step / (warmup_ratio * max_steps))`.

    Args:
        step: optimizer steps taken so far.
        max_steps: optimizer steps of the run.
        warmup_ratio: share of the steps over which the weight rises from 0; 0 means no ramp.

    Example:
        >>> [ramp(step, 10, 0.4) for step in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 1.0]
    """
    warmup_steps = warmup_ratio * max_steps
    return 1.0 if step >= warmup_steps else step / warmup_steps


def log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of -log p over the rows' own classes, and the number of rows that have one, `[2]`, without gradient.

    Args:
        logits: `[rows, classes]`.
        labels: `[rows]`, integers; -100 marks a row without a class.
    """
    total = functional.cross_entropy(logits.detach().float(), labels.long(), reduction="sum")
    return torch.stack([total, (labels != -100).sum()])


def learnt_share(summed: Tensor, classes: int) -> Tensor:
    """How much of the classes the model predicts by now: 0.1 at chance and below, 1 where every row is certain.

    `max(0.1, (p - 1/K) / (1 - 1/K))`, where p is the geometric mean, over the rows, of the probability that the model
    gives to the row's class, and K the number of classes.

    Features that say little of the classes as yet differ mostly in what the matching wants gone, and a cap that looks
    at the size of gradients alone lets it take the little that is there.

    Args:
        summed: the sum of `log_loss` over ranks and micro-batches, `[2]`; without rows the share is 1.
        classes: K.

    Example:
        >>> learnt_share(torch.tensor([0.0, 8.0]), 10), learnt_share(torch.tensor([8.0, 8.0]), 2)
        (tensor(1.), tensor(0.1000))
        >>> learnt_share(torch.tensor([0.0, 0.0]), 10)
        tensor(1.)
    """
    total, rows = summed.unbind()
    probability = torch.exp(-total / rows.clamp(min=1))
    return ((probability - 1 / classes) / (1 - 1 / classes)).clamp(min=LEAST_LEARNT)


def capped_weight(weight: float, squared_norms: Tensor, max_ratio: float | Tensor) -> Tensor:
    """The weight, or less where the matching's gradient would outgrow its share of the task's.

    `min(weight, max_ratio * |task gradient| / |matching gradient|)`

    Args:
        weight: the weight that is asked for.
        squared_norms: `[2]`, the squared norms of the task's and of the unweighted matching's feature gradient.
        max_ratio: the largest allowed `weight * |matching gradient| / |task gradient|`.

    Returns:
        A scalar tensor; `weight` where the matching has no gradient.

    Example:
        >>> capped_weight(1.0, torch.tensor([4.0, 100.0]), max_ratio=0.5)
        tensor(0.1000)
        >>> capped_weight(1.0, torch.tensor([4.0, 0.0]), max_ratio=0.5)
        tensor(1.)
    """
    task, matching = squared_norms.sqrt().unbind()
    limit = max_ratio * task / matching
    return torch.where(matching > 0, limit.clamp(max=weight), weight)


class CollapseWatch:
    """Notices when features fall together: their scatter against its mean over the run.

    Args:
        threshold: features count as collapsed below this share of the mean squared scatter. The default means that
            distances shrank a thousandfold.

    Example:
        >>> watch = CollapseWatch()
        >>> watch.update(torch.tensor([[1.0], [3.0]]))
        >>> watch.collapsed()
        False
        >>> for _ in range(9):
        ...     watch.update(torch.tensor([[2.0], [2.0]]))
        >>> watch.collapsed()
        True
    """

    def __init__(self, threshold: float = 1e-6) -> None:
        self.threshold = threshold
        self._sum: Tensor | float = 0.0
        self._steps = 0
        self._recent: Tensor | None = None

    def update(self, rows: Tensor) -> None:
        """Take note of a step's features, `[rows, d]`; a batch of one row says nothing."""
        if len(rows) > 1:
            scatter = rows.detach().float().var(0, correction=0).sum()
            self._sum = self._sum + scatter
            self._steps += 1
            self._recent = scatter if self._recent is None else torch.maximum(self._recent, scatter)

    def collapsed(self) -> bool:
        """Whether the widest features since the last call had collapsed; asks the device, so call it seldom."""
        recent, self._recent = self._recent, None
        return recent is not None and bool(recent <= self.threshold * self._sum / self._steps)
