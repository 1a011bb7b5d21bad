"""Compactness: against scatter matrices built row by row in float64, in known cases and in degenerate ones."""

import math

import numpy as np
import pytest
import torch

from itra_hf.diagnostics import compactness


def scatter_matrices(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The within-class and between-class scatter matrices from their definition."""
    x = features.astype(np.float64)
    within = between = np.zeros((x.shape[1], x.shape[1]))
    for c in set(labels.tolist()):
        rows = x[labels == c]
        for row in rows:
            within = within + np.outer(row - rows.mean(0), row - rows.mean(0))
        shift = rows.mean(0) - x.mean(0)
        between = between + len(rows) * np.outer(shift, shift)
    return within, between


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice(4, size=60, p=[0.5, 0.3, 0.15, 0.05])
    return rng.normal(size=(60, 7)) + labels[:, None] * rng.normal(size=7) + 3, labels


class TestValues:
    def test_equals_the_scatter_matrices(self, sample):
        features, labels = sample
        within, between = scatter_matrices(features, labels)
        result = compactness(features, labels)
        assert result["within_scatter"] == pytest.approx(np.trace(within) / 60, rel=1e-12)
        assert result["between_scatter"] == pytest.approx(np.trace(between) / 60, rel=1e-12)
        assert result["scatter_ratio"] == pytest.approx(np.trace(within) / np.trace(between), rel=1e-12)
        assert all(type(value) is float for value in result.values())

    def test_scatters_add_up_to_the_total(self, sample):
        features, labels = sample
        result = compactness(features, labels)
        assert result["within_scatter"] + result["between_scatter"] == pytest.approx(features.var(0).sum())

    def test_known_case_with_unequal_classes(self):
        # class means 0 and 4, overall mean 1: within (1 + 1 + 0 + 0) / 4, between (3 * 1 + 1 * 9) / 4
        result = compactness(torch.tensor([[1.0], [-1.0], [0.0], [4.0]]), [0, 0, 0, 1])
        expected = {"within_scatter": 0.5, "between_scatter": 3.0, "scatter_ratio": pytest.approx(1 / 6)}
        assert {name: result[name] for name in expected} == expected

    def test_classes_that_are_points_far_apart_are_perfectly_compact(self):
        assert compactness(torch.tensor([[1.0], [1.0], [2.0], [2.0]]), [0, 0, 1, 1])["scatter_ratio"] == 0

    def test_ratio_ignores_shift_rotation_scale_and_order(self, sample):
        features, labels = sample
        rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(7, 7)))[0]
        order = np.random.default_rng(2).permutation(60)
        moved = compactness((1e-3 * features @ rotation + 5)[order], labels[order])
        assert moved["scatter_ratio"] == pytest.approx(compactness(features, labels)["scatter_ratio"], rel=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_lower_precision_is_computed_in_float64(self, sample, dtype):
        low = torch.tensor(sample[0]).to(dtype).requires_grad_()
        assert compactness(low, torch.tensor(sample[1])) == compactness(low.detach().double().numpy(), sample[1])

    def test_a_large_offset_costs_no_digits(self, sample):
        features, labels = sample
        result = compactness(torch.tensor(features) + 1e6, labels)
        assert result["scatter_ratio"] == pytest.approx(compactness(features, labels)["scatter_ratio"], rel=1e-6)

    @pytest.mark.parametrize("as_label", [str, bool, lambda y: y - 100, np.uint8])
    def test_any_kind_of_class_label(self, sample, as_label):
        features, labels = sample[0], (sample[1] > 0).astype(int)
        assert compactness(features, [as_label(y) for y in labels]) == compactness(features, labels)

    def test_integer_features(self):
        assert compactness(torch.tensor([[0], [2], [10], [12]]), [0, 0, 1, 1])["scatter_ratio"] == pytest.approx(1 / 25)


class TestDegenerate:
    @pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_identical_rows_give_nan(self, value, dtype):
        assert math.isnan(compactness(torch.full((6, 3), value, dtype=dtype), [0, 0, 1, 1, 2, 2])["scatter_ratio"])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_rounding_noise_gives_nan_but_small_scatter_does_not(self, dtype):
        torch.manual_seed(0)
        labels = torch.arange(40) % 4
        eps = torch.finfo(dtype).eps
        noise = torch.randn(40, 16).clamp(-2, 2) * 2 * eps
        assert math.isnan(compactness((1 + noise).to(dtype), labels)["scatter_ratio"])
        scatter = torch.randn(40, 16, dtype=torch.float64) * 64 * eps + labels[:, None] * 64 * eps
        assert 0 < compactness((1 + scatter).to(dtype), labels)["scatter_ratio"] < math.inf

    def test_tiny_features_around_zero_are_not_collapsed(self):
        features = torch.tensor([[1e-20], [2e-20], [-1e-20], [-2e-20]])
        assert compactness(features, [0, 0, 1, 1])["scatter_ratio"] == pytest.approx(1 / 9)

    def test_coinciding_class_means_give_infinity(self):
        assert compactness(torch.tensor([[1.0], [-1.0], [2.0], [-2.0]]), [0, 0, 1, 1])["scatter_ratio"] == math.inf

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_features_that_are_not_finite_give_nan(self, bad):
        assert math.isnan(compactness(torch.tensor([[bad], [1.0], [2.0], [3.0]]), [0, 0, 1, 1])["scatter_ratio"])


class TestErrors:
    @pytest.mark.parametrize(
        ("features", "labels", "message"),
        [
            (torch.zeros(4), [0, 0, 1, 1], r"\[rows, d\].*\(4,\)"),
            (torch.zeros(4, 2, 2), [0, 0, 1, 1], r"\(4, 2, 2\).*pool"),
            (torch.zeros(4, 2), [0, 0, 1], r"\(3,\) do not fit 4 rows"),
            (torch.zeros(4, 2), torch.zeros(4, 3), r"\(4, 3\) do not fit 4 rows"),
            (torch.zeros(4, 2), [0.5, 0.1, 0.2, 0.3], "float64 are not classes"),
            (torch.zeros(4, 2), [1, 1, 1, 1], "1 class in 4 rows"),
            (torch.zeros(0, 2), np.zeros(0, int), "0 class in 0 rows"),
            (torch.randn(4, 2), [0, 1, 2, 3], "each of the 4 classes has one row"),
        ],
    )
    def test_message_names_the_value(self, features, labels, message):
        with pytest.raises(ValueError, match=message):
            compactness(features, labels)
