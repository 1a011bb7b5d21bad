"""Which loss a run takes."""

import pytest
import torch

from itra_hf.config import MatchingArguments
from itra_hf.losses import class_conditional_mmd, joint_mmd, marginal_mmd
from itra_hf.step.forms import choose_matching_loss

GENERATOR = torch.Generator().manual_seed(0)
SOURCE, TARGET = torch.randn(6, 3, generator=GENERATOR), torch.randn(5, 3, generator=GENERATOR)
CLASSES = (torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 2, 0, 1]))
VECTORS = (torch.rand(6, 4, generator=GENERATOR), torch.rand(5, 4, generator=GENERATOR))


@pytest.mark.parametrize(
    ("form", "kind", "labels", "expected"),
    [
        ("auto", "classes", CLASSES, class_conditional_mmd(SOURCE, TARGET, *CLASSES)),
        ("auto", "vectors", VECTORS, joint_mmd(SOURCE, TARGET, *VECTORS, label_kernel="linear")),
        ("auto", "targets", VECTORS, joint_mmd(SOURCE, TARGET, *VECTORS, label_kernel="gaussian")),
        ("joint", "classes", CLASSES, joint_mmd(SOURCE, TARGET, *CLASSES, label_kernel="delta")),
        ("marginal", "classes", CLASSES, marginal_mmd(SOURCE, TARGET)),
        ("marginal", None, (None, None), marginal_mmd(SOURCE, TARGET)),
    ],
)
def test_the_form_follows_the_options_and_the_labels(form, kind, labels, expected):
    loss = choose_matching_loss(MatchingArguments(matching=form), kind)
    assert torch.equal(loss(SOURCE, TARGET, *labels), expected)


@pytest.mark.parametrize("form", ["marginal", "class_conditional", "joint"])
def test_the_kernels_options_reach_the_loss(form):
    for options in ({"num_bandwidths": 1}, {"bandwidth": 0.5}, {"unbiased": True}):
        changed = choose_matching_loss(MatchingArguments(matching=form, **options), "classes")
        default = choose_matching_loss(MatchingArguments(matching=form), "classes")
        assert changed(SOURCE, TARGET, *CLASSES) != default(SOURCE, TARGET, *CLASSES)


def test_rows_that_the_tasks_loss_ignores_are_not_matched_within_classes():
    loss = choose_matching_loss(MatchingArguments(bandwidth=0.5), "classes")
    source, target = (labels.clone() for labels in CLASSES)
    source[:2], target[3:] = -100, -100
    expected = class_conditional_mmd(SOURCE[2:], TARGET[:3], source[2:], target[:3], bandwidth=0.5)
    torch.testing.assert_close(loss(SOURCE, TARGET, source, target), expected)


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
        loss(SOURCE, TARGET, *labels)
