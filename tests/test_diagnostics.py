"""Measures of features: against matrices built row by row, against scikit-learn, in known and in degenerate cases."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier

from itra_hf.diagnostics import class_scatter, compactness, mode_separation
from itra_hf.diagnostics.scatter import _sample


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

    def test_nc1_is_the_trace_with_the_pseudo_inverse(self, sample):
        features, labels = sample
        within, between = scatter_matrices(features, labels)
        pinv = np.linalg.pinv(between / 60, rcond=1e-10)
        assert compactness(features, labels)["nc1"] == pytest.approx(np.trace(within / 60 @ pinv) / 4, rel=1e-9)

    def test_nc1_of_equal_classes_is_the_formula_of_the_paper(self, sample):
        features, labels = sample[0], np.arange(60) % 4
        means = np.stack([features[labels == c].mean(0) for c in range(4)])
        deviations, shifts = features - means[labels], means - features.mean(0)
        within, between = np.cov(deviations.T, bias=True), shifts.T @ shifts / 4
        expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 4
        assert compactness(features, labels)["nc1"] == pytest.approx(expected, rel=1e-9)

    def test_silhouette_is_that_of_its_definition(self, sample):
        features, labels = sample[0], np.append(sample[1][:-1], 9)  # a row alone in its class counts 0
        distances = np.linalg.norm(features[:, None] - features, axis=-1)
        values = []
        for i, label in enumerate(labels):
            others = np.arange(60) != i
            inner = distances[i, (labels == label) & others].mean() if label != 9 else 0
            outer = min(distances[i, labels == other].mean() for other in set(labels) - {label})
            values.append((outer - inner) / max(inner, outer) if label != 9 else 0)
        assert compactness(features, labels)["silhouette"] == pytest.approx(np.mean(values), rel=1e-9)

    def test_silhouette_of_a_sample_with_one_class_or_single_rows(self):
        rows = [[0.0], [1.0], [5.0], [6.0]]
        assert math.isnan(compactness(rows, [0, 0, 1, 1], sample_size=1)["silhouette"])
        labels = np.zeros(4, int)
        labels[_sample(4, 2)[0]] = 1
        assert compactness(rows, labels, sample_size=2)["silhouette"] == 0

    def test_silhouette_of_many_rows_is_that_of_a_sample(self):
        rng = np.random.default_rng(0)
        labels = np.arange(3000) % 3
        features = rng.normal(size=(3000, 4)) + 2 * np.eye(3, 4)[labels]
        state = torch.get_rng_state()
        sampled = compactness(features, labels, sample_size=500)
        assert torch.equal(torch.get_rng_state(), state)
        exact = compactness(features, labels, sample_size=3000)
        assert sampled["silhouette"] == pytest.approx(silhouette_score(features, labels), abs=0.03)
        assert sampled["silhouette"] != exact["silhouette"]
        assert {**sampled, "silhouette": 0} == {**exact, "silhouette": 0}

    def test_separation_is_the_distance_of_the_nearest_means(self, sample):
        features, labels = sample
        means = [features[labels == c].mean(0) for c in range(4)]
        nearest = min(np.linalg.norm(means[a] - means[b]) for a in range(4) for b in range(a))
        radius = np.sqrt(compactness(features, labels)["within_scatter"])
        assert compactness(features, labels)["class_mean_separation"] == pytest.approx(nearest / radius, rel=1e-9)

    def test_separation_of_more_classes_than_are_compared_at_once(self):
        means = torch.randn(600, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 100
        features = torch.cat([means - 1, means + 1])
        distances = torch.cdist(means, means).fill_diagonal_(math.inf)
        result = compactness(features, torch.arange(600).repeat(2))["class_mean_separation"]
        assert result == pytest.approx(float(distances.min()) / 3**0.5, rel=1e-9)

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
        plain = compactness(features, labels)
        for name in ("scatter_ratio", "nc1", "class_mean_separation"):
            assert moved[name] == pytest.approx(plain[name], rel=1e-6)
        shifted = compactness(features + 1e4, labels)  # far beyond what lies between the means
        assert shifted["nc1"] == pytest.approx(plain["nc1"], rel=1e-5)

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

    def test_collapsed_features_are_named_so_and_never_compact(self):
        result = compactness(torch.full((6, 3), 2.0), [0, 0, 1, 1, 2, 2])
        assert result.pop("collapsed") == 1
        assert result.pop("within_scatter") == result.pop("between_scatter") == 0
        assert len(result) == 4
        assert all(math.isnan(value) for value in result.values())

    def test_coinciding_means_are_not_compact_by_any_measure(self):
        result = compactness(torch.tensor([[1.0], [-1.0], [2.0], [-2.0]]), [0, 0, 1, 1])
        assert result["nc1"] == math.inf
        assert result["class_mean_separation"] == result["collapsed"] == 0
        assert result["silhouette"] < 0


def test_features_that_overflow_have_not_collapsed():
    assert compactness(torch.randn(8, 3).double() * 1e200, [0, 0, 1, 1] * 2)["collapsed"] == 0


class TestClassScatter:
    def test_is_the_variance_of_each_class_over_the_scatter_between_all(self, sample):
        features, labels = sample
        between = compactness(features, labels)["between_scatter"]
        expected = {c: features[labels == c].var(0).sum() / between for c in range(4)}
        assert class_scatter(features, labels) == pytest.approx(expected, rel=1e-9)

    def test_of_one_class_or_no_rows_there_is_none(self):
        assert class_scatter(torch.ones(3, 2), [1, 1, 1]) == class_scatter(torch.zeros(0, 2), np.zeros(0, int)) == {}


class TestSample:
    def test_the_silhouette_of_a_sample_comes_close(self):
        rng = np.random.default_rng(0)
        labels = np.arange(6000) % 3
        features = rng.normal(size=(6000, 5)) + 2 * np.eye(3, 5)[labels]
        few, all_ = (compactness(features, labels, sample_size=size) for size in (1000, 6000))
        assert few["silhouette"] != all_["silhouette"]
        assert few["silhouette"] == pytest.approx(all_["silhouette"], rel=0.1)
        assert few | {"silhouette": 0} == all_ | {"silhouette": 0}

    def test_is_uniform(self):
        drawn = _sample(10000, 1000).double()
        assert len(drawn.unique()) == 1000
        assert float(drawn.mean()) == pytest.approx(5000, abs=3 * 2887 / 1000**0.5)

    def test_of_no_rows_is_refused(self):
        with pytest.raises(ValueError, match="sample_size=0 must be at least 1"):
            compactness(torch.ones(2, 1), [0, 1], sample_size=0)


class TestModeSeparation:
    @pytest.fixture
    def modes(self):
        rng = np.random.default_rng(0)
        mode = rng.integers(0, 5, 700)
        return rng.normal(size=(700, 6)) + 1.2 * np.eye(5, 6)[mode], mode, mode // 2

    def test_is_leave_one_out_knn_within_the_class(self, modes):
        rows, mode, classes = modes
        right = 0
        for i in range(700):
            others = (classes == classes[i]) & (np.arange(700) != i)
            knn = KNeighborsClassifier(10, algorithm="brute").fit(rows[others], mode[others])
            right += int(knn.predict(rows[i : i + 1])[0] == mode[i])
        chance = sum(np.bincount(mode[classes == c]).max() for c in range(3)) / 700
        result = mode_separation(rows, mode, classes)
        assert result["mode_accuracy"] == pytest.approx(right / 700)
        assert result["mode_chance"] == pytest.approx(chance)
        assert result["mode_separation"] == pytest.approx((right / 700 - chance) / (1 - chance))

    def test_classes_that_lie_apart_are_no_modes_that_do(self):
        rng = np.random.default_rng(0)
        classes, mode = np.arange(400) % 2, rng.integers(0, 2, 400) + np.arange(400) % 2 * 2
        rows = rng.normal(size=(400, 3)) + 100 * classes[:, None]
        assert mode_separation(rows, mode)["mode_separation"] > 0.2  # for half of the answer is the class
        assert mode_separation(rows, mode, classes)["mode_separation"] < 0.05

    def test_collapsed_features_have_no_modes(self):
        result = mode_separation(torch.ones(6, 2), [0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1])
        assert math.isnan(result["mode_accuracy"])
        assert math.isnan(result["mode_separation"])

    def test_a_class_of_one_row_or_one_mode_is_known_by_its_class(self):
        rows = torch.tensor([[0.0], [0.1], [3.0], [3.1], [9.0]])
        assert mode_separation(rows, [0, 0, 1, 1, 2], [0, 0, 0, 0, 1], neighbours=1)["mode_accuracy"] == 1

    @pytest.mark.parametrize(
        ("modes", "classes", "message"),
        [
            ([0, 0, 1, 1], [0, 0, 1, 1], "has two modes"),
            ([0, 1, 0], None, r"\(3,\) do not fit 4 rows"),
            ([0.5, 1, 0, 1], None, "float64 are not classes"),
        ],
    )
    def test_message_names_the_value(self, modes, classes, message):
        with pytest.raises(ValueError, match=message):
            mode_separation(torch.randn(4, 2), modes, classes)


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
