"""One MMD for each class that both batches hold, averaged."""

from __future__ import annotations

import torch
from torch import Tensor

from itra_hf.losses._gaussian import mmd
from itra_hf.losses._pairs import (
    Pairs,
    check,
    check_labels,
    compute_dtype,
    same_label,
    square,
    tile_rows,
    tiles_by_class,
)


def class_conditional_mmd(
    source: Tensor,
    target: Tensor,
    source_labels: Tensor,
    target_labels: Tensor,
    *,
    bandwidth: float | None = None,
    num_bandwidths: int = 5,
    unbiased: bool = False,
) -> Tensor:
    r"""Return the squared MMD within each class, averaged over the classes, a scalar.

    .. math:: \frac{1}{|C|} \sum_{c \in C} \text{MMD}^2(
        \{\text{source} : y = c\}, \{\text{target} : y = c\})

    C holds the classes with at least one row in source and one in target (unbiased: two and two).
    The bandwidth is one for all classes: the mean rule looks at all rows of both batches.
    No class in common gives 0 with zero gradient. Kernel, precision and degenerate cases as in
    `marginal_mmd`.

    Args:
        source: features, [n, d], floats.
        target: features, [m, d], floats.
        source_labels: classes, [n], integers or bools.
        target_labels: classes, [m], integers or bools.
        bandwidth: squared feature units, above 0. None (default): the mean squared distance over
            all pairs of different rows of [source; target], detached.
        num_bandwidths: number of Gaussians, odd; 5 by default.
        unbiased: U-statistics; False by default.

    Raises:
        ValueError: as `marginal_mmd`, or labels that are not one whole number per row; for
            multi-label, soft and regression targets use `joint_mmd`.
        RuntimeError: in backward with create_graph=True.

    Example:
        >>> import torch
        >>> source, target = torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [7.0]])
        >>> loss = class_conditional_mmd(source, target, torch.tensor([0, 1]),
        ...                              torch.tensor([0, 2]), bandwidth=1.0, num_bandwidths=1)
        >>> print(f"{loss:.4f}")  # class 0 alone: 2 - 2 / e
        1.2642

    Source: Li, Li, Pan, Qiang, Zhu, In-Training Representation Alignment, AAAI 2023, arXiv
    2211.13332; MMD after Gretton et al., JMLR 2012.
    """
    check(source, target, bandwidth, num_bandwidths)
    check_labels(source, target, source_labels, target_labels)
    for y in (source_labels, target_labels):
        if y.ndim != 1 or y.is_floating_point() or y.is_complex():
            raise ValueError(
                f"class labels must be whole numbers of shape [rows], got {y.dtype} of shape "
                f"{tuple(y.shape)}; for multi-label, soft or regression targets use joint_mmd"
            )
    pairs = _class_pairs(source, target, torch.cat([source_labels, target_labels]), unbiased)
    return mmd(source, target, pairs, bandwidth, num_bandwidths)


def _class_pairs(source: Tensor, target: Tensor, label: Tensor, unbiased: bool) -> Pairs:
    """Weigh the rows by 1 / (their class's rows on their side), and the classes equally."""
    dtype = compute_dtype(source, target)
    label, order = label.to(source.device).sort()
    if not len(label):
        return Pairs(label.to(dtype), [])
    index = torch.zeros_like(order)
    torch.cumsum(label[1:] != label[:-1], 0, out=index[1:])
    side = (order >= len(source)).long()  # 0 for source rows, 1 for target rows
    counts = label.new_zeros(len(label), 2, dtype=dtype)
    counts.index_put_((index, side), counts.new_ones(()), accumulate=True)
    shared = counts.amin(1) >= (2 if unbiased else 1)
    classes = shared.sum().clamp_(min=1).to(dtype)
    own = counts[index, side]
    weight = shared[index] * (1 - 2 * side) / (own * classes.sqrt())
    size = tile_rows(label.device)
    tiles = square(0, len(label), size.square)
    if len(label) > size.alone:
        rows = shared[index].nonzero().squeeze(1)
        index, order, own, weight = index[rows], order[rows], own[rows], weight[rows]
        tiles = tiles_by_class(index)
    correction = own / (own - 1).clamp_(min=1) if unbiased else None
    return Pairs(weight, tiles, order, same_label(index, weight), correction)
