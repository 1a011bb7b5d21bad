"""Which pairs of rows an MMD counts, how much each counts, and in which tiles they are walked."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Tile = tuple[slice, slice]


class TileRows(NamedTuple):
    """Rows of a tile. Up to `alone` rows all pairs are walked, and no label goes to the host."""

    alone: int
    packed: int  # small classes share a tile of so many rows
    square: int  # a tile of rows with themselves


@dataclass(frozen=True)
class Pairs:
    """The coefficients W_ij = w_i w_j l_ij of the pairs of R rows.

    weight: [R], 1/n for source rows and -1/m for target rows (or their like for each class).
    tiles: pairs of row ranges i <= j; a pair of rows in no tile has the coefficient 0. The tile
        (i, i) is the last of the tiles that hold the rows i.
    order: [R], the rows of [source; target] that are meant; None means all, as they come.
    label_kernel: gives l_ij for a tile; None means 1.
    correction: [R], unbiased form only: n/(n-1) or m/(m-1), which turns the mean over all pairs
        of rows of one side into the mean over the pairs of different rows.
    """

    weight: Tensor
    tiles: list[Tile]
    order: Tensor | None = None
    label_kernel: Callable[[slice, slice], Tensor] | None = None
    correction: Tensor | None = None

    def label_tile(self, i: slice, j: slice) -> Tensor | None:
        """Return l for a tile, corrected; None for 1. Two rows are of one side where their weights have one sign."""
        label = None if self.label_kernel is None else self.label_kernel(i, j)
        if self.correction is None:
            return label
        same_side = self.weight[i, None] * self.weight[j] > 0
        factor = torch.where(same_side, self.correction[i, None], 1.0)
        if i == j:
            factor.fill_diagonal_(0.0)
        return factor if label is None else factor.mul_(label)


def tile_rows(device: torch.device) -> TileRows:
    """Return sizes that keep a tile and its powers in a CPU's cache; elsewhere, few launches."""
    return TileRows(128, 64, 256) if device.type == "cpu" else TileRows(2048, 1024, 1024)


def square(start: int, stop: int, size: int) -> list[Tile]:
    """Return tiles i <= j that hold every pair of the rows start..stop.

    The first half meets the second half, in tiles of at most 2 `size` rows; then each half is a square of its own,
    down to `size` rows. So a span meets itself after it has met all others.
    """
    if stop - start <= size:
        return [(slice(start, stop), slice(start, stop))] if start < stop else []
    middle = (start + stop) // 2
    across = [(i, j) for i in _spans(start, middle, 2 * size) for j in _spans(middle, stop, 2 * size)]
    return across + square(start, middle, size) + square(middle, stop, size)


def _spans(start: int, stop: int, size: int) -> list[slice]:
    """Cut rows start..stop into even spans of at most `size`."""
    step = -(-(stop - start) // -(-(stop - start) // size))
    return [slice(a, min(a + step, stop)) for a in range(start, stop, step)]


def class_tiles(ends: list[int], pack: int, size: int) -> list[Tile]:
    """Return tiles that hold every pair of one class, for rows sorted by class that end at `ends`.

    Small classes share a tile of at most `pack` rows; a larger class is a square of its own.
    """
    tiles: list[Tile] = []
    start = 0
    while ends and start < ends[-1]:
        reach = bisect_right(ends, start + pack)
        if reach and ends[reach - 1] > start:
            stop = ends[reach - 1]
            tiles.append((slice(start, stop), slice(start, stop)))
        else:
            stop = ends[reach]
            tiles += square(start, stop, size)
        start = stop
    return tiles


def tiles_by_class(label: Tensor) -> list[Tile]:
    """Return tiles for the sorted 1-D `label`. Reads the sizes of the classes on the host."""
    ends = label.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
    return class_tiles(ends, *tile_rows(label.device)[1:])


def same_label(label: Tensor, like: Tensor) -> Callable[[slice, slice], Tensor]:
    """Return the delta kernel of a 1-D `label`, as a function of tiles, in the dtype of `like`."""
    return lambda i, j: (label[i, None] == label[j]).to(like.dtype)


def side_weights(source: Tensor, target: Tensor, unbiased: bool) -> tuple[Tensor, Tensor | None]:
    """Return (weight, correction) of all rows: 1/n, -1/m; zero where the estimate is undefined."""
    n, m = len(source), len(target)
    defined = min(n, m) >= (2 if unbiased else 1)
    weight = source.new_zeros(n + m, dtype=compute_dtype(source, target))
    if not defined:
        return weight, None
    weight[:n], weight[n:] = 1 / n, -1 / m
    if not unbiased:
        return weight, None
    correction = torch.empty_like(weight)
    correction[:n], correction[n:] = n / (n - 1), m / (m - 1)
    return weight, correction


def compute_dtype(source: Tensor, target: Tensor) -> torch.dtype:
    """Return float64 if a side is float64, else float32."""
    return torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)


def check(source: Tensor, target: Tensor, bandwidth: float | None, num_bandwidths: int) -> None:
    """Raise ValueError unless source [n, d] and target [m, d] are floats and the rest is sound."""
    shapes = f"source {tuple(source.shape)} and target {tuple(target.shape)}"
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(f"features must be [n, d] and [m, d] of one width d, got {shapes}")
    if not (source.is_floating_point() and target.is_floating_point()):
        raise ValueError(f"features must be floats, got {source.dtype} and {target.dtype}")
    if bandwidth is not None and not 0.0 < bandwidth < float("inf"):
        raise ValueError(f"bandwidth must be None (the mean rule) or above 0, got {bandwidth!r}")
    if not isinstance(num_bandwidths, int) or num_bandwidths < 1 or num_bandwidths % 2 == 0:
        raise ValueError(f"num_bandwidths must be an odd positive int such as 1, 3 or 5, got {num_bandwidths!r}")


def check_labels(source: Tensor, target: Tensor, source_y: Tensor, target_y: Tensor) -> None:
    """Raise ValueError unless there is one label (a number or a vector) for each row."""
    sizes = (len(source), len(target))
    if min(source_y.ndim, target_y.ndim) < 1 or (len(source_y), len(target_y)) != sizes:
        raise ValueError(
            f"one label per row needed: {sizes[0]} and {sizes[1]} rows, labels of shape "
            f"{tuple(source_y.shape)} and {tuple(target_y.shape)}"
        )
    if source_y.shape[1:] != target_y.shape[1:] or source_y.ndim > 2:
        raise ValueError(
            f"labels must be [rows] or [rows, C] and alike on both sides, got "
            f"{tuple(source_y.shape)} and {tuple(target_y.shape)}"
        )
