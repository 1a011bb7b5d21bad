"""The kernel's inner promises: tiles, memory, and the collapse rule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from itra_hf.losses import class_conditional_mmd, joint_mmd, marginal_mmd
from itra_hf.losses._gaussian import centre_and_scale, exponent
from itra_hf.losses._pairs import class_tiles, square


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 40), st.integers(1, 40))
def test_tiles_hold_each_pair_of_a_class_once(sizes: list[int], pack: int, size: int) -> None:
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.long))
    seen = torch.zeros(len(label), len(label), dtype=torch.long)
    for i, j in class_tiles(torch.tensor(sizes).cumsum(0).tolist(), pack, size):
        assert max(i.stop - i.start, j.stop - j.start) <= (max(pack, size) if i == j else 2 * size)
        seen[i, j] += 1
        if i != j:
            seen[j, i] += 1
    same = label[:, None] == label
    assert bool((seen[same] == 1).all())
    assert bool((seen <= 1).all())


@given(st.integers(0, 50), st.integers(1, 20))
def test_a_square_holds_each_pair_once(rows: int, size: int) -> None:
    seen = torch.zeros(rows, rows, dtype=torch.long)
    for i, j in square(0, rows, size):
        assert max(i.stop - i.start, j.stop - j.start) <= (size if i == j else 2 * size)
        seen[i, j] += 1
        if i != j:
            seen[j, i] += 1
    assert bool((seen == 1).all())


def test_the_bandwidth_is_the_mean_squared_distance() -> None:
    z = torch.randn(30, 5, dtype=torch.float64) + 4
    _, _, c = centre_and_scale(z.clone(), None)
    want = torch.pdist(z).square().mean()
    torch.testing.assert_close(2 / c**2, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scatter_in_rounding_noise_counts_as_collapse(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    noise = torch.randn(64, 16, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for relative, collapsed in ((0.0, True), (4 * eps, True), (2000 * eps, False)):
        _, _, c = centre_and_scale(5 * (1 + relative * noise), None)
        assert bool(c == 0) == collapsed


def test_the_exponent_is_never_above_zero() -> None:
    z = torch.randn(40, 8).repeat(2, 1) * 1e3
    x, half, _ = centre_and_scale(z, 1e-3)
    e = exponent(x, half, slice(0, 80), slice(0, 80), out=torch.empty(80, 80))
    assert float(e.max()) == 0.0
    assert bool((e.diagonal() == 0).all())


@pytest.mark.parametrize("loss", [marginal_mmd, class_conditional_mmd, joint_mmd])
def test_nothing_of_n_by_n_is_saved(loss: object) -> None:
    source, target = torch.randn(400, 8, requires_grad=True), torch.randn(400, 8)
    y = [] if loss is marginal_mmd else [torch.arange(400) % 3, torch.arange(400) % 3]
    saved: list[int] = []

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss(source, target, *y).backward()  # type: ignore[operator]
    assert saved == [800 * 8, 1]  # the gradient, and a scale
