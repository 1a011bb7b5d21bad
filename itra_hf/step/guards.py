"""What holds the weight down: many rows, and the guards against collapse (ramp, cap, a watch on the features).

A matching loss pulls rows together against a bandwidth that follows them: features that have shrunk are pulled on as
before, and nothing in the loss ends it. Under Adam a gradient that points the same way in every step counts for more
than its norm says. Before the task is learned, shrinking costs it little; so the cap opens as the model learns.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LEARNED = 40.0  # the excess odds at which the cap is fully open; of ten classes the right one then has 82 %


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


def share_for_rows(rows: int, epochs: float, full_weight_rows: int) -> float:
    """The share of the weight that many training rows leave: `min(1, full_weight_rows * epochs / rows)`.

    As in ridge regression: a fixed prior weighs 1 / n against the mean loss over n rows. And a run of few epochs
    over-adapts less to its rows, so it needs less of a regulariser.

    Args:
        rows: that the run sees.
        epochs: how often it sees them.
        full_weight_rows: up to so many rows for every epoch the weight is whole.

    Example:
        >>> [share_for_rows(rows, 4, 250) for rows in (300, 1_000, 4_000)]
        [1.0, 1.0, 0.25]
    """
    return min(1.0, full_weight_rows * epochs / rows)


def excess_odds(logits: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """How far the odds of the right class lie above those of a guess: `odds(p) / odds(1/K) - 1`.

    `odds(p) = p / (1 - p)`, and p is the mean probability of the right one of K classes; this is `(K p - 1) / (1 - p)`.
    The excess is 0 for a model that guesses, and without bound for one that is sure and right. Labels that are no class
    of a row do not show how much is learned; they count as a quarter of what opens the cap. Such labels are numbers,
    several classes at once, and classes of tokens, which a language model shifts before it takes its loss.

    Args:
        logits: `[rows, K]`, if the model returned them.
        labels: `[rows]`, if there are any; others than 0 to K-1 are left out.

    Returns:
        Two scalars, the sums over rows of `K p - 1` and of `1 - p`, to be added up over micro-batches and ranks; their
        quotient is the excess. Both are 0 where labels are no classes.

    Example:
        >>> above, missing = excess_odds(torch.tensor([[0.0, 0.0], [0.0, 9.0]]), torch.tensor([0, 1]))
        >>> print(f"{above / missing:.2f}")  # p = 3/4: odds of 3 to 1 instead of 1 to 1
        2.00
    """
    if logits is None or labels is None or not _are_classes(labels, logits):
        given = labels if logits is None else logits
        zero = torch.zeros((), device=None if given is None else given.device)
        return zero, zero
    classes = logits.shape[-1]
    is_right = labels[:, None] == torch.arange(classes, device=labels.device)
    right, rows = (logits.detach().float().softmax(-1) * is_right).sum(), is_right.sum()
    return classes * right - rows, rows - right


def _are_classes(labels: Tensor, logits: Tensor) -> bool:
    is_one_a_row = logits.ndim == 2 and labels.shape == logits.shape[:1]
    return is_one_a_row and not labels.is_floating_point() and logits.shape[-1] > 1


def capped_weight(
    weight: float, norms: Sequence[Tensor] | Tensor, excess: Sequence[Tensor] | Tensor, max_ratio: float
) -> Tensor:
    """The weight, or less where the matching's gradient would outgrow its share of the task's.

    `min(weight, max_ratio * opening * |task gradient| / |matching gradient|)`, where
    `opening = min(1, excess_odds / 40)`.

    So a model that still learns is hardly matched, while one that is done is matched with the strength of its task.

    Args:
        weight: the weight that is asked for.
        norms: of the task's and of the unweighted matching's feature gradient, two scalars.
        excess: the two sums of `excess_odds`; 0 and 0 count as labels that are no classes.
        max_ratio: the largest allowed `weight * |matching gradient| / |task gradient|`, once the task is learned.

    Returns:
        A scalar tensor; `weight` where the matching has no gradient.

    Example:
        >>> norms = torch.tensor([2.0, 20.0])
        >>> capped_weight(1.0, norms, excess=torch.tensor([80.0, 1.0]), max_ratio=1.0)
        tensor(0.1000)
        >>> capped_weight(1.0, norms, excess=torch.tensor([10.0, 1.0]), max_ratio=1.0)
        tensor(0.0250)
        >>> capped_weight(1.0, torch.tensor([2.0, 0.0]), excess=torch.tensor([10.0, 1.0]), max_ratio=1.0)
        tensor(1.)
    """
    task, matching = norms
    above, missing = excess
    odds = (above / missing).nan_to_num(LEARNED / 4, float("inf"))  # 0 / 0: of no row the class is known
    share = (max_ratio / LEARNED * odds).clamp(0, max_ratio)
    limit: Tensor = (share * task / matching).nan_to_num(weight, float("inf"))  # 0 / 0: no gradient
    return limit.clamp(max=weight)


class CollapseWatch:
    """Notices when features fall together: their scatter against its mean over the run.

    Args:
        threshold: features count as collapsed below this share of the mean squared scatter. The default means that
            distances shrank a thousandfold.

    Example:
        >>> watch = CollapseWatch()
        >>> watch.update(torch.tensor(2.0), rows=2)
        >>> watch.collapsed()
        False
        >>> for _ in range(9):
        ...     watch.update(torch.tensor(0.0), rows=2)
        >>> watch.collapsed()
        True
    """

    def __init__(self, threshold: float = 1e-6) -> None:
        self.threshold = threshold
        self._sum: Tensor | float = 0.0
        self._steps = 0
        self._recent: list[tuple[Tensor, int]] = []  # of steps that are in no sum yet

    def update(self, spread: Tensor, rows: int) -> None:
        """Take note of the spread of a step's rows, `|Z - mean|`; a batch of one row says nothing."""
        if rows > 1:
            self._recent.append((spread, rows))
            if len(self._recent) > 100:
                self._add_up(self._recent[:-10])
                del self._recent[:-10]

    def collapsed(self) -> bool:
        """Whether the features of the last steps since the last call, at most ten, had collapsed.

        It waits for the device, so call it seldom.
        """
        recent, self._recent = self._recent, []
        self._add_up(recent)
        if not recent:
            return False
        return bool(_scatters(recent[-10:]).max() <= self.threshold * self._sum / self._steps)

    def _add_up(self, recent: list[tuple[Tensor, int]]) -> None:
        if recent:
            finite = _scatters(recent).nan_to_num(0.0, 0.0)  # a step that overflowed adds nothing
            self._sum = self._sum + finite.sum()
            self._steps += len(recent)


def _scatters(recent: list[tuple[Tensor, int]]) -> Tensor:
    """The mean squared scatter of a row, step by step."""
    spreads, rows = zip(*recent, strict=True)
    return torch.stack(spreads).square() / on_device(rows, spreads[0].device)


def on_device(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """Numbers as a tensor; the host does not wait for the device, as in `torch.tensor(numbers, device=...)`."""
    return torch.tensor(numbers).to(device, non_blocking=True)
