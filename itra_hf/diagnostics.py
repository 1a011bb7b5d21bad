"""What a run did to its features: how compact the classes are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Scatter below this many units in the last place of the features' own size is taken for rounding noise.
NOISE_ULPS = 8


def compactness(features: Tensor | np.ndarray, labels: Tensor | np.ndarray | Sequence[Any]) -> dict[str, float]:
    """How tightly each class lies around its mean, against how far the class means lie apart.

    With n rows x_i of class y_i, the mean m_c of the n_c rows of class c and the mean m of all rows:

        within_scatter  = sum_i |x_i - m_(y_i)|^2 / n       (trace of the within-class scatter matrix, over n)
        between_scatter = sum_c n_c |m_c - m|^2 / n         (trace of the between-class scatter matrix, over n)
        scatter_ratio   = within_scatter / between_scatter

    The two scatters add up to the total scatter. The ratio does not change when the features are shifted, rotated or
    scaled as a whole; smaller means more compact. Classes of few rows look more compact than they are (a class of one
    row has no scatter), so compare models on the same rows only.

    Features that have collapsed to one point are not compact, but useless. A scatter of at most
    `(8 eps)^2 * mean |x_i|^2`, with eps the rounding unit of the features' dtype, counts as rounding noise, and

    - where the total scatter is noise, or a feature is not finite, `scatter_ratio` is NaN;
    - where only the between-class scatter is noise (the class means coincide), it is infinite.

    Give the features in the dtype in which they were computed: after bfloat16 features were converted to float32 their
    rounding noise cannot be told from scatter any more.

    Args:
        features: `[n, d]`, of any floating or integer dtype; computed with in float64.
        labels: `[n]`, the class of each row, as integers, booleans or strings.

    Returns:
        `within_scatter`, `between_scatter` (both in squared feature units) and `scatter_ratio`.

    Raises:
        ValueError: if the shapes don't fit, if labels are not classes, if there are fewer than two classes, or if no
            class has two rows: then nothing is known of the scatter within a class.

    Example:
        >>> features = torch.tensor([[0.0, 1.0], [0.0, -1.0], [4.0, 1.0], [4.0, -1.0]])
        >>> compactness(features, [0, 0, 1, 1])
        {'within_scatter': 1.0, 'between_scatter': 4.0, 'scatter_ratio': 0.25}
        >>> compactness(torch.ones(4, 2), [0, 0, 1, 1])["scatter_ratio"]
        nan
    """
    given = torch.as_tensor(features).detach().cpu()
    classes = _classes(given, labels)
    rows = given.double()
    centred = rows - rows.mean(0)
    counts = torch.bincount(classes).double()
    means = torch.zeros(len(counts), rows.shape[1], dtype=torch.float64).index_add_(0, classes, centred)
    means /= counts[:, None]
    within = float((centred - means[classes]).square().sum() / len(rows))
    between = float((counts[:, None] * means.square()).sum() / len(rows))
    eps = torch.finfo(given.dtype if given.is_floating_point() else torch.float64).eps
    noise = (NOISE_ULPS * eps) ** 2 * float(rows.square().sum() / len(rows))
    ratio = within / between if between > noise else float("inf")
    if not within + between > noise:  # also where a feature is not finite
        ratio = float("nan")
    return {"within_scatter": within, "between_scatter": between, "scatter_ratio": ratio}


def _classes(features: Tensor, labels: Any) -> Tensor:
    """The class of each row as 0, 1, 2, ..., `[n]`, once features and labels are checked."""
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
    names, classes, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ValueError(f"{len(names)} class in {len(values)} rows; compactness compares at least two classes")
    if counts.max() < 2:
        raise ValueError(f"each of the {len(names)} classes has one row; give some class two rows or more")
    return torch.as_tensor(classes)
