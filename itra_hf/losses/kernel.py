"""The squared MMD of up to 128 rows in one launch on a GPU: the formulas of `strips`, in one Triton program.

The program holds the Gram matrix on chip. It reads the features three times, a few columns at once: for their scatter,
for the Gram matrix of the centred and scaled rows, and for the gradient. All is float32, products too.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from itra_hf.losses import form

NOISE = tl.constexpr(form.COLLAPSE * torch.finfo(torch.float32).eps)  # relative scatter of identical features
NO_CLASS = tl.constexpr(form.NO_CLASS)


@triton.jit
def _centred(pointer, rows, columns, n, width):
    """Some columns less their means, `[rows, columns]`, 0 outside."""
    inside = (rows < n)[:, None] & (columns < width)[None, :]
    z = tl.load(pointer + rows[:, None] * width + columns[None, :], inside, other=0.0).to(tl.float32)
    first = tl.load(pointer + columns, columns < width, other=0.0).to(tl.float32)
    z = tl.where(inside, z - first[None, :], 0.0)
    return tl.where(inside, z - (tl.sum(z, 0) / n)[None, :], 0.0)


@triton.jit
def _scale(pointer, rows, n, width, step: tl.constexpr):
    """1 / |Z - mean|, or 0 where the scatter is lost in rounding noise; and |Z - mean|."""
    scatter, above_noise = tl.zeros((), tl.float64), tl.zeros((), tl.float64)
    for start in range(0, width, step):
        columns = start + tl.arange(0, step)
        z = _centred(pointer, rows, columns, n, width).to(tl.float64)
        by_column = tl.sum(z * z, 0)
        scatter += tl.sum(by_column, 0)
        level = tl.load(pointer + columns, columns < width, other=0.0).to(tl.float64) * NOISE
        excess = tl.sqrt(by_column) - tl.abs(level) * tl.sqrt(n.to(tl.float64))
        above_noise = tl.maximum(above_noise, tl.max(excess, 0))
    spread = tl.sqrt(scatter)
    return tl.where(above_noise <= 1e-30, 0.0, 1.0 / spread).to(tl.float32), spread.to(tl.float32)


@triton.jit
def _gaussian(pointer, rows, n, width, scale, factor, block: tl.constexpr, step: tl.constexpr):
    """exp(-factor |x_i - x_j|^2) for all pairs of rows."""
    gram = tl.zeros((block, block), tl.float32)
    for start in range(0, width, step):
        x = _centred(pointer, rows, start + tl.arange(0, step), n, width) * scale
        gram += tl.dot(x, tl.trans(x), input_precision="ieee")
    on_diagonal = rows[:, None] == rows[None, :]
    squares = tl.where(on_diagonal, gram, 0.0)
    distances = tl.sum(squares, 1)[:, None] + tl.sum(squares, 0)[None, :] - 2 * gram
    distances = tl.where(distances < 0, 0.0, distances)  # not a maximum, which would hide NaN
    return tl.exp(-factor * distances)


@triton.jit
def _half_weights(
    signs, pairs, has_class, rows, n, by_class: tl.constexpr, dealt: tl.constexpr, unbiased: tl.constexpr
):
    """Half of w, that over the number of classes, and n / (n - 1) of the row's side; `pairs` marks equal labels."""
    total = tl.sum(has_class.to(tl.float32), 0)
    if dealt:
        before = tl.sum(tl.where(rows[None, :] < rows[:, None], pairs, 0.0), 1).to(tl.int32)
        sign = tl.where(has_class, 1.0 - 2.0 * (before % 2), 0.0)
    else:
        sign = tl.load(signs + rows, rows < n, other=0.0)
    signed = sign * tl.sum(sign, 0)
    if by_class:
        total = tl.sum(pairs, 1)
        signed = sign * tl.sum(pairs * sign[None, :], 1)
    twice = total + signed
    has_both = signed < total
    if unbiased:
        has_both = (twice >= 4) & (total - signed >= 4)
    half = tl.where(has_both, sign / tl.where(twice < 2, 2.0, twice), 0.0)
    right = half
    if by_class:
        classes = tl.sum(half * sign, 0)
        right = half / tl.where(classes < 1, 1.0, classes)
    return half, right, twice / tl.where(twice < 3, 1.0, twice - 2)


