"""The pair of mini-batches: who is dealt to which half, and how the halves are read back."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler


def split_pair(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The two mini-batches of an interleaved batch: rows 0, 2, 4, ... are the source, rows 1, 3, 5, ... the target.

    Args:
        rows: `[n, ...]`, anything with one entry per example.

    Returns:
        Views of `ceil(n / 2)` and `floor(n / 2)` rows.

    Example:
        >>> source, target = split_pair(torch.arange(5))
        >>> source.tolist(), target.tolist()
        ([0, 2, 4], [1, 3])
    """
    return rows[0::2], rows[1::2]


class ClassPairedSampler(Sampler[int]):
    """Yields every row once an epoch, in couples of one class, so that both halves of a batch hold the same classes.

    Each class's shuffled rows are dealt out two by two and the couples are shuffled. The odd rows that some classes
    leave over are coupled among themselves; where the number of rows is odd, the last row stands alone. Class
    frequencies stay natural.

    Args:
        labels: the class of every row, `[n]` integers (a tensor, an array or a list).
        seed: with the epoch, decides the order. The global random state is neither read nor moved, so all ranks
            see one order.

    Raises:
        ValueError: if labels are not one integer per row.

    Example:
        >>> labels = [0, 0, 1, 1, 1, 1]
        >>> order = list(ClassPairedSampler(labels, seed=7))
        >>> [(labels[a], labels[b]) for a, b in zip(order[0::2], order[1::2])]
        [(0, 0), (1, 1), (1, 1)]
    """

    def __init__(self, labels: Sequence[int] | Tensor, *, seed: int = 0) -> None:
        labels = torch.as_tensor(labels)
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                f"labels must be one integer per row, [n], but are {labels.dtype} of shape {tuple(labels.shape)}; "
                "train with pairing='random' where rows have no class"
            )
        self.labels = labels
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[int]:
        yield from self.order().tolist()

    def order(self) -> Tensor:
        """The epoch's order of rows, `[n]` int64."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        shuffled = torch.randperm(len(self), generator=generator)
        by_class, place = self.labels[shuffled].sort(stable=True)
        rows = shuffled[place]

        starts = torch.ones_like(by_class, dtype=torch.bool)
        starts[1:] = by_class[1:] != by_class[:-1]
        first = starts.nonzero().squeeze(1)
        sizes = torch.diff(first, append=torch.tensor([len(self)]))
        left_over = (first + sizes - 1)[sizes % 2 == 1]
        paired = torch.ones_like(starts)
        paired[left_over] = False

        remainder = rows[left_over]
        remainder = remainder[torch.randperm(len(remainder), generator=generator)]
        couples = torch.cat([rows[paired], remainder])
        alone = couples[len(couples) // 2 * 2 :]
        couples = couples[: len(couples) // 2 * 2].view(-1, 2)
        couples = couples[torch.randperm(len(couples), generator=generator)]
        return torch.cat([couples.flatten(), alone])
