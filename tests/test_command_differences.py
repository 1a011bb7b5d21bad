"""Paired differences, their intervals, the verdict and its sentence."""

import numpy as np
import pytest
from scipy import stats

from itra_hf.command.differences import judge, paired_differences


def lines(runs, **scores):
    """Runs of both trainers with these pairs of scores by the seed."""
    return [
        {"seed": seed, "trainer": name, "metrics": {metric: pairs[seed][side] for metric, pairs in scores.items()}}
        for seed in range(runs)
        for side, name in enumerate(("Trainer", "ITRATrainer"))
    ]


def test_the_interval_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    pairs = rng.standard_normal((7, 2)).tolist()
    found = paired_differences(lines(7, score=pairs))["score"]
    plain, itra = np.array(pairs).T
    expected = stats.ttest_rel(itra, plain).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["values"] == pytest.approx(itra - plain)
    assert (found["trainer"], found["itra"]) == pytest.approx((plain.mean(), itra.mean()))


def test_half_a_pair_and_scores_that_are_not_finite_are_left_out():
    runs = lines(3, score=[(0.0, 1.0), (0.0, 2.0), (0.0, 4.0)])[:-1]
    runs[0]["metrics"]["score"] = None
    assert paired_differences(runs)["score"]["seeds"] == [1]
    assert paired_differences(runs)["score"]["low"] is None


@pytest.mark.parametrize(
    ("pairs", "greater", "verdict", "words"),
    [
        ([(0.5, 0.7), (0.5, 0.72), (0.5, 0.69)], True, "helps", "over 3 seeds, the score is better by 0.2033"),
        ([(0.5, 0.7), (0.5, 0.72), (0.5, 0.69)], False, "hurts", "over 3 seeds, the score is worse by 0.2033"),
        ([(0.5, 0.3), (0.5, 0.31), (0.5, 0.29)], False, "helps", "better by 0.2000"),
        ([(0.5, 0.3), (0.5, 0.8), (0.5, 0.5)], True, "cannot tell", "differs by +0.0333 on average"),
        ([(0.5, 0.6), (0.5, 0.6), (0.5, 0.6)], True, "cannot tell", "all differences are the same"),
        ([(0.92, 0.93), (0.56, 0.57)], True, "cannot tell", "all differences are the same"),  # but for rounding
        ([(0.5, 0.9)], True, "cannot tell", "from 1 seed: an interval needs two"),
    ],
)
def test_the_verdict_and_its_sentence(pairs, greater, verdict, words):
    found = paired_differences(lines(len(pairs), score=pairs))["score"]
    given, sentence = judge("score", greater, found)
    assert given == verdict
    assert words in sentence