@triton.jit
def _products(labels, rows, n, width, block: tl.constexpr):
    """The inner products of all pairs of rows."""
    products = tl.zeros((block, block), tl.float32)
    for start in range(0, width, 16):
        columns = start + tl.arange(0, 16)
        inside = (rows < n)[:, None] & (columns < width)[None, :]
        y = tl.load(labels + rows[:, None] * width + columns[None, :], inside, other=0.0)
        products += tl.dot(y, tl.trans(y), input_precision="ieee")
    return products


@triton.jit(do_not_specialize=["n", "width", "label_width"])
def _mmd(
    z,
    signs,
    labels,
    value,
    gradient,
    spread,
    n,
    width,
    label_width,
    label_kernel: tl.constexpr,
    by_class: tl.constexpr,
    dealt: tl.constexpr,
    unbiased: tl.constexpr,
    k: tl.constexpr,
    block: tl.constexpr,
    step: tl.constexpr,
):
    rows = tl.arange(0, block)
    has_class = rows < n
    pairs = (has_class[:, None] & has_class[None, :]).to(tl.float32)
    if label_kernel == "delta":
        y = tl.load(labels + rows, rows < n, other=0)
        pairs = tl.where(y[:, None] == y[None, :], pairs, 0.0)
        if dealt:
            has_class &= y != NO_CLASS
    half, right, correction = _half_weights(signs, pairs, has_class, rows, n, by_class, dealt, unbiased)
    pairs *= 4.0 * half[:, None] * right[None, :]
    if label_kernel == "linear":
        pairs *= _products(labels, rows, n, label_width, block)
    if label_kernel == "gaussian":
        label_scale, _ = _scale(labels, rows, n, label_width, 16)
        pairs *= _gaussian(labels, rows, n, label_width, label_scale, (n - 1) * 0.5, block, 16)
    on_diagonal = rows[:, None] == rows[None, :]
    if unbiased:
        pairs = tl.where(half[:, None] * half[None, :] > 0, pairs * correction[:, None], pairs)
        pairs = tl.where(on_diagonal, 0.0, pairs)
    factor = (n - 1) * 0.5 / (1 << (k // 2))
    scale, scatter = _scale(z, rows, n, width, step)
    power = _gaussian(z, rows, n, width, scale, factor, block, step)
    kernel, slope = power, power
    for p in tl.static_range(1, k):
        power *= power
        kernel += power
        slope += (1 << p) * power
    tl.store(value, tl.sum(tl.sum(pairs * kernel, 1), 0) / k)
    tl.store(spread, scatter)
    s = tl.where(on_diagonal, 0.0, pairs * slope)
    s = tl.where(on_diagonal, -tl.sum(s, 1)[:, None], s)
    for start in range(0, width, step):
        columns = start + tl.arange(0, step)
        x = _centred(z, rows, columns, n, width) * scale
        at_rows = tl.dot(s, x, input_precision="ieee") * (scale * (4.0 * factor / k))
        inside = (rows < n)[:, None] & (columns < width)[None, :]
        tl.store(gradient + rows[:, None] * width + columns[None, :], at_rows, inside)


def sizes(rows: int) -> dict[str, int]:
    """How a program is laid out, such that it fits the registers and the shared memory of a desktop's GPU."""
    block = max(16, triton.next_power_of_2(rows))
    return {"block": block, "step": 16 if block == 128 else 32, "num_warps": min(16, block // 4)}


@torch.library.custom_op("itra_hf::mmd", mutates_args=())
def one_launch(
    rows: Tensor,
    sign: Tensor | None,
    labels: Tensor | None,
    label_kernel: str | None,
    by_class: bool,
    num_bandwidths: int,
    unbiased: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `mmd` returns, of 1 to 128 rows under the mean rule; labels of vectors are `[N, C]` in float32."""
    n, width = rows.shape
    value, spread, gradient = (rows.new_empty(size, dtype=torch.float32) for size in ((), (), (n, width)))
    rows, labels = rows.contiguous(), rows if labels is None else labels.contiguous()
    sides = {"dealt": sign is None, "by_class": by_class, "label_kernel": label_kernel or "", "unbiased": unbiased}
    pointers = (rows, rows if sign is None else sign, labels, value, gradient, spread)
    _mmd[(1,)](*pointers, n, width, labels[:1].numel(), **sides, k=num_bandwidths, **sizes(n))
    return value, gradient, spread


@one_launch.register_fake
def _(rows: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    scalar = rows.new_empty((), dtype=torch.float32)
    return scalar, rows.new_empty(rows.shape, dtype=torch.float32), torch.empty_like(scalar)
