"""The kernel: squared MMD under a mixture of Gaussians, walked in tiles, gradient and all.

With Z = [source; target], N rows, and W the coefficients of the pairs (see `_pairs`):

    MMD^2   = sum_ij W_ij k(z_i, z_j)
    k(a, b) = 1/K sum_q exp(-|a - b|^2 / (2^q bandwidth)),        q = -(K//2), ..., K//2

Let x = c z with c^2 = 2 / (2^(K//2) bandwidth), and E_ij = exp(x_i.x_j - |x_i|^2/2 - |x_j|^2/2),
the widest of the Gaussians. The others are its powers E^2, E^4, E^8, ..., by squaring. Then

    k(z_i, z_j) = 1/K sum_p E_ij^(2^p),      S_ij = W_ij sum_p 2^p E_ij^(2^p),      p = 0, ..., K-1
    dMMD^2/dz_i = 2c/K (sum_j S_ij x_j - x_i sum_j S_ij)

W and S are symmetric, so a tile (i, j) off the diagonal serves (j, i) too. The gradient is formed
in the forward pass, so backward only scales it, and nothing N x N is ever held.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from itra_hf.losses._pairs import Pairs, tile_rows

SMALL = 6400  # elements of a tile up to which one `exp` of all powers costs less than squaring them in turn
MIRRORED = 128  # rows of a square tile from which the symmetry of its Gram matrix is worth a copy
COLLAPSE = 64.0  # features whose relative scatter is below 64 eps are taken for identical


def centre_and_scale(z: Tensor, bandwidth: float | None, widest: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x, -|x|^2 / 2 by row, c) with x = c (z - mean), c^2 = 2 / (widest bandwidth).

    `z` [N, d] is overwritten. With no bandwidth given it is the mean squared distance over all
    pairs of different rows, 2 sum |z - mean|^2 / (N - 1). Scatter lost in rounding noise gives
    c = 0, an infinite bandwidth: the kernel is 1 everywhere and the gradient is exactly 0.
    """
    rows = z.shape[0]
    mean = z.sum(0).div_(rows)  # on a CPU the sum takes half of what `mean` takes
    z -= mean
    half = torch.linalg.vector_norm(z, dim=1).square_().mul_(-0.5)  # holds no N x d square
    if bandwidth is not None:
        square = z.new_tensor(2.0 / (widest * bandwidth))
    else:
        info = torch.finfo(z.dtype)
        scatter = half.sum().mul_(-2.0)
        noise = mean.dot(mean).mul_(rows * (COLLAPSE * info.eps) ** 2).clamp_(min=info.tiny)
        square = (max(rows - 1, 1) / widest / scatter).masked_fill_(scatter <= noise, 0.0)
    c = square.sqrt()
    return z.mul_(c), half.mul_(square), c


def exponent(x: Tensor, half: Tensor, i: slice, j: slice, out: Tensor) -> Tensor:
    """Write -|x_i - x_j|^2 / 2 for a tile of rows: never above 0, exactly 0 on the diagonal."""
    torch.add(half[i, None], half[j], out=out)
    if i == j and len(out) >= MIRRORED:
        z, m = x[i], len(out) // 2
        out[:, :m].addmm_(z, z[:m].T)
        out[m:, m:].addmm_(z[m:], z[m:].T)
        out[:m, m:] = out[m:, :m].T
    else:
        out.addmm_(x[i], x[j].T)
    out.clamp_(max=0.0)
    return out.fill_diagonal_(0.0) if i == j else out


