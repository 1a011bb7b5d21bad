"""What HeadInput promises; test_coverage.py holds a model of every kind."""

import copy

import pytest
import tiny
import torch
from torch import nn

from itra_hf.features import HeadNotFoundError, extract_features, find_head

MODELS = {"bert": (tiny.bert, tiny.texts), "gpt2": (tiny.gpt2, tiny.texts), "vit": (tiny.vit, tiny.images)}
MODELS |= {"resnet": (tiny.resnet, tiny.images), "mlp": (tiny.Mlp, tiny.vectors)}


def batch_of(rows):
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}


@pytest.mark.parametrize("name", MODELS)
def test_the_head_makes_the_logits_of_the_rows(name):
    make, rows = MODELS[name]
    model, batch = make().train(), batch_of(rows(6))
    head_input = find_head(model, batch)
    with head_input.attached():
        outputs = model(**batch)
        features = head_input.rows(outputs, batch.get("attention_mask"))
    assert features.ndim == 2
    torch.testing.assert_close(head_input.head(features), outputs["logits"])
    features[:, 0].sum().backward()
    assert next(model.parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_picked_token_is_the_last_one_attended(side):
    model, batch = tiny.gpt2().eval(), batch_of(tiny.texts(4))
    padding = slice(0, 2) if side == "left" else slice(-2, None)
    batch["attention_mask"][0, padding] = 0
    batch["input_ids"][0, padding] = model.config.pad_token_id
    nn.init.zeros_(model.score.weight)  # every token has the same logits: the mask must decide
    head_input = find_head(model, batch)
    with head_input.attached():
        rows = head_input.rows(model(**batch), batch["attention_mask"])
        last = 5 if side == "left" else 3
        assert torch.equal(rows[0], head_input.inputs[0][0, last])
        assert torch.equal(rows[1], head_input.inputs[0][1, 5])


def test_finding_leaves_model_and_random_state_as_they_were():
    model, batch = tiny.resnet().train(), batch_of(tiny.images(4))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    find_head(model, batch)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_draws_random_numbers_in_evaluation_leaves_the_state_alone():
    class Noisy(tiny.Mlp):
        def forward(self, x, labels=None):
            return super().forward(x + torch.rand_like(x), labels)

    state = torch.get_rng_state()
    find_head(Noisy(), batch_of(tiny.vectors(4)))
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    Noisy()
    assert torch.equal(after, torch.get_rng_state())


def test_a_model_without_a_linear_head_is_refused_by_name():
    class Cosine(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, x, labels=None):
            return {"logits": nn.functional.normalize(self.body(x))}

    with pytest.raises(HeadNotFoundError, match="Cosine"):
        find_head(Cosine(), batch_of(tiny.vectors(4)))


@pytest.mark.parametrize("name", MODELS)
def test_a_row_of_nan_hides_no_head(name):
    make, rows = MODELS[name]
    model, batch = make(), batch_of(rows(4))
    head = find_head(model, batch).head
    key = "inputs_embeds" if "input_ids" in batch else next(iter(batch))
    if key == "inputs_embeds":
        batch[key] = model.get_input_embeddings()(batch.pop("input_ids")).detach()
    batch[key][2] = torch.nan
    assert find_head(model, batch).head is head


@pytest.mark.parametrize("first", [True, False])
def test_a_head_that_is_called_again_is_read_where_it_makes_the_logits(first):
    class Twice(tiny.Mlp):
        def forward(self, x, labels=None):
            hidden = self.body(x)
            one = self.head(hidden)
            other = self.head(torch.zeros_like(hidden))
            return {"logits": one if first else other}

    model, batch = Twice(), batch_of(tiny.vectors(4))
    features = extract_features(model, [batch])
    torch.testing.assert_close(features, model.body(batch["x"]) if first else torch.zeros(4, 6))


def test_a_head_that_was_not_reached_is_an_error():
    model, batch = tiny.bert(), batch_of(tiny.texts(4))
    head_input = find_head(model, batch)
    with pytest.raises(RuntimeError, match="not reached"):
        head_input.rows(model(**batch))


def test_extracts_the_features_of_all_batches_in_evaluation_mode():
    model, rows = tiny.vit().train(), tiny.images(10)
    features = extract_features(model, [batch_of(rows[:6]), batch_of(rows[6:])])
    assert features.shape == (10, 16)
    assert model.training
    logits = model.eval()(batch_of(rows)["pixel_values"]).logits
    torch.testing.assert_close(model.classifier(features), logits)
