"""What the pair and its sampler promise."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from itra_hf import ClassPairedSampler
from itra_hf.pairing import split_pair

labels_of = st.lists(st.integers(0, 5), max_size=60)


@given(labels_of, st.integers(0, 5), st.integers(0, 5))
def test_yields_every_row_once(labels, seed, epoch):
    sampler = ClassPairedSampler(torch.tensor(labels, dtype=torch.long), seed=seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(labels)))
    assert len(sampler) == len(order)


@given(labels_of)
def test_all_couples_share_a_class_but_the_left_overs(labels):
    order = list(ClassPairedSampler(torch.tensor(labels, dtype=torch.long), seed=3))
    couples = list(zip(order[0::2], order[1::2], strict=False))
    mixed = sum(labels[a] != labels[b] for a, b in couples)
    odd_classes = sum(count % 2 for count in Counter(labels).values())
    assert mixed == odd_classes // 2


def test_both_halves_of_a_batch_hold_the_same_classes():
    labels = torch.arange(40) % 10
    order = torch.tensor(list(ClassPairedSampler(labels)))
    for batch in order.split(8):
        source, target = split_pair(labels[batch])
        assert torch.equal(source, target)


def test_couples_come_in_no_order_of_class():
    labels = torch.arange(400) % 2
    classes = labels[list(ClassPairedSampler(labels))][0::2]
    assert 120 < int((classes[1:] != classes[:-1]).sum()) < 180  # one of each, in any order, then one of each again


def test_epochs_differ_and_repeat():
    sampler = ClassPairedSampler([0, 1] * 20, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(ClassPairedSampler([0, 1] * 20, seed=2)) != first


def test_one_order_on_every_machine():
    order = list(ClassPairedSampler([0, 1, 1] * 5, seed=3))
    assert order == [2, 14, 12, 6, 4, 5, 8, 13, 1, 10, 7, 11, 3, 9, 0]


def test_partners_change_between_epochs():
    sampler = ClassPairedSampler([0] * 20)
    couples = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = list(sampler)
        couples.append({frozenset(couple) for couple in zip(order[0::2], order[1::2], strict=True)})
    assert couples[0] != couples[1]


def test_leaves_the_global_random_state_alone():
    state = torch.get_rng_state()
    list(ClassPairedSampler([0, 1, 1]))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("labels", [torch.rand(4), torch.zeros(4, 2, dtype=torch.long)])
def test_refuses_labels_that_are_no_classes(labels):
    with pytest.raises(ValueError, match=r"(float32|\(4, 2\)).*pairing='random'"):
        ClassPairedSampler(labels)


def test_every_matching_is_as_likely_as_any_other_and_a_couple_falls_anywhere():
    sampler = ClassPairedSampler([0, 0, 0, 0, 1, 1])
    partners, places = Counter(), Counter()
    for epoch in range(900):
        sampler.set_epoch(epoch)
        order = list(sampler)
        place = order.index(0)
        partners[order[place ^ 1]] += 1
        places[order.index(4) // 2] += 1
    assert sorted(partners) == [1, 2, 3]
    assert all(240 < count < 360 for count in partners.values())  # 4 standard deviations
    for place, share in enumerate((1 / 4, 1 / 2, 1 / 4)):  # before, between and behind one couple in each half
        assert abs(places[place] - 900 * share) < 4 * (900 * share * (1 - share)) ** 0.5


def test_each_class_is_spread_evenly_over_an_epoch():
    labels = torch.arange(400) % 10  # 20 couples of each class
    sampler = ClassPairedSampler(labels)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        for fifth in labels[torch.as_tensor(list(sampler))].view(5, 80):
            counts = torch.bincount(fifth, minlength=10) // 2
            assert counts.min() >= 2
            assert counts.max() <= 6
