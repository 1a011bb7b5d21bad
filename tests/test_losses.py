"""What a user of itra_hf.losses is promised, one test for each promise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from itra_hf.losses import LOSSES, class_conditional_mmd, joint_mmd, marginal_mmd

Loss = Callable[..., Tensor]
FORMS = ["marginal", "class_conditional", "delta", "linear", "gaussian"]


def make(n: int, m: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    source = torch.randn(n, d, generator=g, dtype=torch.float64) * 1.5 + 2
    target = torch.randn(m, d, generator=g, dtype=torch.float64) + 2.5
    return [source.to(dtype), target.to(dtype)]


def make_labels(form: str, n: int, m: int, classes: int = 3, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed + 1)
    if form == "marginal":
        return []
    if form in ("class_conditional", "delta"):
        return [torch.randint(0, classes, (rows,), generator=g) for rows in (n, m)]
    shape = (classes + 1,) if form == "linear" else ()
    return [torch.rand(rows, *shape, generator=g) for rows in (n, m)]


def loss_of(form: str) -> Loss:
    return LOSSES.get(form, joint_mmd)


def reference_of(form: str) -> Loss:
    if form in LOSSES:
        return getattr(reference, form)
    return partial(reference.joint, kernel=form)


def gradients(loss: Loss, source: Tensor, target: Tensor, *rest: Any, **options: Any) -> list[Any]:
    source, target = source.clone().requires_grad_(), target.clone().requires_grad_()
    value = loss(source, target, *rest, **options)
    return [value.detach(), *torch.autograd.grad(value, (source, target))]


# The formula.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("n", "m", "d", "classes"),
    [(7, 9, 5, 3), (60, 70, 20, 77), (150, 131, 4, 5), (300, 270, 3, 1), (290, 290, 3, 100)],
)
@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradient_are_those_of_the_formula(
    form: str, n: int, m: int, d: int, classes: int, dtype: torch.dtype
) -> None:
    features, labels = make(n, m, d, dtype=dtype), make_labels(form, n, m, classes)
    value_tol, grad_tol = (1e-6, 2e-5) if dtype == torch.float32 else (1e-13, 1e-11)
    for unbiased, num, bandwidth in [(False, 5, None), (True, 5, 3.0), (False, 1, 3.0)]:
        options = {"unbiased": unbiased, "bandwidth": bandwidth}
        got = gradients(loss_of(form), *features, *labels, num_bandwidths=num, **options)
        want = gradients(reference_of(form), *features, *labels, num=num, **options)
        assert got[0].dtype == dtype
        assert abs(float(got[0]) - float(want[0])) < value_tol * max(1.0, float(want[0]))
        for ours, theirs in zip(got[1:], want[1:], strict=True):
            error = (ours.double() - theirs.double()).norm() / theirs.double().norm()
            assert float(error) < grad_tol


@pytest.mark.parametrize("form", ["marginal", "delta", "gaussian"])
def test_more_rows_than_two_of_the_largest_tiles(form: str) -> None:
    features, labels = make(530, 540, 3, dtype=torch.float64), make_labels(form, 530, 540, 1)
    got = gradients(loss_of(form), *features, *labels)
    want = gradients(reference_of(form), *features, *labels)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(5, 4, 3), (66, 70, 1)])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_at_a_frozen_bandwidth(form: str, unbiased: bool, n: int, m: int, d: int) -> None:
    features = [z.requires_grad_() for z in make(n, m, d, dtype=torch.float64)]
    labels = make_labels(form, n, m, classes=2)
    assert torch.autograd.gradcheck(
        lambda s, t: loss_of(form)(s, t, *labels, bandwidth=4.0, unbiased=unbiased), features
    )


def test_the_names() -> None:
    assert {
        "marginal": marginal_mmd,
        "class_conditional": class_conditional_mmd,
        "joint": joint_mmd,
    } == LOSSES


# Properties, on any batch.

batches = st.tuples(
    st.sampled_from(FORMS),
    st.integers(1, 90),  # one small tile up to 128 rows in all, several beyond
    st.integers(1, 90),
    st.integers(1, 12),
    st.integers(1, 8),
    st.integers(0, 10_000),
)
Batch = tuple[str, int, int, int, int, int]


def draw(batch: Batch) -> tuple[Loss, Tensor, Tensor, list[Tensor]]:
    form, n, m, d, classes, seed = batch
    return (loss_of(form), *make(n, m, d, seed), make_labels(form, n, m, classes, seed))


@settings(max_examples=100, deadline=None)
@given(batches)
def test_the_biased_value_is_never_negative(batch: Batch) -> None:
    loss, source, target, labels = draw(batch)
    assert float(loss(source, target, *labels)) >= -1e-6


@settings(max_examples=60, deadline=None)
@given(batches, st.booleans())
def test_symmetric_in_source_and_target(batch: Batch, unbiased: bool) -> None:
    loss, source, target, labels = draw(batch)
    there = loss(source, target, *labels, unbiased=unbiased)
    back = loss(target, source, *reversed(labels), unbiased=unbiased)
    torch.testing.assert_close(there, back, atol=2e-6, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(batches, st.booleans())
def test_invariant_to_row_order(batch: Batch, unbiased: bool) -> None:
    loss, source, target, labels = draw(batch)
    p = torch.randperm(len(source), generator=torch.Generator().manual_seed(batch[-1]))
    mixed = [labels[0][p], labels[1]] if labels else []
    before = gradients(loss, source, target, *labels, unbiased=unbiased)
    after = gradients(loss, source[p], target, *mixed, unbiased=unbiased)
    torch.testing.assert_close(before[0], after[0], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(before[1][p], after[1], atol=2e-6, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(batches, st.floats(-20, 20))
def test_invariant_to_a_common_shift_and_rotation(batch: Batch, shift: float) -> None:
    loss, source, target, labels = draw(batch)
    d = source.shape[1]
    g = torch.Generator().manual_seed(batch[-1])
    rotation = torch.linalg.qr(torch.randn(d, d, generator=g))[0]
    for bandwidth in (None, 2.5):
        before = loss(source, target, *labels, bandwidth=bandwidth)
        after = loss(source @ rotation + shift, target @ rotation + shift, *labels, bandwidth=bandwidth)
        torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(batches, st.sampled_from([1e-4, 0.3, 1e4]))
def test_with_the_mean_rule_invariant_to_a_common_scale(batch: Batch, scale: float) -> None:
    loss, source, target, labels = draw(batch)
    before = gradients(loss, source, target, *labels)
    after = gradients(loss, source * scale, target * scale, *labels)
    torch.testing.assert_close(before[0], after[0], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(before[1], after[1] * scale, atol=2e-6, rtol=1e-4)


# Where others break.


def assert_zero(loss: Loss, source: Tensor, target: Tensor, *labels: Tensor, **options: Any) -> None:
    value, *grads = gradients(loss, source, target, *labels, **options)
    assert abs(float(value)) < 1e-6
    assert all(bool((g == 0).all()) for g in grads)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("rows", [8, 300])
@pytest.mark.parametrize("level", [0.0, 1.0, 1234.567, 1e-4])
@pytest.mark.parametrize("form", FORMS)
def test_identical_features_give_zero(form: str, level: float, rows: int, unbiased: bool) -> None:
    row = level * torch.randn(1, 16, generator=torch.Generator().manual_seed(3))
    labels = [y[:1].expand(rows, *y.shape[1:]) for y in make_labels(form, rows, rows)[:1] * 2]
    same = row.expand(rows, 16).contiguous()
    assert_zero(loss_of(form), same, same, *labels, unbiased=unbiased)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("sizes", [(0, 0), (0, 5), (5, 0), (1, 0), (0, 1), (0, 300)])
@pytest.mark.parametrize("form", FORMS)
def test_an_empty_side_gives_zero(form: str, sizes: tuple[int, int], unbiased: bool) -> None:
    labels = make_labels(form, *sizes)
    assert_zero(loss_of(form), *make(*sizes, 4), *labels, unbiased=unbiased)


@pytest.mark.parametrize("form", FORMS)
def test_unbiased_needs_two_rows_on_each_side(form: str) -> None:
    labels = [torch.zeros_like(y) for y in make_labels(form, 1, 6)]
    assert_zero(loss_of(form), *make(1, 6, 4), *labels, unbiased=True)
    one_row = loss_of(form)(*make(1, 6, 4), *[y + 1 for y in labels])
    assert float(one_row) > 0.01  # the biased form is defined


@pytest.mark.parametrize("rows", [6, 200])
def test_no_class_in_common_gives_zero(rows: int) -> None:
    source, target = make(rows, rows, 4)
    y = torch.arange(rows) % 3
    assert_zero(class_conditional_mmd, source, target, y, y + 3)
    singles = torch.arange(rows)  # in common, but with one row each
    assert_zero(class_conditional_mmd, source, target, singles, singles, unbiased=True)


@pytest.mark.parametrize("rows", [6, 200])
def test_a_class_on_one_side_does_not_move(rows: int) -> None:
    source, target = make(rows, rows, 4)
    ys, yt = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.long)
    ys[::2] = -7
    _, gs, gt = gradients(class_conditional_mmd, source, target, ys, yt)
    assert bool((gs[::2] == 0).all())
    assert bool((gs[1::2].norm(dim=1) > 0).all() and (gt.norm(dim=1) > 0).all())


@pytest.mark.parametrize("rows", [12, 150])
def test_any_whole_number_names_a_class(rows: int) -> None:
    source, target = make(rows, rows, 4)
    ys, yt = make_labels("class_conditional", rows, rows, classes=2)
    want = class_conditional_mmd(source, target, ys, yt)
    for a, b in [(ys.bool(), yt.bool()), (ys.to(torch.uint8), yt.int()), (ys * -(2**40), yt * -(2**40))]:
        torch.testing.assert_close(class_conditional_mmd(source, target, a, b), want)
    torch.testing.assert_close(class_conditional_mmd(source, source, ys > 2, ys > 2), want * 0, atol=1e-6, rtol=0)


def test_77_classes_in_a_batch_of_32() -> None:
    source, target = make(16, 16, 24)
    ys, yt = make_labels("class_conditional", 16, 16, classes=77)
    for unbiased in (False, True):
        got = gradients(class_conditional_mmd, source, target, ys, yt, unbiased=unbiased)
        want = gradients(reference.class_conditional, source, target, ys, yt, unbiased=unbiased)
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours.double(), theirs.double(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("bandwidth", [None, 2.0])
@pytest.mark.parametrize("rows", [6, 200])
@pytest.mark.parametrize("form", FORMS)
def test_nan_stays_visible(form: str, rows: int, bandwidth: float | None, bad: float) -> None:
    source, target = make(rows, rows, 4)
    source[1, 2] = bad
    labels = make_labels(form, rows, rows)
    value, *grads = gradients(loss_of(form), source, target, *labels, bandwidth=bandwidth)
    assert value.isnan()
    assert all(bool(g.isnan().any()) for g in grads)


@pytest.mark.parametrize("rows", [20, 200])
@pytest.mark.parametrize("form", FORMS)
def test_far_rows_and_a_tiny_bandwidth_stay_finite(form: str, rows: int) -> None:
    source, target = make(rows, rows, 8)
    source[0] *= 1e4
    for bandwidth in (None, 1e-6, 1e9):
        labels = make_labels(form, rows, rows)
        got = gradients(loss_of(form), source, target, *labels, bandwidth=bandwidth)
        assert all(bool(x.isfinite().all()) for x in got)


# Precision.


@pytest.mark.parametrize("rows", [20, 100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_computed_in_float32(form: str, dtype: torch.dtype, rows: int) -> None:
    source, target = (z.to(dtype) for z in make(rows, rows + 4, 32))
    labels = make_labels(form, rows, rows + 4)
    got = gradients(loss_of(form), source, target, *labels)
    want = gradients(loss_of(form), source.float(), target.float(), *labels)
    assert (got[0].dtype, got[1].dtype) == (torch.float32, dtype)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1].to(dtype))
    assert torch.equal(got[2], want[2].to(dtype))


@pytest.mark.parametrize("rows", [20, 300])
@pytest.mark.parametrize("form", FORMS)
def test_autocast_changes_nothing(form: str, rows: int) -> None:
    features, labels = make(rows, rows, 32), make_labels(form, rows, rows)
    plain = gradients(loss_of(form), *features, *labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradients(loss_of(form), *features, *labels)
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


# Autograd.


@pytest.mark.parametrize("form", FORMS)
def test_one_side_and_a_scaled_loss(form: str) -> None:
    source, target = make(10, 12, 4)
    labels = make_labels(form, 10, 12)
    _, want, _ = gradients(loss_of(form), source, target, *labels)
    source.requires_grad_()
    (3 * loss_of(form)(source, target, *labels)).backward()
    torch.testing.assert_close(source.grad, 3 * want)
    assert target.grad is None
    with torch.no_grad():
        assert not loss_of(form)(source, target, *labels).requires_grad


def test_labels_carry_no_gradient() -> None:
    source, target = make(6, 6, 4)
    ys, yt = (y.requires_grad_() for y in make_labels("gaussian", 6, 6))
    assert not joint_mmd(source, target, ys, yt).requires_grad


@pytest.mark.parametrize("form", FORMS)
def test_double_backward_is_refused(form: str) -> None:
    source, target = make(6, 6, 4)
    source.requires_grad_()
    value = loss_of(form)(source, target, *make_labels(form, 6, 6))
    with pytest.raises(RuntimeError, match=r"no second derivative.*create_graph"):
        torch.autograd.grad(value, source, create_graph=True)


# The label kernel that the labels choose.


def test_joint_picks_its_label_kernel() -> None:
    source, target = make(9, 9, 4)
    whole = make_labels("delta", 9, 9)
    cases: list[tuple[str, list[Tensor]]] = [
        ("delta", whole),
        ("delta", [y > 0 for y in whole]),
        ("delta", [y[:, None] for y in whole]),
        ("linear", make_labels("linear", 9, 9)),
        ("linear", [torch.nn.functional.one_hot(y, 3) for y in whole]),
        ("gaussian", make_labels("gaussian", 9, 9)),
        ("gaussian", [y[:, None].half() for y in make_labels("gaussian", 9, 9)]),
    ]
    for kernel, labels in cases:
        chosen = joint_mmd(source, target, *labels)
        assert torch.equal(chosen, joint_mmd(source, target, *labels, label_kernel=kernel))
        want = reference.joint(source, target, *labels, kernel=kernel)
        assert abs(float(chosen) - float(want)) < 1e-6


def test_equal_regression_targets_leave_the_marginal() -> None:
    source, target = make(9, 9, 4)
    for level in (0.0, 2.0, 3.7):
        y = torch.full((9,), level)
        torch.testing.assert_close(joint_mmd(source, target, y, y), marginal_mmd(source, target))


# Errors name the value and the way out.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bandwidth": 0.0}, r"bandwidth.*None.*0\.0"),
        ({"bandwidth": -1.0}, r"-1\.0"),
        ({"bandwidth": float("nan")}, "nan"),
        ({"num_bandwidths": 4}, "odd.*4"),
        ({"num_bandwidths": 0}, "odd.*0"),
        ({"num_bandwidths": -3}, "odd.*-3"),
        ({"num_bandwidths": 2.5}, r"odd.*2\.5"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_bad_options(form: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_of(form)(*make(4, 4, 3), *make_labels(form, 4, 4), **options)


@pytest.mark.parametrize("form", FORMS)
def test_bad_features(form: str) -> None:
    loss, labels = loss_of(form), make_labels(form, 4, 5)
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(5, 2\)"):
        loss(torch.zeros(4, 3), torch.zeros(5, 2), *labels)
    with pytest.raises(ValueError, match=r"\(4, 2, 1\).*\(5, 2\)"):
        loss(torch.zeros(4, 2, 1), torch.zeros(5, 2), *labels)
    with pytest.raises(ValueError, match=r"torch\.int64"):
        loss(torch.zeros(4, 2), torch.zeros(5, 2, dtype=torch.long), *labels)


@pytest.mark.parametrize("loss", [class_conditional_mmd, joint_mmd])
def test_bad_labels(loss: Loss) -> None:
    source, target = make(4, 5, 3)
    y = torch.zeros(9, dtype=torch.long)
    with pytest.raises(ValueError, match=r"4 and 5 rows.*\(5,\).*\(4,\)"):
        loss(source, target, y[:5], y[:4])
    with pytest.raises(ValueError, match=r"\(4,\).*\(5, 2\)"):
        loss(source, target, y[:4], torch.zeros(5, 2, dtype=torch.long))


def test_class_conditional_sends_other_labels_to_joint() -> None:
    source, target = make(4, 4, 3)
    with pytest.raises(ValueError, match=r"torch\.float32.*\(4,\).*joint_mmd"):
        class_conditional_mmd(source, target, torch.zeros(4), torch.zeros(4))
    multi = torch.zeros(4, 6, dtype=torch.long)
    with pytest.raises(ValueError, match=r"torch\.int64.*\(4, 6\).*joint_mmd"):
        class_conditional_mmd(source, target, multi, multi)


def test_joint_refuses_a_kernel_that_does_not_fit() -> None:
    source, target = make(4, 4, 3)
    with pytest.raises(ValueError, match=r"'cosine'.*delta"):
        joint_mmd(source, target, torch.zeros(4), torch.zeros(4), label_kernel="cosine")
    with pytest.raises(ValueError, match=r"'delta'.*\(4, 6\)"):
        joint_mmd(source, target, torch.zeros(4, 6), torch.zeros(4, 6), label_kernel="delta")
