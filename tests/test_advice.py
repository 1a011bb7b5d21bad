"""What a message advises can be done: each model below gets a message, follows it, and is matched."""

import logging

import pytest
import tiny
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

LOGGED = {"logging_steps": 1, "matching_warmup_ratio": 0.0}


class Embedder(nn.Module):
    """As models of texts for search: no logits, no hidden states, and a loss of pairs without labels."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh())

    def forward(self, x, **kwargs):
        embedded = self.body(x)
        return {"loss": -(embedded[0::2] * embedded[1::2]).sum(1).mean(), "embedded": embedded}


class Tagger(nn.Module):
    """One label for each token, and no hidden states."""

    def __init__(self):
        super().__init__()
        self.embed, self.body, self.classifier = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.classifier(self.body(self.embed(input_ids)).tanh())
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


class Nameless(tiny.Mlp):
    """Returns a tuple."""

    def forward(self, x, labels=None, output_hidden_states=False):
        return tuple(super().forward(x, labels).values())


class Without(tiny.Mlp):
    """May be asked for hidden states, and has none."""

    def forward(self, x, labels=None, output_hidden_states=False):
        return super().forward(x, labels) | {"hidden_states": ()}


def language_model():
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))


def unlabelled():
    return [{"x": row["x"]} for row in tiny.vectors()]


def by_the_token():
    return [row | {"labels": row["input_ids"] % 3} for row in tiny.texts()]


MARGINAL, CONDITIONAL, LAST = {"matching": "marginal"}, {"matching": "class_conditional"}, {"feature_layer": -1}
BODY, HEAD, CLASSIFIER, LOGITS = ({"feature_layer": name} for name in ("body.2", ".head", "classifier", "lm_head"))
NAMED = "name a module by feature_layer"
CASES = {
    "no labels, no head": (Embedder, unlabelled, {}, "a module that is named by feature_layer", BODY | MARGINAL),
    "no logits": (Embedder, unlabelled, MARGINAL, "it could be 'body.2'", BODY),
    "cannot be asked": (tiny.Mlp, tiny.vectors, MARGINAL | LAST, NAMED, HEAD),
    "no hidden states, no head": (Embedder, unlabelled, MARGINAL | LAST, NAMED, BODY),
    "no hidden states": (Without, tiny.vectors, CONDITIONAL | LAST, NAMED, HEAD),
    "no names": (Nameless, tiny.vectors, MARGINAL | LAST, NAMED, HEAD),
    "no classifier": (language_model, by_the_token, {}, "matching='marginal' where a row has no", LOGITS | MARGINAL),
    "labels by the token": (Tagger, by_the_token, CONDITIONAL | CLASSIFIER, f"{NAMED}, and take", MARGINAL),
}


@pytest.mark.parametrize(("make", "rows", "options", "advice", "follows"), CASES.values(), ids=CASES)
def test_what_a_message_advises_leads_to_a_run_that_is_matched(tmp_path, caplog, make, rows, options, advice, follows):
    said = ""
    try:
        with caplog.at_level(logging.WARNING, "itra_hf"):
            tiny.trainer(tmp_path, make(), rows(), **LOGGED, **options).train()
        said = caplog.text
    except ValueError as error:
        said = str(error)
    assert advice in said
    assert "feature_layer='head'" not in said
    assert "hidden state (" not in said
    run = tiny.trainer(tmp_path, make(), rows(), **LOGGED, **(options | follows))
    run.train()
    assert any(tiny.logs_of(run, "matching_loss"))


def test_a_scope_that_a_compiled_model_cannot_have_is_not_advised(tmp_path):
    options = {"per_device_train_batch_size": 1, "matching": "marginal"}
    with pytest.raises(ValueError, match="accumulate gradients with matching_scope='optimizer_step'"):
        tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), **options)
    with pytest.raises(ValueError, match="take at least 2 for each device, or take matching='none'"):
        tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), torch_compile=True, **options)
