"""What is right where it was wrong: offsets, scales, many bandwidths, far clusters, strips; and what tracing does."""

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses import FORMS, gradients, loss_of, make, make_labels
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from itra_hf.losses import Form, class_conditional_mmd, joint_mmd, marginal_mmd, mmd, strips
from itra_hf.losses.form import MOST_BANDWIDTHS


def rel(ours, theirs):
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unbiased", [False, True])
def test_strips_add_up_to_the_whole(monkeypatch, form, unbiased):
    features, labels = make(41, 36, 5, dtype=torch.float64), make_labels(form, 41, 36)
    whole = gradients(loss_of(form), *features, *labels, unbiased=unbiased)
    for entries in (1, 300, 77 * 40):
        monkeypatch.setattr(strips, "STRIP", entries)
        parts = gradients(loss_of(form), *features, *labels, unbiased=unbiased)
        torch.testing.assert_close(parts, whole, rtol=1e-11, atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 10_000), st.sampled_from([1, 60, 2**19]), st.booleans())
def test_classes_are_dealt_out_in_turn_and_rows_without_one_do_not_count(rows, classes, seed, entries, by_class):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.2] = -100
    source, target = reference.dealt(labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "STRIP", entries)
        value, gradient, _ = mmd(z.detach(), None, labels, Form("delta", by_class, bandwidth=3.0))
    expected = (z * 0).sum()
    if len(source) and len(target):
        pair = [part[side] for part in (z, labels) for side in (source, target)]
        options = {"bandwidth": 3.0} if by_class else {"bandwidth": 3.0, "kernel": "delta"}
        expected = (reference.class_conditional if by_class else reference.joint)(*pair, **options)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, z)[0], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_a_class_of_any_dtype_counts(dtype):
    rows, labels = torch.cat(make(6, 6, 4)), torch.tensor([156, 3] * 6)
    ours = mmd(rows, None, labels.to(dtype), Form("delta", by_class=True))
    torch.testing.assert_close(ours, mmd(rows, None, labels, Form("delta", by_class=True)))


def test_the_bandwidth_is_the_mean_squared_distance():
    source, target = make(11, 9, 5, dtype=torch.float64)
    bandwidth = float(reference.mean_distance(torch.cat([source, target])))
    ours = gradients(marginal_mmd, source, target)
    torch.testing.assert_close(ours, gradients(marginal_mmd, source, target, bandwidth=bandwidth))


