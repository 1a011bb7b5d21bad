"""Which loss a run takes."""

import pytest
import reference
import torch

from itra_hf.config import MatchingArguments
from itra_hf.losses import class_conditional_mmd, joint_mmd, marginal_mmd
from itra_hf.step.forms import choose_matching_loss, of_own_loss

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(11, 3, generator=GENERATOR)
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1])
VECTORS = torch.rand(11, 4, generator=GENERATOR)
EVEN, ODD = slice(0, None, 2), slice(1, None, 2)


def of_sides(loss, sides=(EVEN, ODD), labels=None, **options):
    """Value and gradient of a public loss of these sides."""
    rows = ROWS.clone().requires_grad_()
    parts = [part[side] for part in (rows, labels) if part is not None for side in sides]
    value = loss(*parts, **options)
    return value.detach(), torch.autograd.grad(value, rows)[0]


@pytest.mark.parametrize(
    ("form", "kind", "labels", "expected"),
    [
        ("auto", "classes", CLASSES, lambda: of_sides(class_conditional_mmd, reference.dealt(CLASSES), CLASSES)),
        ("joint", "classes", CLASSES, lambda: of_sides(joint_mmd, reference.dealt(CLASSES), CLASSES)),
        ("auto", "vectors", VECTORS, lambda: of_sides(joint_mmd, labels=VECTORS, label_kernel="linear")),
        ("auto", "targets", VECTORS, lambda: of_sides(joint_mmd, labels=VECTORS, label_kernel="gaussian")),
        ("marginal", "classes", CLASSES, lambda: of_sides(marginal_mmd)),
        ("marginal", None, None, lambda: of_sides(marginal_mmd)),
    ],
)
def test_the_form_follows_the_options_and_the_labels(form, kind, labels, expected):
    loss = choose_matching_loss(MatchingArguments(matching=form), kind)
    value, gradient, spread = loss(ROWS, labels)
    torch.testing.assert_close((value, gradient), expected(), rtol=1e-5, atol=1e-6)
    assert spread.item() == pytest.approx((ROWS - ROWS.mean(0)).norm().item())


@pytest.mark.parametrize("form", ["marginal", "class_conditional", "joint"])
def test_the_kernels_options_reach_the_loss(form):
    for options in ({"num_bandwidths": 1}, {"bandwidth": 0.5}):
        changed = choose_matching_loss(MatchingArguments(matching=form, **options), "classes")
        default = choose_matching_loss(MatchingArguments(matching=form), "classes")
        assert changed(ROWS, CLASSES).value != default(ROWS, CLASSES).value


@pytest.mark.parametrize("form", ["class_conditional", "joint"])
def test_rows_that_the_tasks_loss_ignores_are_not_matched_within_classes(form):
    loss = choose_matching_loss(MatchingArguments(matching=form, bandwidth=0.5), "classes")
    labels = CLASSES.clone()
    labels[2:5] = -100
    kept = labels != -100
    value, gradient, _ = loss(ROWS, labels)
    expected = loss(ROWS[kept], labels[kept])
    torch.testing.assert_close(value, expected.value)
    torch.testing.assert_close(gradient[kept], expected.gradient)
    assert not gradient[~kept].any()
    assert loss(ROWS, torch.full_like(labels, -100)).value == 0


def test_an_own_loss_gets_even_and_odd_rows_with_their_labels_and_gives_its_gradient():
    seen = []

    def own(source, target, source_labels, target_labels):
        seen.extend([source.detach(), target.detach(), source_labels, target_labels])
        return (source.sum() - 2 * target.sum()) ** 2

    rows = ROWS.half()
    value, gradient, _ = of_own_loss(own)(rows, CLASSES)
    expected = [rows[EVEN].float(), rows[ODD].float(), CLASSES[EVEN], CLASSES[ODD]]
    assert all(torch.equal(*pair) for pair in zip(seen, expected, strict=True))
    slope = 2 * (expected[0].sum() - 2 * expected[1].sum())
    assert value.item() == pytest.approx((slope / 2).square().item())
    assert gradient[EVEN].flatten().tolist() == pytest.approx([slope.item()] * 18)
    assert gradient[ODD].flatten().tolist() == pytest.approx([-2 * slope.item()] * 15)
    constant = of_own_loss(lambda s, t, ys, yt: torch.tensor(2.0))(ROWS, None)
    assert not constant.gradient.any()
    for wrong, named in ((lambda s, *_: s.sum(1), r"\(6,\)"), (lambda *_: 0.5, "0.5"), (lambda *_: None, "None")):
        with pytest.raises(ValueError, match=f"scalar.*{named}"):
            of_own_loss(wrong)(ROWS, None)


def test_an_own_loss_may_edit_its_rows_in_place():
    def centred(source, target, *labels):
        source -= source.mean(0)
        return source.square().sum()

    rows = ROWS.clone()
    value, gradient, _ = of_own_loss(centred)(rows, None)
    assert torch.equal(rows, ROWS)
    even = ROWS[EVEN] - ROWS[EVEN].mean(0)
    assert value.item() == pytest.approx(even.square().sum().item())
    torch.testing.assert_close(gradient[EVEN], 2 * even)


def test_without_labels_auto_has_no_loss_and_a_form_that_needs_them_says_so():
    assert choose_matching_loss(MatchingArguments(), None) is None
    assert choose_matching_loss(MatchingArguments(), "tokens") is None
    for form in ("class_conditional", "joint"):
        with pytest.raises(ValueError, match=rf"matching='{form}'.*marginal"):
            choose_matching_loss(MatchingArguments(matching=form), None)
        with pytest.raises(ValueError, match=rf"matching='{form}'.*per token"):
            choose_matching_loss(MatchingArguments(matching=form), "tokens")


@pytest.mark.parametrize(("kind", "labels"), [("classes", VECTORS), ("vectors", CLASSES)])
def test_labels_of_another_kind_than_the_first_batch_held_are_an_error(kind, labels):
    loss = choose_matching_loss(MatchingArguments(matching="joint"), kind)
    with pytest.raises(ValueError, match=rf"labels that are {kind}, .*matching='marginal'"):
        loss(ROWS, labels)
