"""The metric: offline, in compute_metrics, and combined with others (test_distributed.py has two processes)."""

import evaluate
import numpy as np
import pytest
import tiny
from datasets import Features, Value

from itra_hf.diagnostics import Compactness, compactness


class Accuracy(evaluate.Metric):
    """Of classes, as those of evaluate's own metrics."""

    def _info(self):
        features = Features({"predictions": Value("int64"), "references": Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"accuracy": float(np.mean(np.equal(predictions, references)))}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    return (rng.normal(size=(60, 4)) + labels[:, None]).astype(np.float32), labels


def test_is_the_function_batch_by_batch_or_at_once(rows):
    features, labels = rows
    expected = compactness(features, labels)
    assert Compactness().compute(predictions=features, references=labels) == expected
    metric = Compactness()
    for part in np.array_split(np.arange(60), 7):
        metric.add_batch(predictions=features[part], references=labels[part])
    assert metric.compute() == expected


def test_takes_names_of_classes(rows):
    names = [f"class {label}" for label in rows[1]]
    result = Compactness().compute(predictions=rows[0], references=names)
    assert result["scatter_ratio"] == pytest.approx(compactness(*rows)["scatter_ratio"])


def test_combines_with_a_metric_of_classes(rows):
    features, labels = rows
    metrics = evaluate.combine([Accuracy(), Compactness("features")])
    for part in np.array_split(np.arange(60), 3):
        metrics.add_batch(predictions=features[part].argmax(1), references=labels[part], features=features[part])
    accuracy = float(np.mean(features.argmax(1) == labels))
    assert metrics.compute() == {"accuracy": accuracy, **compactness(features, labels)}


def test_combines_with_metrics_of_the_same_vectors(rows):
    result = evaluate.combine([Compactness(), Compactness()], force_prefix=True)
    result = result.compute(predictions=rows[0], references=rows[1])
    assert result["compactness_0_nc1"] == result["compactness_1_nc1"] == compactness(*rows)["nc1"]


def test_in_compute_metrics_of_a_trainer(tmp_path):
    data = tiny.vectors(48)

    def compute_metrics(prediction):
        return Compactness().compute(predictions=prediction.predictions, references=prediction.label_ids)

    trainer = tiny.trainer(tmp_path, tiny.Mlp(), data, keywords={"compute_metrics": compute_metrics})
    metrics = trainer.evaluate()
    predicted = trainer.predict(data)
    expected = compactness(predicted.predictions, predicted.label_ids)
    assert {name: metrics[f"eval_{name}"] for name in expected} == expected


def test_an_unknown_configuration_is_refused():
    with pytest.raises(ValueError, match="config_name='logits' is unknown; choose one of default, features"):
        Compactness("logits")
