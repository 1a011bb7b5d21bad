"""MMD between the joint distributions of features and labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from itra_hf.losses._gaussian import centre_and_scale, exponent, mmd
from itra_hf.losses._pairs import (
    Pairs,
    check,
    check_labels,
    same_label,
    side_weights,
    square,
    tile_rows,
    tiles_by_class,
)

LABEL_KERNELS = ("delta", "linear", "gaussian")


def joint_mmd(
    source: Tensor,
    target: Tensor,
    source_labels: Tensor,
    target_labels: Tensor,
    *,
    bandwidth: float | None = None,
    num_bandwidths: int = 5,
    unbiased: bool = False,
    label_kernel: str | None = None,
) -> Tensor:
    r"""Return the squared MMD between the pairs (feature, label) of two batches, a scalar.

    .. math:: \sum_{ij} w_i w_j \, k(z_i, z_j) \, l(y_i, y_j)

    with z, w, k as in `marginal_mmd`, whose precision and degenerate cases hold here too. l is

    - ``delta``: 1 where the labels are equal, else 0. For class labels.
    - ``linear``: the inner product of the labels. For multi-label vectors and soft labels.
    - ``gaussian``: exp(-\|y - y'\|^2 / b), b the mean squared distance over all pairs of different
      labels of both batches. For regression targets.

    The labels carry no gradient.

    Args:
        source: features, [n, d], floats.
        target: features, [m, d], floats.
        source_labels: [n] or [n, C].
        target_labels: [m] or [m, C].
        bandwidth: squared feature units, above 0. None (default): the mean squared distance over
            all pairs of different rows of [source; target], detached.
        num_bandwidths: number of Gaussians on the features, odd; 5 by default.
        unbiased: U-statistic; False by default.
        label_kernel: one of the names above. None (default): linear for [rows, C] with C > 1, else
            delta for integers and bools and gaussian for floats.

    Raises:
        ValueError: as `marginal_mmd`, or labels that do not fit the rows or the kernel, or a
            kernel of another name.
        RuntimeError: in backward with create_graph=True.

    Example:
        >>> import torch
        >>> features, score = torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 2.0])
        >>> print(f"{joint_mmd(features, features, score, score.flip(0)):.4f}")  # pairs differ
        0.5539
        >>> print(f"{joint_mmd(features, features, score, score):.4f}")
        0.0000

    Source: Li, Li, Pan, Qiang, Zhu, In-Training Representation Alignment, AAAI 2023, arXiv
    2211.13332; MMD after Gretton et al., JMLR 2012.
    """
    check(source, target, bandwidth, num_bandwidths)
    check_labels(source, target, source_labels, target_labels)
    label = torch.cat([source_labels, target_labels]).detach().to(source.device)
    if label.ndim == 2 and label.shape[1] == 1:
        label = label[:, 0]
    kind = label_kernel or _kernel_for(label)
    if kind not in LABEL_KERNELS or (kind == "delta" and label.ndim == 2):
        raise ValueError(
            f"label_kernel {kind!r} with labels of shape {tuple(source_labels.shape)}: use one of "
            f"{LABEL_KERNELS}, and 'delta' only with one label per row"
        )
    weight, correction = side_weights(source, target, unbiased)
    size = tile_rows(label.device)
    order, tiles = None, square(0, len(label), size.square)
    if kind == "delta" and len(label) > size.alone:
        label, order = label.sort(stable=True)
        weight, correction = weight[order], None if correction is None else correction[order]
        tiles = tiles_by_class(label)
    pairs = Pairs(weight, tiles, order, _label_kernel(kind, label, weight), correction)
    return mmd(source, target, pairs, bandwidth, num_bandwidths)


def _kernel_for(label: Tensor) -> str:
    if label.ndim == 2:
        return "linear"
    return "gaussian" if label.is_floating_point() else "delta"


def _label_kernel(kind: str, label: Tensor, weight: Tensor) -> Callable[[slice, slice], Tensor]:
    """Return l as a function of tiles, in the dtype of `weight`."""
    if kind == "delta":
        return same_label(label, weight)
    y = label.to(weight.dtype, copy=True)
    y = y if y.ndim == 2 else y[:, None]
    if kind == "linear":
        return lambda i, j: y[i] @ y[j].T
    y, half, _ = centre_and_scale(y, None)

    def gaussian(i: slice, j: slice) -> Tensor:
        return exponent(y, half, i, j, out=y.new_empty(len(half[i]), len(half[j]))).exp_()

    return gaussian
