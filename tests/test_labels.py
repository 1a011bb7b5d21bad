"""How the labels of a batch are read."""

import pytest
import tiny
import torch
from torch import nn
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from itra_hf.labels import label_kind, label_name


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


@pytest.mark.parametrize(
    ("labels", "width", "kind"),
    [
        ([[2], [0]], 3, "classes"),
        ([[2], [0]], 1, "classes"),
        ([[1, 0, 1], [0, 1, 1]], 3, "vectors"),
        ([[1, 0, 1], [0, 1, 1]], 4, "tokens"),
        ([[1, 0, 1], [0, 1, 1]], None, "tokens"),
        ([[0, 1, -100]], 4, "tokens"),
    ],
)
def test_integers_are_vectors_where_there_are_as_many_logits_and_classes_where_there_is_one(labels, width, kind):
    assert label_kind(torch.tensor(labels), tiny.bert(), width) == kind
