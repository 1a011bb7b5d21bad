"""The gradients that the cap compares."""

import pytest
import tiny
import torch
from torch import nn

from itra_hf.features import HeadInput
from itra_hf.gradients import TaskGradientError, feature_gradients


def forward(model, rows):
    batch = {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}
    head_input = HeadInput.find(model, batch)
    head_input.attach()
    outputs = model(**batch)
    return head_input, head_input.rows(outputs, batch.get("attention_mask")), outputs, batch["labels"]


@pytest.mark.parametrize(("make", "rows"), [(tiny.bert, tiny.texts), (tiny.gpt2, tiny.texts), (tiny.vit, tiny.images)])
def test_gives_both_gradients_at_the_heads_input_and_none_elsewhere(make, rows):
    model = make()
    head_input, features, outputs, labels = forward(model, rows(6))
    matching = features.square().sum()
    task_gradient, matching_gradient = feature_gradients(
        outputs.loss, matching, head_input, features, outputs, labels, model, scale=4.0
    )
    logits = outputs.logits.detach().requires_grad_()
    (at_logits,) = torch.autograd.grad(4 * nn.functional.cross_entropy(logits, labels), logits)
    expected = (at_logits @ head_input.head.weight).norm()
    torch.testing.assert_close(task_gradient.norm(), expected)
    torch.testing.assert_close(matching_gradient.norm(), (8 * features).norm())
    assert all(parameter.grad is None for parameter in model.parameters())


def cut(outputs):
    """Outputs as a compiled graph gives them: nothing inside can be differentiated from outside."""
    return {"loss": outputs["loss"].detach().requires_grad_(), "logits": outputs["logits"].detach().requires_grad_()}


@pytest.mark.parametrize("ranks", [1, 2])
def test_out_of_reach_the_gradient_comes_from_the_logits(ranks):
    model = tiny.bert(0.0)
    head_input, features, outputs, labels = forward(model, tiny.texts(6))
    (expected,) = torch.autograd.grad(ranks * outputs.loss, head_input.full, retain_graph=True)
    compiled = cut(outputs)
    gradient, _ = feature_gradients(
        ranks * compiled["loss"], features.sum(), head_input, features, compiled, labels, model
    )
    torch.testing.assert_close(gradient, expected)


def test_a_loss_of_the_models_own_out_of_reach_is_an_error():
    model = tiny.bert(0.0)
    head_input, features, outputs, labels = forward(model, tiny.texts(6))
    compiled = cut(outputs)
    with pytest.raises(TaskGradientError, match=r"BertForSequenceClassification.*matching_max_grad_ratio=None"):
        feature_gradients(1.37 * compiled["loss"], features.sum(), head_input, features, compiled, labels, model)


def test_frozen_features_have_no_gradient():
    model = tiny.bert()
    model.bert.requires_grad_(False)
    head_input, features, outputs, labels = forward(model, tiny.texts(6))
    assert feature_gradients(outputs.loss, features.sum(), head_input, features, outputs, labels, model) == (None, None)
