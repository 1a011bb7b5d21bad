"""The squared MMD of a batch by strips, some rows against all rows at a time.

With x = (z - mean) / u and E_ij = exp(-a |x_i - x_j|^2) the widest of K Gaussians, the others are its powers:

    value           = 1/K sum_ij W_ij sum_p E_ij^(2^p),                W_ij = w_i w_j l(y_i, y_j),   p = 0, ..., K - 1
    gradient at z_i = 4a/(K u) sum_j S_ij (x_j - x_i),                 S_ij = W_ij sum_p 2^p E_ij^(2^p)

u is the spread |Z - mean| under the mean rule, so that the mean squared distance of the x is 2 / (N - 1); else 1.
"""

from collections.abc import Callable
from itertools import pairwise
from math import log2
from typing import cast

import torch
from torch import Tensor

from itra_hf.losses.form import COLLAPSE, NO_CLASS, Form, Matched
from itra_hf.losses.launch import as_vectors, in_one_launch

STRIP = 2**19  # entries of a strip: with more, its powers outgrow a CPU's cache, and in memory the features

Strips = Callable[[slice], Tensor]  # gives rows of an N x N matrix


def mmd(rows: Tensor, sign: Tensor | None, labels: Tensor | None, form: Form) -> Matched:
    """Return the squared MMD between the two sides of a batch.

    Args:
        rows: features, `[N, d]`, floats. float64 is computed in float64, all else in float32, under a given bandwidth
            in float64.
        sign: `[N]`, 1 on one side and -1 on the other. None deals the rows of each class out in turn, to one side and
            the other, and leaves out those of class -100.
        labels: `[N]` or `[N, C]`; None where the form needs none.
        form: the options.
    """
    with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
        matched = in_one_launch(rows, sign, labels, form)
        if matched is not None:
            return matched
        dtype, k = torch.promote_types(rows.dtype, torch.float32), form.num_bandwidths
        # Far groups lose their near distances in float32. Under the mean rule no bandwidth is so small.
        wide = dtype if form.bandwidth is None or rows.device.type == "mps" else torch.float64
        x, unit, spread = _scaled(rows.to(wide), has_unit=form.bandwidth is None)
        del rows  # for its memory
        factor = (max(len(x) - 1, 1) / 2 if form.bandwidth is None else 1 / form.bandwidth) / 2 ** (k // 2)
        quarter = _quarter_of_pairs(None if sign is None else sign.to(wide), labels, form, x)
        value, gradient = _add_strips(x, unit, factor, quarter, k)
    return Matched(value.to(dtype), gradient.to(dtype), spread)


def _add_strips(x: Tensor, unit: Tensor | float, factor: float, quarter: Strips, k: int) -> tuple[Tensor, Tensor]:
    """Return value and gradient, of a quarter of W."""
    gaussian, first = _gaussian(x, factor), log2(16 * factor / k)
    slopes = torch.logspace(first, first + k - 1, k, base=2, dtype=x.dtype, device=x.device) / unit
    values, gradient = [], torch.empty_like(x)
    cut = _strips(len(x))
    room = x.new_empty(k, cut[0].stop, len(x))  # for all strips, since large blocks that come and go break up the heap
    for r in cut:
        pairs = quarter(r)
        powers = room[:, : len(pairs)]
        each = powers.unbind()
        gaussian(r, each[0])
        for wider, narrower in pairwise(each):
            torch.mul(wider, wider, out=narrower)
        values.append(torch.addmv(slopes, powers.flatten(1), pairs.view(-1), beta=0, alpha=4))
        s = torch.mv(powers.flatten(1).T, slopes).view_as(pairs).mul_(pairs)
        s.diagonal(r.start).fill_(0).sub_(s.sum(1))
        torch.mm(s, x, out=gradient[r])
    return (values[0] if len(values) == 1 else torch.stack(values).sum(0)).mean(), gradient


def _strips(rows: int) -> list[slice]:
    step = max(1, STRIP // max(rows, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, max(rows, 1), step)]


def _scaled(z: Tensor, has_unit: bool = True) -> tuple[Tensor, Tensor | float, Tensor]:
    """Return x, u and |z - mean|. Scatter lost in rounding noise gives x = 0 and u = infinity."""
    x = z - z[:1]  # exact where a constant is large against the scatter
    x -= x.mean(0)
    spread = _norm(x)
    if not has_unit:
        return x, 1.0, spread
    info = torch.finfo(z.dtype)
    share, least = COLLAPSE * info.eps * len(z) ** 0.5, info.tiny**0.8  # 1 / u has to stay finite
    noise = torch.rsub(_norm(z[:1] * (x[:1] != 0)), least, alpha=-share)  # constant columns are exact
    unit = spread.masked_fill(spread <= noise, float("inf"))
    return x.div_(unit), unit, spread


def _norm(x: Tensor) -> Tensor:
    """Return |x| in float64, because squares of 1e-22 are 0 in float32. It copies, so it takes the rows by parts."""
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    parts = x.split(max(1, STRIP // max(x.shape[1], 1)))
    norms: list[Tensor] = [torch.linalg.vector_norm(part, dtype=wide) for part in parts]
    return norms[0] if len(norms) == 1 else torch.stack(norms).square().sum().sqrt()


def _gaussian(x: Tensor, factor: float) -> Callable[..., Tensor]:
    """Return strips of exp(-factor |x_i - x_j|^2), never above 1."""
    squares = torch.linalg.vector_norm(x, dim=1).square_()

    def gaussian(r: slice, out: Tensor | None = None) -> Tensor:
        e = torch.addmm(squares, x[r], x.T, beta=-factor, alpha=2 * factor, out=out)
        return e.sub_(squares[r, None], alpha=factor).clamp_(max=0).exp_()

    return gaussian


def _label_kernel(labels: Tensor, name: str | None, dtype: torch.dtype) -> Strips:
    """Return strips of l."""
    if name == "delta" and len(labels) ** 2 > STRIP:
        return lambda r: labels[r, None] == labels
    if name == "delta":
        return (labels[:, None] == labels).__getitem__
    y = as_vectors(labels, name).to(dtype)
    if name == "linear":
        return lambda r: y[r] @ y.T
    return _gaussian(_scaled(y)[0], max(len(y) - 1, 1) / 2)


def _quarter_of_pairs(sign: Tensor | None, labels: Tensor | None, form: Form, x: Tensor) -> Strips:
    """Return strips of W / 4."""
    label = None if labels is None else _label_kernel(labels, form.label_kernel, x.dtype)
    sign, total, difference = _sides(sign, labels, label, form.by_class, x)
    signed = sign * difference
    twice = total + signed  # twice the rows on the row's own side
    has_both, correction = signed < total, None
    if form.unbiased:  # two rows on each side; and a mean over i != j is n / (n - 1) times that over all pairs
        has_both = torch.minimum(twice, total - signed) >= 4
        correction = twice / (twice - 2).clamp_(min=1)
    half = sign * has_both / twice
    right = half / half.dot(sign).clamp_(min=1) if form.by_class else half  # over the number of classes

    def quarter(r: slice) -> Tensor:
        pairs = torch.outer(half[r], right)
        if label is not None:
            pairs *= label(r)
        if correction is not None:
            pairs *= torch.where(half[r, None] * half > 0, correction[r, None], 1.0)
            pairs.diagonal(r.start).fill_(0)
        return pairs

    return quarter


def _sides(
    sign: Tensor | None, labels: Tensor | None, same: Strips | None, by_class: bool, x: Tensor
) -> tuple[Tensor, Tensor | int, Tensor]:
    """Return the sign of each row, and n + m and n - m, of its class or of all rows."""
    if sign is not None and not by_class:
        return sign, len(sign), sign.sum()
    counts = []
    for r in _strips(len(x)):
        marks = cast(Strips, same)(r)
        others = marks.tril(r.start - 1) if sign is None else marks * sign  # earlier rows of the class, or n - m
        counts.append((marks.sum(1, dtype=x.dtype), others.sum(1, dtype=x.dtype)))
    total, other = counts[0] if len(counts) == 1 else map(torch.cat, zip(*counts, strict=True))
    if sign is not None:
        return sign, total, other
    has_class = cast(Tensor, labels).long() != NO_CLASS  # 156 is not -100, as it is in uint8
    sign = torch.pow(-1, other) * has_class
    return (sign, total, total % 2) if by_class else (sign, has_class.sum().clamp_(min=1), sign.sum())
