"""What a hidden state as features promises."""

import copy

import pytest
import tiny
import torch
from torch import nn
from transformers import AlbertConfig, AlbertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from itra_hf.features import HeadNotFoundError, HiddenState

MODELS = {"bert": (tiny.bert, tiny.texts), "gpt2": (tiny.gpt2, tiny.texts), "vit": (tiny.vit, tiny.images)}
MODELS |= {"resnet": (tiny.resnet, tiny.images)}


def batch_of(rows):
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}


def pooled(state, pooling, mask):
    if state.ndim == 4:
        return state.mean((2, 3))
    rows = []
    for tokens, attended in zip(state, torch.ones(state.shape[:2]) if mask is None else mask, strict=True):
        kept = tokens[attended.bool()]
        rows.append({"first": kept[0], "last": kept[-1], "mean": kept.mean(0)}[pooling])
    return torch.stack(rows)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layer", [0, 1, -1])
@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_reads_the_hidden_state_that_transformers_returns(name, layer, pooling):
    make, rows = MODELS[name]
    model, batch = make().eval(), batch_of(rows(4))
    mask = batch.get("attention_mask")
    if mask is not None:
        mask[0, :2] = 0  # padding on the left
        mask[1, -2:] = 0  # and on the right
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    features = HiddenState.find(model, batch, layer, pooling)
    assert hooks == sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    with features.attached():
        outputs = model(**batch, output_hidden_states=True)
        ours = features.rows(outputs, mask)
    torch.testing.assert_close(ours, pooled(outputs.hidden_states[layer], pooling, mask))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trains_with_a_hidden_state_and_gradient_checkpointing(tmp_path, checkpointing):
    torch.manual_seed(0)
    start, logs = tiny.bert(0.0), []
    for on in (False, checkpointing):
        options = {"feature_layer": 1, "gradient_checkpointing": on, "logging_steps": 1, "learning_rate": 1e-2}
        run = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), **options)
        run.train()
        logs.append(tiny.logs_of(run, "loss"))
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


def test_a_whole_optimizer_step_is_matched_at_a_hidden_state(tmp_path):
    torch.manual_seed(0)
    start, weights = tiny.vit(), []
    for options in (
        {"per_device_train_batch_size": 24},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3, "matching_scope": "optimizer_step"},
    ):
        more = {"optim": "sgd", "learning_rate": 1e-2, "matching_warmup_ratio": 0.0, "max_grad_norm": 0.0}
        model = copy.deepcopy(start)
        model.accepts_loss_kwargs = False  # Trainer then takes the mean over micro-batches, as one batch does
        run = tiny.trainer(
            tmp_path, model, tiny.images(24), feature_layer=1, train_sampling_strategy="sequential", **options, **more
        )
        run.args.learning_rate *= run.accelerator.gradient_accumulation_steps  # transformers 5.2 divides by it twice
        run.train()
        weights.append(tiny.weights(run.model))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_an_index_out_of_range_is_named_with_the_range(tmp_path):
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), feature_layer=5, matching="marginal")
    with pytest.raises(HeadNotFoundError, match=r"3 hidden states.*feature_layer=5.*from -3 to 2"):
        run.train()


def test_a_language_model_can_match_a_hidden_state(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in tiny.texts()]
    run = tiny.trainer(tmp_path, model, rows, feature_layer=-1, matching="marginal")
    run.train()
    assert run.state.log_history[-2]["matching_loss"] > 0


def test_a_module_that_is_called_once_a_layer_is_read_at_that_layers_call():
    sizes = {"embedding_size": 8, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": tiny.NUM_LABELS}
    albert = AlbertForSequenceClassification(AlbertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=4, **sizes))
    batch = batch_of(tiny.texts(4))
    features = HiddenState.find(albert.eval(), batch, 2)
    with features.attached():
        outputs = albert(**batch, output_hidden_states=True)
        rows = features.rows(outputs)
    torch.testing.assert_close(rows, outputs.hidden_states[2].mean(1))
    (expected,) = torch.autograd.grad(outputs.loss, outputs.hidden_states[2])
    with features.attached(), features.cut():
        cut_off = albert(**batch)
        (found,) = torch.autograd.grad(cut_off.loss, features.inputs)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_states_fewer_than_the_places_of_the_mask_are_pooled_over_those_that_are_attended(pooling):
    """A speech model makes one state of many samples, and its mask is of samples."""
    states, mask = torch.randn(3, 5, 4), torch.ones(3, 100)
    mask[0, 60:], mask[1, :40], mask[2, 1:] = 0, 0, 0
    features = HiddenState(nn.Identity(), pooling)
    with features.attached():
        features.modules[0](states)
        rows = features.rows(None, mask)
    kept = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 0, 0, 0]])
    torch.testing.assert_close(rows, pooled(states, pooling, kept))


def test_a_model_that_cannot_be_asked_for_hidden_states_is_refused_with_the_way_out():
    with pytest.raises(HeadNotFoundError, match=r"Mlp cannot be asked for hidden states .*name a module"):
        HiddenState.find(tiny.Mlp(), batch_of(tiny.vectors(4)), 1)
    with pytest.raises(HeadNotFoundError, match=r"BertForSequenceClassification returns a tuple.*return_dict=True"):
        HiddenState.find(tiny.bert(return_dict=False), batch_of(tiny.texts(4)), 1)
