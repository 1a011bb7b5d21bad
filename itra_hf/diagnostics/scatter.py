"""How compact the classes are: their scatter, within against between, of rows at once or batch by batch."""

from collections.abc import Sequence
from typing import Any

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
    stream = CompactnessStream(sample_size=sample_size)
    classes = stream.update(features, labels)
    return stream.measures(torch.as_tensor(features).detach().cpu().double(), classes)


class CompactnessStream:
    """`compactness` of features that come batch by batch, any number of them, in a memory that does not grow.

    It holds the count, the mean and the scatter of each class, `O(K d)`, updated by the rule of Chan, Golub and
    LeVeque (1983), and a random sample of at most `sample_size` rows. The scatters and the separation are exact. The
    silhouette and the within-class part of `nc1` are those of the sample: exact as long as it holds every row.

    Args:
        sample_size: rows of the sample.
        seed: of the draw, which leaves the global random state alone.

    Example:
        >>> stream = CompactnessStream()
        >>> for batch in torch.tensor([[[0.0], [4.0]], [[2.0], [6.0]]]):
        ...     _ = stream.update(batch, ["a", "b"])
        >>> stream.compute()["scatter_ratio"], stream.class_scatter()
        (0.25, {'a': 1.0, 'b': 1.0})
    """

    def __init__(self, *, sample_size: int = 2000, seed: int = 0) -> None:
        if sample_size < 1:
            raise ValueError(f"sample_size={sample_size} must be at least 1")
        self.sample_size = sample_size
        self._generator = torch.Generator().manual_seed(seed)
        self._classes: dict[Any, int] = {}
        self._squares, self._eps = 0.0, 0.0
        self._counts = self._scatters = torch.zeros(0, dtype=torch.float64)
        self._means = torch.zeros(0, 0, dtype=torch.float64)
        self._sample = (torch.zeros(0), torch.zeros(0), torch.zeros(0))  # random keys, rows, classes

    def update(self, features: Features, labels: Labels) -> Tensor:
        """Take in a batch, `[n, d]` and `[n]`; gives the classes of its rows as 0, 1, 2, ... in order of appearance.

        Raises:
            ValueError: if the shapes don't fit, or if labels are not classes.
        """
        given = torch.as_tensor(features).detach().cpu()
        names, inverse = checked_classes(given, labels)
        rows = given.double()
        if not self._classes:
            self._means = torch.zeros(0, rows.shape[1], dtype=torch.float64)
        elif self._means.shape[1] != rows.shape[1]:
            raise ValueError(f"features of {rows.shape[1]} dimensions do not fit those before, {self._means.shape[1]}")
        self._eps = max(self._eps, rounding_unit(given))
        self._squares += float(rows.square().sum())
        known = [self._classes.setdefault(name, len(self._classes)) for name in names]
        classes = torch.tensor(known, dtype=torch.long)[inverse]
        self._merge(rows, classes)
        self._draw(given, classes)
        return classes

    def compute(self) -> dict[str, float]:
        """The measures of all rows so far, under the names of `compactness`.

        Raises:
            ValueError: if there are fewer than two classes, or if no class has two rows.
        """
        _, rows, classes = self._sample
        return self.measures(rows.double(), classes)

    def class_scatter(self, *, relative: bool = False) -> dict[Any, float]:
        """The scatter within each class, `sum |x_i - m_c|^2 / n_c` over its rows, in squared feature units.

        With `relative` it is over the scatter between the classes; empty where that is rounding noise.
        """
        _, _, between, noise = self._between()
        if relative and not between > noise:
            return {}
        scatters = self._scatters / self._counts / (between if relative else 1.0)
        return dict(zip(self._classes, scatters.tolist(), strict=True))

    def measures(self, rows: Tensor, classes: Tensor) -> dict[str, float]:
        """The measures of all rows so far, with `nc1` taken over these rows, `[r, d]`, of classes `[r]`."""
        if len(self._classes) < 2:
            number = int(self._counts.sum())
            raise ValueError(f"{len(self._classes)} class in {number} rows; compactness compares at least two classes")
        if self._counts.max() < 2:
            raise ValueError(f"each of the {len(self._classes)} classes has one row; give some class two rows or more")
        shares, centred, between, noise = self._between()
        within = float(self._scatters.sum() / self._counts.sum())
        scatters = {"within_scatter": within, "between_scatter": between}
        if not within + between > noise:  # also where a feature is not finite
            ratios = dict.fromkeys(("scatter_ratio", "nc1", "silhouette", "class_mean_separation"), float("nan"))
            return {**scatters, **ratios, "collapsed": float(within + between <= noise)}
        _, sample, sample_classes = self._sample
        return {
            **scatters,
            "scatter_ratio": within / between if between > noise else float("inf"),
            "nc1": nc1(rows - self._means[classes], centred, shares) if between > noise else float("inf"),
            "silhouette": silhouette(sample.double(), sample_classes),
            "class_mean_separation": class_mean_separation(centred, within),
            "collapsed": 0.0,
        }

    def _between(self) -> tuple[Tensor, Tensor, float, float]:
        """The classes' shares of the rows, their centred means, the scatter of these, and what is rounding noise."""
        total = self._counts.sum()
        shares = self._counts / total
        centred = self._means - shares @ self._means
        noise = rounding_noise(self._eps, self._squares / max(float(total), 1.0))
        return shares, centred, float(shares @ centred.square().sum(1)), noise

    def _merge(self, rows: Tensor, classes: Tensor) -> None:
        """Merge the counts, means and scatters of a batch into those of the rows before."""
        new = len(self._classes) - len(self._counts)
        before, scatters = torch.cat([self._counts, torch.zeros(new)]), torch.cat([self._scatters, torch.zeros(new)])
        means = torch.cat([self._means, torch.zeros(new, rows.shape[1])])
        offset = rows.mean(0)
        counts = torch.bincount(classes, minlength=len(before)).double()
        sums = torch.zeros_like(means).index_add_(0, classes, rows - offset)
        batch_means = sums / counts.clamp(min=1)[:, None] + offset
        deviations = (rows - batch_means[classes]).square().sum(1)
        share = counts / (before + counts)
        shift = torch.where(counts[:, None] > 0, batch_means - means, 0.0)
        self._counts, self._means = before + counts, means + shift * share[:, None]
        self._scatters = scatters.index_add(0, classes, deviations) + shift.square().sum(1) * before * share

    def _draw(self, rows: Tensor, classes: Tensor) -> None:
        """Keep a random sample: every row gets a random key, and those of the smallest keys stay."""
        keys = torch.rand(len(rows), generator=self._generator, dtype=torch.float64)
        if len(self._sample[0]):
            pairs = zip(self._sample, (keys, rows, classes), strict=True)
            keys, rows, classes = (torch.cat(pair) for pair in pairs)
        if len(keys) > self.sample_size:
            kept = keys.topk(self.sample_size, largest=False).indices.sort().values
            keys, rows, classes = keys[kept], rows[kept], classes[kept]
        self._sample = (keys, rows, classes)


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
