"""How compact the classes are: their scatter, within against between."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

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

    a_i is the mean distance of row i to the other rows of its class. b_i is its mean distance to the rows of the
    nearest other class. A row alone in its class counts 0. The two scatters add up to the total scatter. If classes
    have equally many rows, `nc1` is the formula of the paper; otherwise the class means count by their rows, as in
    `between_scatter`. The ratios do not change when the features are shifted, rotated or scaled as a whole. More
    compact features have smaller ratios, a larger silhouette and a larger separation. Classes of few rows look more
    compact than they are: a class of one row has no scatter. So compare models on the same rows only.

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
    if number == len(found.rows):
        raise ValueError(f"each of the {number} classes has one row; give some class two rows or more")
    within, between, noise = float(found.shares @ found.scatters), found.between, found.noise
    scatters = {"within_scatter": within, "between_scatter": between}
    if not within + between > noise:  # also where a feature is not finite
        ratios = dict.fromkeys(("scatter_ratio", "nc1", "silhouette", "class_mean_separation"), float("nan"))
        return {**scatters, **ratios, "collapsed": float(within + between <= noise < float("inf"))}
    sample = _sample(len(found.rows), sample_size)
    nearest = float(torch.pdist(found.centred).min())
    return {
        **scatters,
        "scatter_ratio": within / between if between > noise else float("inf"),
        "nc1": _nc1(found) if between > noise else float("inf"),
        "silhouette": _silhouette(found.rows[sample], found.classes[sample]),
        "class_mean_separation": nearest / within**0.5 if within > 0 else float("inf"),
        "collapsed": 0.0,
    }


def class_scatter(features: Features, labels: Labels) -> dict[Any, float]:
    """The scatter within each class, `sum |x_i - m_c|^2 / n_c` over its rows, over the scatter between all classes.

    Args:
        features, labels: as for `compactness`.

    Returns:
        The ratio by class; empty if the scatter between the classes is rounding noise.

    Raises:
        ValueError: if the shapes don't fit, or if labels are not classes.

    Example:
        >>> class_scatter(torch.tensor([[0.0], [4.0], [2.0], [6.0]]), ["a", "a", "b", "b"])
        {'a': 4.0, 'b': 4.0}
    """
    found = _Scatter.of(features, labels)
    if not found.between > found.noise:
        return {}
    return dict(zip(found.names, (found.scatters / found.between).tolist(), strict=True))


class _Scatter(NamedTuple):
    """The rows `[n, d]` in float64, and the parts of their scatter by class."""

    names: list[Any]
    rows: Tensor
    classes: Tensor  # of the rows
    shares: Tensor  # of the rows that each class has
    scatters: Tensor  # within each class
    deviations: Tensor  # of the rows from their class's mean
    centred: Tensor  # means of the classes, minus that of all rows
    between: float
    noise: float  # the scatter up to which rows count as one point

    @classmethod
    def of(cls, features: Features, labels: Labels) -> Self:
        given = torch.as_tensor(features).detach().cpu()
        names, classes = checked_classes(given, labels)
        rows = given.double()
        counts = torch.bincount(classes, minlength=len(names)).double()

        def class_means(values: Tensor) -> Tensor:
            sums = torch.zeros(len(names), values.shape[1], dtype=torch.float64)
            return sums.index_add_(0, classes, values) / counts[:, None]

        offset = rows.mean(0)  # summed without it, large features would lose digits
        means = class_means(rows - offset) + offset
        deviations, shares = rows - means[classes], counts / max(len(rows), 1)
        centred = means - shares @ means
        scatters = class_means(deviations.square().sum(1, keepdim=True)).flatten()
        between = float(shares @ centred.square().sum(1))
        return cls(names, rows, classes, shares, scatters, deviations, centred, between, rounding_noise(given))


def _nc1(found: _Scatter) -> float:
    """`Tr(Sigma_W pinv(Sigma_B)) / K`, without forming either matrix.

    With the singular value decomposition `U diag(s) V^T` of the class means, each times the root of its share,
    `Sigma_B` is `V diag(s^2) V^T`. So the trace is the mean over the rows of `sum_j (v_j . deviation)^2 / s_j^2`.
    """
    _, scales, directions = torch.linalg.svd(found.shares.sqrt()[:, None] * found.centred, full_matrices=False)
    kept = scales > scales.max() * max(found.centred.shape) * torch.finfo(scales.dtype).eps
    kept[len(found.names) - 1 :] = False  # K centred means span K - 1 directions at most; the rest is rounding
    projections = found.deviations @ directions[kept].T
    return float((projections.square().mean(0) / scales[kept].square()).sum() / len(found.names))


def _silhouette(rows: Tensor, classes: Tensor) -> float:
    """The mean silhouette of rows `[n, d]`; NaN if all are of one class."""
    number = len(classes.unique())
    if not 1 < number < len(rows):  # which scikit-learn refuses
        return 0.0 if number > 1 else float("nan")
    return float(silhouette_score(rows - rows.mean(0), classes))


def _sample(rows: int, size: int) -> Tensor:
    """The sorted indices of at most `size` rows; the same draw every time."""
    keys = torch.rand(rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return keys.topk(min(size, rows), largest=False).indices.sort().values


def rounding_noise(features: Tensor) -> float:
    """The scatter, in squared feature units, up to which features `[n, d]` of this dtype count as one point."""
    eps = torch.finfo(features.dtype if features.is_floating_point() else torch.float64).eps
    return (NOISE_ULPS * eps) ** 2 * float(features.double().square().sum()) / max(len(features), 1)


def checked_classes(features: Tensor, labels: Any) -> tuple[list[Any], Tensor]:
    """Check features and labels; return the classes of a batch, and the index of each row's class, `[n]`."""
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
