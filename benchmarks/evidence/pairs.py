"""Paired comparisons of two methods over the seeds that both have."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats


class Comparison(NamedTuple):
    """What a method gains over another in percentage points, with a 95 % interval of Student's t."""

    gain: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int
    seeds: int


def compare(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Comparison:
    """Compare accuracies (from 0 to 1, by seed) with the two-sided paired t-test."""
    seeds = sorted(set(ours) & set(theirs))
    gains = 100 * np.array([ours[seed] - theirs[seed] for seed in seeds])
    signs = [int((gains > 0).sum()), int((gains == 0).sum()), int((gains < 0).sum())]
    if len(seeds) < 2 or np.ptp(gains) == 0:  # no spread to test with
        nan = float("nan")
        return Comparison(float(gains.mean()), nan, nan, 1.0, *signs, len(seeds))
    test = stats.ttest_1samp(gains, 0)
    low, high = test.confidence_interval(0.95)
    return Comparison(float(gains.mean()), float(low), float(high), float(test.pvalue), *signs, len(seeds))


def verdict(comparison: Comparison, p: float) -> str:
    """A comparison in words, by its corrected p-value; it leans where only its own interval leaves out 0."""
    side = "better" if comparison.gain > 0 else "worse"
    if p <= 0.05:
        return side
    return f"leans {side}" if comparison.low > 0 or comparison.high < 0 else "no difference seen"


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction (1979): the family-wise error over all of these tests stays below the level."""
    order = np.argsort(p_values)
    scaled = (len(p_values) - np.arange(len(p_values))) * np.array(p_values)[order]
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return corrected.tolist()