@cache
def _factors(k: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return 1 and 2^p for p < k, [2, k], and the 2^p alone, [k, 1, 1]; kept, for a copy from the host halts a GPU."""
    factors = torch.tensor([[1.0] * k, [2.0**p for p in range(k)]], dtype=dtype, device=device)
    return factors, factors[1].view(k, 1, 1)


def _small(x: Tensor, half: Tensor, pairs: Pairs, k: int) -> tuple[Tensor, Tensor]:
    """Return what `_walk` returns, of one small tile, with the fewest operations."""
    every = pairs.tiles[0][0]
    e = exponent(x, half, every, every, out=x.new_empty(len(x), len(x)))
    factors, powers = _factors(k, e.dtype, e.device)
    kernel_and_slope = factors.mm((powers * e).exp_().view(k, -1)).view(2, *e.shape)
    label = pairs.label_tile(every, every)
    if label is not None:
        kernel_and_slope.mul_(label)
    kernel, s = kernel_and_slope.mul_(torch.outer(pairs.weight, pairs.weight))
    s.fill_diagonal_(0.0).diagonal().sub_(s.sum(1))
    return kernel.sum(), s.mm(x)


def _add_row_sums(sums: Tensor, power: Tensor, label: Tensor | None, right: Tensor, careful: bool) -> None:
    """Add power * label @ right; `careful` where all terms share a factor, whose rounding a product would add up."""
    if label is None:
        sums.addmv_(power, right)
    elif careful:
        sums.add_((power * label).mul_(right).sum(1))
    else:
        sums.addmv_(power * label, right)


def _slopes(
    e: Tensor, label: Tensor | None, left: Tensor, right: Tensor, k: int, slope: Tensor, careful: bool
) -> Tensor:
    """Return the row sums of W/left sum_p E^(2^p), and turn `e`, the exponent of E, into W sum_p 2^p E^(2^p), p < k.

    W_ij = left_i right_j label_ij, where no label means 1; `slope` is room of the shape of `e`.
    """
    power = torch.exp(e, out=slope)
    sums = torch.zeros_like(left)
    _add_row_sums(sums, power, label, right, careful)
    for p in range(1, k):
        power = torch.mul(power, power, out=e)
        slope.add_(power, alpha=2.0**p)
        _add_row_sums(sums, power, label, right, careful)
    torch.outer(left, right, out=e).mul_(slope)
    if label is not None:
        e.mul_(label)
    return sums


def _walk(x: Tensor, half: Tensor, pairs: Pairs, k: int, with_grad: bool) -> tuple[Tensor, Tensor]:
    """Return sum_ij W_ij sum_p E_ij^(2^p), and sum_j S_ij (x_j - x_i) for every row i, or 0 without gradient.

    Large tiles suit the matrix products; for the powers they are cut into strips, which fit a CPU's cache.
    """
    if not pairs.tiles:
        return x.new_zeros(()), torch.zeros_like(x)
    unit = pairs.weight.abs().max().clamp_(min=torch.finfo(x.dtype).tiny)
    left, right = pairs.weight * unit, pairs.weight / unit  # right is mostly 1 and -1: sums of them are exact
    wide = x.dtype if x.device.type == "mps" else torch.float64  # for terms that cancel
    value = x.new_zeros((), dtype=wide)
    rows, ones, grad = torch.zeros_like(half), torch.ones_like(half), torch.zeros_like(x)
    strip = tile_rows(x.device).square ** 2
    largest = max((i.stop - i.start) * (j.stop - j.start) for i, j in pairs.tiles)
    room, slope = x.new_empty(largest), x.new_empty(min(largest, strip))  # for all tiles: fresh pages cost time
    for i, j in pairs.tiles:
        shape = (i.stop - i.start, j.stop - j.start)
        s = exponent(x, half, i, j, out=room[: shape[0] * shape[1]].view(shape))
        step = strip // shape[1]
        for start in range(i.start, i.stop, step):
            r = slice(start, min(start + step, i.stop))
            e = s if r == i else s[r.start - i.start : r.stop - i.start]
            label, careful = pairs.label_tile(r, j), pairs.correction is not None
            sums = _slopes(e, label, left[r], right[j], k, slope[: e.numel()].view_as(e), careful)
            value.add_(left[r].to(wide).dot(sums.to(wide)), alpha=1.0 if i == j else 2.0)
        if with_grad:
            _add_slopes(s, x, rows, ones, grad, i, j)
    return value, grad


def _add_slopes(s: Tensor, x: Tensor, rows: Tensor, ones: Tensor, grad: Tensor, i: slice, j: slice) -> None:
    """Add S x for the tile (i, j) and its mirror to `grad`. `rows` gathers the row sums of S."""
    if i == j:  # the last tile of these rows: their sums go to the diagonal, -sum_j S_ij
        s.fill_diagonal_(0.0).diagonal().sub_(rows[i].addmv_(s, ones[j]))
    else:
        rows[i].addmv_(s, ones[j])
        rows[j].addmv_(s.T, ones[i])
        grad[j].addmm_(s.T, x[i])
    grad[i].addmm_(s, x[j])


class _MMD(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        source: Tensor,
        target: Tensor,
        pairs: Pairs,
        bandwidth: float | None,
        k: int,
        with_grad: bool,
    ) -> Tensor:
        ctx.sizes = len(source), len(target)
        dtype = pairs.weight.dtype
        with torch.autocast(source.device.type, enabled=False):
            x, half, c = centre_and_scale(torch.cat([source.to(dtype), target.to(dtype)]), bandwidth, 2.0 ** (k // 2))
            shape = x.shape
            if pairs.order is not None:
                x, half = x[pairs.order], half[pairs.order]
            small = len(pairs.tiles) == 1 and len(half) ** 2 <= SMALL
            value, grad = _small(x, half, pairs, k) if small else _walk(x, half, pairs, k, with_grad)
            if with_grad:
                if pairs.order is not None:
                    grad = x.new_zeros(shape).index_copy_(0, pairs.order, grad)
                ctx.save_for_backward(grad, c.mul_(2.0 / k))
        return value.div_(k).to(dtype)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("the MMD losses have no second derivative: call backward without create_graph=True")
        grad, c = ctx.saved_tensors
        parts = zip(grad.split(ctx.sizes), ctx.needs_input_grad[:2], strict=True)
        return *(g * (scale * c) if needed else None for g, needed in parts), None, None, None, None


def mmd(source: Tensor, target: Tensor, pairs: Pairs, bandwidth: float | None, num_bandwidths: int) -> Tensor:
    """Return sum_ij W_ij k(z_i, z_j) over the rows of [source; target], with its gradient."""
    with_grad = torch.is_grad_enabled() and (source.requires_grad or target.requires_grad)
    out: Tensor = _MMD.apply(source, target, pairs, bandwidth, num_bandwidths, with_grad)
    return out
