"""Which MMD is meant, and what comes of it."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

COLLAPSE = 64.0  # features whose relative scatter is below 64 eps are taken for identical
NO_CLASS = -100  # a label that the task's loss ignores
MOST_BANDWIDTHS = 15  # the narrowest Gaussian multiplies rounding errors: with 21 the gradient may be 2 % off


@dataclass(frozen=True)
class Form:
    """The options of an MMD.

    Attributes:
        label_kernel: l(y, y'): "delta", "linear" or "gaussian"; None is 1.
        by_class: one MMD within each class that both sides hold, averaged; with the delta kernel.
        bandwidth: squared feature units; None takes the mean squared distance of different rows.
        num_bandwidths: odd.
        unbiased: without the pairs i = j.

    Raises:
        ValueError: for a bandwidth or a number of bandwidths out of range.
    """

    label_kernel: str | None = None
    by_class: bool = False
    bandwidth: float | None = None
    num_bandwidths: int = 5
    unbiased: bool = False

    def __post_init__(self) -> None:
        if self.bandwidth is not None and not 0.0 < self.bandwidth < float("inf"):
            raise ValueError(
                f"bandwidth={self.bandwidth!r}: bandwidth must be None (the mean rule) or finite and above 0, "
                f"got {self.bandwidth!r}"
            )
        number = self.num_bandwidths
        if type(number) is not int or number not in range(1, MOST_BANDWIDTHS + 1, 2):
            raise ValueError(
                f"num_bandwidths={number!r}: num_bandwidths must be odd, from 1 to {MOST_BANDWIDTHS} (float32 does not "
                f"hold more), got {number!r}"
            )


class Matched(NamedTuple):
    """A matching loss, its gradient at the rows, `[N, d]`, and the rows' spread, |Z - mean|."""

    value: Tensor
    gradient: Tensor
    spread: Tensor
