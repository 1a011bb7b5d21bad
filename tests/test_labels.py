"""How labels are read."""

import datasets
import numpy as np
import pytest
import tiny
import torch
from torch import nn
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from itra_hf.labels import class_column, label_column, label_kind, label_name


@pytest.mark.parametrize(
    ("config", "labels", "kind", "problem_type"),
    [
        ({}, torch.tensor([0, 2]), "classes", "single_label_classification"),
        ({"num_labels": 1}, torch.tensor([0.5, 2.0]), "targets", "regression"),
        ({"num_labels": 1}, torch.tensor([0, 2]), "targets", "regression"),
        ({}, torch.tensor([[1.0, 0, 1], [0, 1, 1]]), "vectors", "multi_label_classification"),
        ({"problem_type": "regression"}, torch.rand(2, 3), "targets", "regression"),
    ],
)
def test_labels_are_read_as_transformers_reads_them(config, labels, kind, problem_type):
    model = tiny.bert(**config)
    assert label_kind(labels, model) == kind
    ForSequenceClassificationLoss(
        labels.float() if kind == "targets" else labels, torch.rand(2, model.num_labels), model.config
    )
    assert model.config.problem_type == problem_type


@pytest.mark.parametrize(
    ("model", "labels", "kind"),
    [
        (nn.Linear(4, 1), torch.rand(5), "targets"),
        (nn.Linear(4, 1), torch.rand(5, 1), "targets"),
        (nn.Linear(4, 3), torch.rand(5, 3), "vectors"),
        (nn.Linear(4, 3), torch.tensor([2, 0]), "classes"),
        (tiny.bert(problem_type="multi_label_classification"), torch.tensor([[1, 0, 1]]), "vectors"),
    ],
)
def test_labels_whose_kind_the_config_leaves_open_are_read_by_their_shape(model, labels, kind):
    assert label_kind(labels, model) == kind


@pytest.mark.parametrize(
    ("names", "name"),
    [(None, "labels"), ([], "labels"), (["label_weight", "labels"], "labels"), (["start", "end"], "start")],
)
def test_a_batchs_labels_are_called_labels_where_trainer_knows_that_name(names, name):
    assert label_name(names) == name


@pytest.mark.parametrize("name", ["label", "labels", "label_ids"])
def test_the_label_column_is_found_under_every_usual_name(name):
    rows = [{"text": "a", name: 1}, {"text": "b", name: 0}]
    for dataset in (rows, datasets.Dataset.from_list(rows)):
        assert label_column(dataset).tolist() == [1, 0]
        assert class_column(dataset, tiny.bert()).tolist() == [1, 0]


def test_reading_labels_runs_no_transform():
    def explode(batch):
        raise AssertionError("the transform ran")

    dataset = datasets.Dataset.from_dict({"labels": [1, 0], "image": [0, 0]}).with_transform(explode)
    assert label_column(dataset).tolist() == [1, 0]


def test_labels_by_the_token_are_told_apart():
    assert label_kind(torch.tensor([[0, 1, -100]]), tiny.bert()) == "tokens"


def test_unequal_numbers_of_labels_are_no_column():
    rows = [{"labels": [0, 1]}, {"labels": [1]}]
    for dataset in (rows, datasets.Dataset.from_list(rows)):
        assert label_column(dataset) is None


def test_rows_without_a_class_have_no_class_column():
    bert = tiny.bert()
    for labels in ([0.5, 1.5], [[1, 0, 1], [0, 1, 1]], ["yes", "no"]):
        assert class_column([{"labels": label} for label in labels], bert) is None
    assert class_column([{"x": 1}], bert) is None
    assert class_column([{"labels": 1}, {"x": 1}], bert) is None
    assert class_column(torch.utils.data.TensorDataset(torch.zeros(2)), bert) is None
    assert class_column([{"labels": 1}, {"labels": 2}], tiny.bert(num_labels=1)) is None
    assert isinstance(label_column([{"labels": 1.5}]), np.ndarray)
