"""Which row goes to which half of a batch, and how the halves are read back."""

from collections.abc import Iterator, Sequence

import numpy as np
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

    Each class's shuffled rows are dealt out two by two. The couples of a class are spread evenly over the epoch: couple
    k of c falls at a random place between k/c and (k + 1)/c of the epoch. So every batch holds the classes in nearly
    their natural share. (If couples came in random order, this share would vary even more than with single rows.) The
    last rows of classes with an odd number of rows are coupled with each other. If the number of all rows is odd, the
    last row stands alone.

    Args:
        labels: the class of every row, `[n]` integers (a tensor, an array or a list).
        seed: decides the order, together with the epoch. The global random state is neither read nor changed, so all
            ranks see the same order.

    Raises:
        ValueError: if labels are not one integer per row.

    Example:
        >>> labels = [0, 0, 1, 1, 1, 1]
        >>> order = list(ClassPairedSampler(labels))
        >>> [(labels[a], labels[b]) for a, b in zip(order[0::2], order[1::2])]
        [(1, 1), (0, 0), (1, 1)]
    """

    def __init__(self, labels: Sequence[int] | np.ndarray | Tensor, *, seed: int = 0) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 1 or (labels.dtype.kind not in "iub" and labels.size > 0):
            raise ValueError(
                f"labels must be one integer per row, [n], but are {labels.dtype} of shape {labels.shape}; "
                "train with pairing='random' where rows have no class"
            )
        names, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        self.seed = seed
        self.epoch = 0
        self._classes = classes.astype(np.min_scalar_type(len(names)))
        self._last_of_odd_classes = (counts.cumsum() - 1)[counts % 2 == 1]
        self._couples = np.append(counts // 2, len(self._last_of_odd_classes) // 2)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration yields."""
        self.epoch = epoch

    @property
    def share_in_couples(self) -> float:
        """The share of rows that are in a couple of one class; the left-over rows of odd classes are not."""
        return 1 - len(self._last_of_odd_classes) / max(len(self), 1)

    def __len__(self) -> int:
        return len(self._classes)

    def __iter__(self) -> Iterator[int]:
        for part in np.array_split(self.order(), len(self) // 65536 + 1):
            yield from part.tolist()

    def order(self) -> np.ndarray:
        """The epoch's order of rows, `[n]` int64."""
        state = np.random.SeedSequence([self.seed % 2**64, self.epoch]).generate_state(2)
        generator = torch.Generator().manual_seed(int(state.view(np.uint64)[0]) >> 1)
        rows = self._shuffled_classes(generator)
        left_over = rows[self._last_of_odd_classes]
        left_over = left_over[torch.randperm(len(left_over), generator=generator).numpy()]
        rows = np.delete(rows, self._last_of_odd_classes)
        rows = np.append(rows, left_over)
        couples = rows[: len(rows) // 2 * 2].view("V16")  # two rows in one entry
        couples[:] = couples.take(self._order_of_couples(generator))
        return rows

    def _shuffled_classes(self, generator: torch.Generator) -> np.ndarray:
        """The rows class by class, those of a class in random order, `[n]` int64.

        It sorts whole numbers without ties (class, random bits, row). This is fast, and gives the same order on every
        kind of processor.
        """
        row_bits = len(self).bit_length()
        random_bits = 63 - row_bits - len(self._couples).bit_length()
        keys: np.ndarray = torch.randint(2**random_bits, (len(self),), generator=generator).numpy()
        keys += np.left_shift(self._classes, random_bits, dtype=np.int64)
        keys <<= row_bits
        keys |= np.arange(len(self))
        keys.sort()
        keys &= 2**row_bits - 1
        return keys

    def _order_of_couples(self, generator: torch.Generator) -> np.ndarray:
        """The couples, sorted by their place in the epoch: `(k + u) / c` for couple k of c, u uniform from 0 to 1."""
        couples = self._couples
        index = np.arange(couples.sum())
        places: np.ndarray = torch.rand(len(index), generator=generator, dtype=torch.float64).numpy()
        places += index
        places -= np.repeat(couples.cumsum() - couples, couples)
        places *= np.repeat(2.0**30 / np.maximum(couples, 1), couples)
        keys = places.astype(np.int64)  # whole numbers without ties again: the place, and the couple
        keys <<= 32
        keys |= index
        keys.sort()
        keys &= 2**32 - 1
        return keys
