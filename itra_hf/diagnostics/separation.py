"""The parts of `compactness` that need more than class means: NC1, the silhouette, the nearest class means."""

import torch
from torch import Tensor

ROWS_AT_ONCE = 256


def nc1(deviations: Tensor, centred_means: Tensor, shares: Tensor) -> float:
    """`Tr(Sigma_W pinv(Sigma_B)) / K`, without forming either matrix.

    With the singular value decomposition `U diag(s) V^T` of the class means, each times the root of its share,
    `Sigma_B` is `V diag(s^2) V^T`; so the trace is the mean over the rows of `sum_j (v_j . deviation)^2 / s_j^2`.

    Args:
        deviations: `[n, d]`, each row minus its class mean.
        centred_means: `[K, d]`, each class mean minus the mean of all rows.
        shares: `[K]`, of the rows that are of each class.
    """
    _, scales, directions = torch.linalg.svd(shares.sqrt()[:, None] * centred_means, full_matrices=False)
    tolerance = scales.max() * max(centred_means.shape) * torch.finfo(scales.dtype).eps
    kept = scales > tolerance
    kept[len(shares) - 1 :] = False  # K centred means span K - 1 directions at most; the rest is rounding
    projections = deviations @ directions[kept].T
    return float((projections.square().mean(0) / scales[kept].square()).sum() / len(shares))


def silhouette(rows: Tensor, classes: Tensor) -> float:
    """The mean silhouette of rows `[n, d]` of classes `[n]`, as scikit-learn's; NaN if all are of one class."""
    present, classes, counts = classes.unique(return_inverse=True, return_counts=True)
    if len(present) < 2:
        return float("nan")
    rows = rows - rows.mean(0)
    members = torch.nn.functional.one_hot(classes).double()
    each, own = torch.arange(len(rows)), counts[classes]
    sums = torch.cat([_distances(rows, part) @ members for part in each.split(ROWS_AT_ONCE)])
    inner = sums[each, classes] / (own - 1).clamp(min=1)
    means = sums / counts
    means[each, classes] = float("inf")
    outer = means.min(1).values
    largest = torch.maximum(inner, outer)
    values = torch.where((own > 1) & (largest > 0), (outer - inner) / largest, 0.0)
    return float(values.mean())


def _distances(rows: Tensor, part: Tensor) -> Tensor:
    """From the rows of some indices to all rows; to themselves exactly 0."""
    distances = torch.cdist(rows[part], rows)
    distances[torch.arange(len(part)), part] = 0
    return distances


def class_mean_separation(means: Tensor, within_scatter: float) -> float:
    """The distance of the two nearest class means, `[K, d]`, in units of the rows' root mean squared deviation."""
    nearest = float("inf")
    for start in range(0, len(means) - 1, ROWS_AT_ONCE):
        part = means[start : start + ROWS_AT_ONCE]
        distances = torch.cdist(part, means[start:], compute_mode="donot_use_mm_for_euclid_dist")
        later = torch.ones_like(distances, dtype=torch.bool).triu(1)
        nearest = min(nearest, float(distances[later].min()))
    return nearest / within_scatter**0.5 if within_scatter > 0 else float("inf")