def test_the_spread_is_that_of_the_rows():
    z = torch.cat(make(11, 9, 5)).float()
    sign = torch.ones(20)
    for bandwidth in (None, 3.0):
        spread = mmd(z, sign, None, Form(bandwidth=bandwidth)).spread
        assert float(spread) == pytest.approx(float((z - z.mean(0)).norm()), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scatter_in_rounding_noise_counts_as_collapse(dtype):
    eps = torch.finfo(dtype).eps
    noise = torch.randn(64, 16, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for relative, collapsed in ((0.0, True), (4 * eps, True), (2000 * eps, False)):
        value, *grads = gradients(marginal_mmd, *(5 * (1 + relative * noise)).split(32))
        assert (abs(float(value)) < 1e-6) == collapsed
        assert all(bool((gradient == 0).all()) == collapsed for gradient in grads)


@pytest.mark.parametrize("offset", [101325.0, 1.7e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_regression_labels_far_from_0_count(offset, dtype):
    if dtype == torch.float32 and offset > 1e9:
        pytest.skip("float32 cannot hold such labels")
    source, target = make(20, 24, 6)
    labels = make_labels("gaussian", 20, 24)
    if dtype == torch.int64:
        labels = [(100 * y).round() for y in labels]
    far = [(y.double() + offset).to(dtype) for y in labels]
    near = [(y.double() - offset) for y in far]
    ours = gradients(joint_mmd, source, target, *far, label_kernel="gaussian")
    want = gradients(reference.joint, source, target, *near, kernel="gaussian")
    assert float(ours[0]) == pytest.approx(float(want[0]), rel=1e-4)
    assert all(rel(mine, theirs) < 1e-4 for mine, theirs in zip(ours[1:], want[1:], strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_a_constant_column_changes_nothing(form):
    source, target = (0.01 * z for z in make(20, 24, 6))
    labels = make_labels(form, 20, 24)
    before = gradients(loss_of(form), source, target, *labels)
    wider = [torch.cat([z, torch.full((len(z), 1), 1e7 / 3)], 1) for z in (source, target)]
    after = gradients(loss_of(form), *wider, *labels)
    torch.testing.assert_close(after[0], before[0], rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(after[1:], before[1:], strict=True):
        assert rel(mine[:, :-1], theirs) < 1e-4
        assert float(mine[:, -1].abs().max()) < 1e-4 * float(theirs.abs().max())


@pytest.mark.parametrize("form", FORMS)
def test_scales_down_to_1e_22(form):
    features, labels = make(20, 24, 6), make_labels(form, 20, 24)
    before = gradients(loss_of(form), *features, *labels)
    for scale in (1e-20, 1e-22, 1e20):
        after = gradients(loss_of(form), *(z * scale for z in features), *labels)
        torch.testing.assert_close(after[0], before[0], rtol=1e-5, atol=1e-6)
        assert all(rel(mine * scale, theirs) < 1e-4 for mine, theirs in zip(after[1:], before[1:], strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_features_too_small_for_a_gradient_give_none(form):
    features, labels = make(20, 24, 6), make_labels(form, 20, 24)
    value, *grads = gradients(loss_of(form), *(z * 1e-42 for z in features), *labels)
    assert value.isfinite()
    assert all(bool((gradient == 0).all()) for gradient in grads)


@pytest.mark.parametrize("kind", ["plain", "scales", "outlier"])
def test_as_many_bandwidths_as_allowed_are_right_to_1_percent(kind):
    source, target = make(40, 40, 8)
    if kind == "scales":
        source, target = (z * torch.logspace(-4, 0, 40)[:, None] for z in (source, target))
    if kind == "outlier":
        source[0] *= 100
    ours = gradients(marginal_mmd, source, target, num_bandwidths=MOST_BANDWIDTHS)
    want = gradients(reference.marginal, source, target, num=MOST_BANDWIDTHS)
    assert float(ours[0]) >= 0
    assert all(rel(mine, theirs) < 0.01 for mine, theirs in zip(ours, want, strict=True))
    with pytest.raises(ValueError, match=f"from 1 to {MOST_BANDWIDTHS}.*{MOST_BANDWIDTHS + 2}"):
        marginal_mmd(source, target, num_bandwidths=MOST_BANDWIDTHS + 2)


@pytest.mark.parametrize("share", [0.5, 0.1])
@pytest.mark.parametrize("gap", [1e3, 1e4])
@pytest.mark.parametrize("form", ["marginal", "class_conditional"])
def test_a_bandwidth_far_below_the_distance_of_the_clusters(form, gap, share):
    generator = torch.Generator().manual_seed(0)
    y = (torch.arange(64) >= 64 * share).long()
    sides = [torch.randn(64, 16, generator=generator) / 2 + gap * y[:, None] / 4 for _ in range(2)]
    labels = [y, y] if form == "class_conditional" else []
    ours = gradients(loss_of(form), *sides, *labels, bandwidth=8.0)
    want = gradients(getattr(reference, form), *sides, *labels, bandwidth=8.0)
    assert all(rel(mine, theirs) < 0.01 for mine, theirs in zip(ours, want, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_n_by_n_is_saved(form):
    features, labels = make(400, 400, 8), make_labels(form, 400, 400)
    features[0].requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        loss_of(form)(*features, *labels).backward()
    assert saved == [800 * 8]  # the gradient


@pytest.mark.parametrize("form", FORMS)
def test_a_loss_that_was_traced_is_as_before(form):
    features, labels = make(6, 6, 4), make_labels(form, 6, 6)
    before = gradients(loss_of(form), *features, *labels)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(part) for part in (*features, *labels)]
        assert loss_of(form)(*fake).shape == ()
    graph = make_fx(lambda source, target: loss_of(form)(source, target, *labels))(*features)
    other = make(6, 6, 4, seed=1)
    torch.testing.assert_close(graph(*other), loss_of(form)(*other, *labels))
    assert all(map(torch.equal, gradients(loss_of(form), *features, *labels), before))


def test_compiled_code_may_call_a_loss():
    torch._dynamo.reset()
    features, labels = make(6, 6, 4), make_labels("class_conditional", 6, 6)

    def doubled(source, target, *labels):
        return 2 * class_conditional_mmd(source * 3, target * 3, *labels)

    compiled = gradients(torch.compile(doubled, backend="aot_eager"), *features, *labels)
    torch.testing.assert_close(compiled, gradients(doubled, *features, *labels))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap, torch.func.jacrev])
def test_torch_func_is_told_that_it_is_not_served(transform):
    source, target = make(6, 6, 4)
    if transform is torch.func.vmap:
        source, target = source[None], target[None]
    with pytest.raises(RuntimeError, match=r"do not support torch\.func.*backward"):
        transform(marginal_mmd)(source, target)
