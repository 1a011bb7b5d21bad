"""Compactness as a metric of the library evaluate, which needs no internet."""

from typing import Any

import numpy as np
from datasets import Features, Sequence, Value
from evaluate import Metric, MetricInfo

from itra_hf.diagnostics.scatter import compactness


class Compactness(Metric):
    """`compactness` as an `evaluate.Metric`: made without a download, for `compute_metrics` and `evaluate.combine`.

    The vectors are the metric's `predictions`. `Compactness("features")` calls them `features` instead, so that it
    combines with metrics whose predictions are classes. In `compute_metrics` the predictions are the logits, unless
    `preprocess_logits_for_metrics` puts something else in their place.

    The other parameters are evaluate's. `num_process`, `process_id` and `experiment_id` compute the metric over several
    processes that share a file system.

    Args:
        config_name: `"default"` or `"features"`.

    Raises:
        ValueError: for another `config_name`.

    Example:
        >>> rows, labels = [[0.0, 1.0], [0.0, -1.0], [4.0, 1.0], [4.0, -1.0]], [0, 0, 1, 1]
        >>> Compactness().compute(predictions=rows, references=labels)["scatter_ratio"]
        0.25
        >>> metric = Compactness("features")
        >>> metric.add_batch(features=rows, references=labels)
        >>> metric.compute()["scatter_ratio"]
        0.25

        Of combined metrics each takes its own columns from `add_batch`. `compute` would give all of them to each.

        >>> import evaluate
        >>> metrics = evaluate.combine([Compactness("features"), Compactness()])  # of features and of logits
        >>> metrics.add_batch(features=rows, predictions=[[0.0], [2.0], [4.0], [6.0]], references=labels)
        >>> scores = metrics.compute()
        >>> scores["compactness_0_scatter_ratio"], scores["compactness_1_scatter_ratio"]
        (0.25, 0.25)
    """

    def _info(self) -> MetricInfo:
        names = {"default": "predictions", "features": "features"}
        if self.config_name not in names:
            raise ValueError(f"config_name={self.config_name!r} is unknown; choose one of {', '.join(names)}")
        vectors, kinds = names[self.config_name], ("int64", "string")
        return MetricInfo(
            description="How tightly the rows of each class lie around their mean.",
            citation="Papyan, Han and Donoho 2020, arXiv 2008.08186",
            inputs_description=f"{vectors}: features `[n, d]`. references: classes `[n]`, integers or strings.",
            features=[Features({vectors: Sequence(Value("float32")), "references": Value(kind)}) for kind in kinds],
            reference_urls=["https://arxiv.org/abs/2211.13332", "https://arxiv.org/abs/2008.08186"],
        )

    def _compute(self, references: Any, **vectors: Any) -> dict[str, float]:
        (rows,) = vectors.values()
        return compactness(np.asarray(rows, dtype=np.float32), references)
