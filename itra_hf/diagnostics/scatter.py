"""How compact the classes are: their scatter, within against between."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from itra_hf.diagnostics.separation import class_mean_separation, nc1, silhouette

# Scatter below this many units in the last place of the features' own size is taken for rounding noise.
NOISE_ULPS = 8

Features = Tensor | np.ndarray
Labels = Tensor | np.ndarray | Sequence[Any]


def compactness(features: Features, labels: Labels, *, sample_size: int = 2000) -> dict[str, float]:
    """How tightly each class lies around its mean, against how far the class means lie apart.

    With n rows x_i of class y_i, the mean m_c of the n_c rows of class c and the mean m of all rows:

        within_scatter        = sum_i |x_i - m_(y_i)|^2 / n       (trace of Sigma_W, the within-class covariance)
        between_scatter       = sum_c n_c |m_c - m|^2 / n         (trace of Sigma_B, the covariance of the class means)
        scatter_ratio         = within_scatter / between_scatter
        nc1                   = Tr(Sigma_W pinv(Sigma_B)) / K     (Papyan, Han and Donoho 2020, arXiv 2008.08186)
        silhouette            = mean of (b_i - a_i) / max(a_i, b_i)                  (Rousseeuw 1987)
        class_mean_separation = min over a != b of |m_a - m_b| / sqrt(within_scatter)

    a_i is the mean distance of row i to the other rows of its class, and b_i that to the rows of the nearest other
    class. A row alone in its class counts 0. The two scatters add up to the total scatter. If classes have equally many
    rows, `nc1` is the formula of the paper; otherwise the class means count by their rows, as in `between_scatter`. The
    ratios do not change when the features are shifted, rotated or scaled as a whole. More compact features have smaller
    ratios, a larger silhouette and a larger separation. Classes of few rows look more compact than they are (a class of
    one row has no scatter), so compare models on the same rows only.

    Features that have collapsed to one point are not compact, but useless. A scatter of at most
    `(8 eps)^2 * mean |x_i|^2` counts as rounding noise; eps is the rounding unit of the features' dtype.

    - If the total scatter is noise, `collapsed` is 1 (otherwise 0) and every ratio is NaN. The ratios are also NaN if a
      feature is not finite.
    - If only the between-class scatter is noise (the class means coincide), `scatter_ratio` and `nc1` are infinite.

    Give the features in the dtype in which they were computed. After bfloat16 features were converted to float32, their
    rounding noise looks like scatter.

    Args:
        features: `[n, d]`, of any floating or integer dtype; computed with in float64.
        labels: `[n]`, the class of each row, as integers, booleans or strings.
        sample_size: above this many rows, the silhouette, which needs all distances, is that of a random sample. The
            sample is the same every time, and does not use the global random state.

    Returns:
        `within_scatter`, `between_scatter` (both in squared feature units), `scatter_ratio`, `nc1`, `silhouette`,
        `class_mean_separation` and `collapsed`.

    Raises:
        ValueError: if the shapes don't fit, labels are not classes, there are fewer than two classes, or no class has
            two rows.

    Example:
        >>> features = torch.tensor([[0.0, 1.0], [0.0, -1.0], [4.0, 1.0], [4.0, -1.0]])
        >>> measures = compactness(features, [0, 0, 1, 1])
        >>> measures["within_scatter"], measures["between_scatter"], measures["scatter_ratio"]
        (1.0, 4.0, 0.25)
        >>> compactness(torch.ones(4, 2), [0, 0, 1, 1])["scatter_ratio"]
        nan
    """
    if sample_size < 1:
        raise ValueError(f"sample_size={sample_size} must be at least 1")
    found = _Scatter.of(features, labels)
    number = len(found.names)
    if number < 2:
        raise ValueError(f"{number} class in {len(found.rows)} rows; compactness compares at least two classes")
    if found.counts.max() < 2:
        raise ValueError(f"each of the {number} classes has one row; give some class two rows or more")
    within, between, noise = float(found.scatters.sum() / len(found.rows)), found.between, found.noise
    scatters = {"within_scatter": within, "between_scatter": between}
    if not within + between > noise:  # also where a feature is not finite
        ratios = dict.fromkeys(("scatter_ratio", "nc1", "silhouette", "class_mean_separation"), float("nan"))
        return {**scatters, **ratios, "collapsed": float(within + between <= noise)}
    sample = _sample(len(found.rows), sample_size)
    return {
        **scatters,
        "scatter_ratio": within / between if between > noise else float("inf"),
        "nc1": nc1(found.deviations, found.centred, found.shares) if between > noise else float("inf"),
        "silhouette": silhouette(found.rows[sample], found.classes[sample]),
        "class_mean_separation": class_mean_separation(found.centred, within),
        "collapsed": 0.0,
    }


def class_scatter(features: Features, labels: Labels) -> dict[Any, float]:
    """The scatter within each class, `sum |x_i - m_c|^2 / n_c` over its rows, over the scatter between all classes.

    Args:
        features, labels: as of `compactness`.

    Returns:
        The ratio by class; empty where the scatter between the classes is rounding noise.

    Raises:
        ValueError: if the shapes don't fit, or if labels are not classes.

    Example:
        >>> class_scatter(torch.tensor([[0.0], [4.0], [2.0], [6.0]]), ["a", "a", "b", "b"])
        {'a': 4.0, 'b': 4.0}
    """
    found = _Scatter.of(features, labels)
    if not found.between > found.noise:
        return {}
    return dict(zip(found.names, (found.scatters / found.counts / found.between).tolist(), strict=True))


class _Scatter(NamedTuple):
    """The rows `[n, d]` in float64, and what their scatter is made of, class by class."""

    names: list[Any]
    rows: Tensor
    classes: Tensor  # of the rows
    counts: Tensor
    deviations: Tensor  # of the rows from their class's mean
    centred: Tensor  # means of the classes, minus that of all rows
    noise: float  # the scatter up to which rows count as one point

    @classmethod
    def of(cls, features: Features, labels: Labels) -> Self:
        given = torch.as_tensor(features).detach().cpu()
        names, classes = checked_classes(given, labels)
        rows = given.double()
        offset = rows.mean(0)  # summed without it, large features would lose digits
        counts = torch.bincount(classes, minlength=len(names)).double()
        sums = torch.zeros(len(names), rows.shape[1], dtype=torch.float64).index_add_(0, classes, rows - offset)
        means = sums / counts[:, None] + offset
        noise = rounding_noise(rounding_unit(given), float(rows.square().sum()) / max(len(rows), 1))
        centred = means - counts / max(len(rows), 1) @ means
        return cls(names, rows, classes, counts, rows - means[classes], centred, noise)

    @property
    def shares(self) -> Tensor:
        """The share of the rows that each class has."""
        return self.counts / max(len(self.rows), 1)

    @property
    def scatters(self) -> Tensor:
        """The summed squared deviations of each class."""
        return torch.zeros_like(self.counts).index_add_(0, self.classes, self.deviations.square().sum(1))

    @property
    def between(self) -> float:
        """The scatter of the classes' means."""
        return float(self.shares @ self.centred.square().sum(1))


