"""MMD between the features of the two batches."""

from __future__ import annotations

from torch import Tensor

from itra_hf.losses._gaussian import mmd
from itra_hf.losses._pairs import Pairs, check, side_weights, square, tile_rows


def marginal_mmd(
    source: Tensor,
    target: Tensor,
    *,
    bandwidth: float | None = None,
    num_bandwidths: int = 5,
    unbiased: bool = False,
) -> Tensor:
    r"""Return the squared MMD between two batches of features, a scalar.

    .. math:: \sum_{ij} w_i w_j \, k(z_i, z_j), \qquad
        k(a, b) = \frac1K \sum_{q=-\lfloor K/2 \rfloor}^{\lfloor K/2 \rfloor}
        \exp\!\left(-\frac{|a - b|^2}{2^q\,\text{bandwidth}}\right)

    over the rows of Z = [source; target], with w = 1/n on source rows and -1/m on target rows.
    The unbiased form leaves out i = j and divides by n(n-1), m(m-1) and nm.

    float16, bfloat16 and float32 are computed in float32 whatever autocast says, float64 in
    float64; the gradient has the dtype of the input. There is no second derivative.
    An empty side gives 0 with zero gradient (unbiased: a side with fewer than two rows), and so
    do features that are all alike. NaN features give NaN.

    Args:
        source: features, [n, d], floats.
        target: features, [m, d], floats.
        bandwidth: squared feature units, above 0. None (default): the mean squared distance over
            all pairs of different rows of Z, detached.
        num_bandwidths: K above, odd; 5 by default.
        unbiased: U-statistic; its mean is 0 for two batches of one distribution. The default is
            the V-statistic, which is never negative.

    Raises:
        ValueError: shapes that do not fit, features that are no floats, bandwidth <= 0, or an
            even num_bandwidths.
        RuntimeError: in backward with create_graph=True.

    Example:
        >>> import torch
        >>> source, target = torch.tensor([[0.0]]), torch.tensor([[1.0]])
        >>> loss = marginal_mmd(source, target, bandwidth=1.0, num_bandwidths=1)
        >>> print(f"{loss:.4f}")  # k(0, 0) + k(1, 1) - 2 k(0, 1) = 2 - 2 / e
        1.2642

    Source: Gretton et al., A Kernel Two-Sample Test, JMLR 2012; as a matching loss Li, Li, Pan,
    Qiang, Zhu, AAAI 2023, arXiv 2211.13332.
    """
    check(source, target, bandwidth, num_bandwidths)
    weight, correction = side_weights(source, target, unbiased)
    tiles = square(0, len(weight), tile_rows(weight.device).square)
    pairs = Pairs(weight, tiles, correction=correction)
    return mmd(source, target, pairs, bandwidth, num_bandwidths)
