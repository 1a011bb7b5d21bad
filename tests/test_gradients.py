"""The gradients that the cap compares."""

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_model
from torch import nn

from itra_hf.features import HeadInput
from itra_hf.gradients import TaskGradientError, cap_measures, squared_norm, task_squared_norm


def forward(model, rows):
    batch = {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}
    head_input = HeadInput.find(model, batch)
    head_input.attach()
    outputs = model(**batch)
    return head_input, head_input.rows(outputs, batch.get("attention_mask")), outputs, batch["labels"]


@pytest.mark.parametrize(("make", "rows"), [(tiny.bert, tiny.texts), (tiny.gpt2, tiny.texts), (tiny.vit, tiny.images)])
def test_gives_both_norms_at_the_heads_input_and_no_gradient_elsewhere(make, rows):
    model = make()
    head_input, features, outputs, labels = forward(model, rows(6))
    norms = cap_measures(outputs.loss, features.square().sum(), head_input, features, outputs, labels, model, scale=4.0)
    logits = outputs.logits.detach().requires_grad_()
    (at_logits,) = torch.autograd.grad(4 * nn.functional.cross_entropy(logits, labels), logits)
    expected = torch.stack([at_logits @ head_input.head.weight, 8 * features]).square().sum((1, 2))
    torch.testing.assert_close(norms[:2], expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_norms_do_not_overflow():
    rows = torch.tensor([300.0, 400.0], dtype=torch.float16, requires_grad=True)
    assert squared_norm((rows * rows.detach()).sum(), [rows]) == 250000


def cut(outputs):
    """Outputs as a compiled graph gives them: nothing inside can be differentiated from outside."""
    return {"loss": outputs["loss"].detach().requires_grad_(), "logits": outputs["logits"].detach().requires_grad_()}


def eurobert():
    return tiny_model("eurobert", "EuroBertForSequenceClassification", num_labels=tiny.NUM_LABELS)


def lora(dropout=0.0):
    adapters = LoraConfig(target_modules=["query", "classifier"], lora_dropout=dropout, init_lora_weights=False)
    return get_peft_model(tiny.bert(0.0), adapters)


MODELS = {"row": lambda: tiny.bert(0.0), "picked": tiny.gpt2, "mean": eurobert, "lora": lora}


@pytest.mark.parametrize(("ranks", "scale"), [(1, 1.0), (2, 1.0), (1, 8.0)])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_out_of_reach_the_gradient_comes_from_the_logits(make, ranks, scale):
    if make is eurobert:
        tiny.needs_transformers("5.3", "it has no EuroBERT")
    model, rows = make(), tiny.texts(6)
    rows[0]["attention_mask"] = torch.tensor([1, 1, 1, 1, 0, 0])
    head_input, features, outputs, labels = forward(model, rows)
    expected = squared_norm(scale * ranks * outputs.loss, head_input.inputs)
    compiled = cut(outputs)
    norm = task_squared_norm(ranks * compiled["loss"], head_input, features, compiled, labels, model, scale)
    torch.testing.assert_close(norm, expected)


def test_out_of_reach_the_dropout_of_an_adapter_is_left_out_and_draws_nothing():
    model = lora(dropout=0.9)
    head_input, features, outputs, labels = forward(model, tiny.texts(6))
    compiled, state = cut(outputs), torch.get_rng_state()
    norm = task_squared_norm(compiled["loss"], head_input, features, compiled, labels, model)
    assert torch.equal(state, torch.get_rng_state())
    logits = outputs.logits.detach().requires_grad_()
    (at_logits,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels), logits)
    model.merge_adapter()  # adds the adapters, without dropout, to the weights
    torch.testing.assert_close(norm, (at_logits @ head_input.head.weight).square().sum())


@pytest.mark.parametrize("factor", [1, 2, 0.25])
def test_closed_outputs_are_not_passed(factor):
    """DeepSpeed's hooks on what a model returns take a gradient that passes there for the step's own."""
    model = tiny.bert(0.0)
    head_input, features, outputs, labels = forward(model, tiny.texts(6))
    expected = squared_norm(factor * outputs.loss, head_input.inputs)
    head_input.outputs_are_closed = True
    for output in (outputs.loss, outputs.logits):
        output.register_hook(lambda gradient: 1 / 0)
    torch.testing.assert_close(
        task_squared_norm(factor * outputs.loss, head_input, features, outputs, labels, model), expected
    )


def test_a_loss_of_the_models_own_out_of_reach_is_an_error():
    model = tiny.bert(0.0)
    head_input, features, outputs, labels = forward(model, tiny.texts(6))
    compiled = cut(outputs)
    with pytest.raises(TaskGradientError, match=r"BertForSequenceClassification.*matching_max_grad_ratio=None"):
        task_squared_norm(1.37 * compiled["loss"], head_input, features, compiled, labels, model)


def test_frozen_features_have_no_gradient():
    model = tiny.bert()
    model.bert.requires_grad_(False)
    model.classifier.requires_grad_(True)
    head_input, features, outputs, labels = forward(model, tiny.texts(6))
    norms = cap_measures(outputs.loss, features.sum(), head_input, features, outputs, labels, model, 1.0)
    assert norms.tolist() == [0, 0, 0, 0]