def _sample(rows: int, size: int) -> Tensor:
    """The numbers of at most so many rows, drawn the same way every time, in their order."""
    keys = torch.rand(rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return keys.topk(min(size, rows), largest=False).indices.sort().values


def rounding_unit(features: Tensor) -> float:
    """The eps of the features' dtype; of integers, that of float64."""
    return torch.finfo(features.dtype if features.is_floating_point() else torch.float64).eps


def rounding_noise(eps: float, mean_square: float) -> float:
    """The scatter, in squared feature units, up to which features of this mean squared norm count as one point."""
    return (NOISE_ULPS * eps) ** 2 * mean_square


def checked_classes(features: Tensor, labels: Any) -> tuple[list[Any], Tensor]:
    """The classes of a batch, and which of them each row is of, `[n]`, once features and labels are checked."""
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if features.ndim != 2 or features.is_complex():
        raise ValueError(
            f"features must be real and of shape [rows, d], but are {features.dtype} of shape {tuple(features.shape)}; "
            "flatten or pool them to one row per example"
        )
    if values.shape != features.shape[:1]:
        raise ValueError(f"labels of shape {values.shape} do not fit {len(features)} rows; give one class per row")
    if values.dtype.kind not in "iubUS":
        raise ValueError(f"labels of type {values.dtype} are not classes; give integers, booleans or strings")
    names, inverse = np.unique(values, return_inverse=True)
    return names.tolist(), torch.as_tensor(inverse)
