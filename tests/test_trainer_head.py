"""The features are the input of the layer that makes the logits; where that is open, the user is asked."""

import copy
import logging
from types import SimpleNamespace

import pytest
import reference
import tiny
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMultipleChoice, PreTrainedConfig, PreTrainedModel, Trainer

from itra_hf import ITRATrainer
from itra_hf.features import AmbiguousHeadError, HeadNotFoundError, module_named, watch

STILL = {"learning_rate": 0.0, "logging_steps": 1, "max_steps": 2}


def matched_at(tmp_path, model, place, data=None, pool=lambda rows: rows, **changes):
    """The logged matching losses of a run that stands still, and those by hand of what a module is given."""
    given, labels, found = [], [], []

    def note(module, args, kwargs):
        if torch.is_grad_enabled():
            given.append(pool(next(iter((*args, *kwargs.values()))).detach()))

    def note_labels(module, args, kwargs):
        labels.append(kwargs["labels"])

    handles = [
        model.get_submodule(place).register_forward_pre_hook(note, with_kwargs=True),
        model.register_forward_pre_hook(note_labels, with_kwargs=True),
    ]
    run = tiny.trainer(tmp_path, model, data or tiny.vectors(), **(STILL | changes))
    run.train()
    for handle in handles:
        handle.remove()
    for rows, classes in zip(given, labels, strict=True):
        s, t = reference.dealt(classes)
        found.append(float(reference.class_conditional(rows[s].double(), rows[t].double(), classes[s], classes[t])))
    return tiny.logs_of(run, "matching_loss"), pytest.approx(found, rel=1e-4)


class Auxiliary(tiny.Mlp):
    """A layer with as many outputs as its config has labels, which is the backbone's; the head has three."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(num_labels=2)
        self.auxiliary = nn.Linear(4, 2)

    def forward(self, x, labels=None):
        outputs = super().forward(x, labels)
        return outputs | {"loss": outputs["loss"] + self.auxiliary(x).square().mean()}


class Outputs(tiny.Mlp):
    """Returns other tensors beside its logits, before them."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.config = kind, SimpleNamespace(num_labels=tiny.NUM_LABELS)
        self.projection, self.other = nn.Linear(4, 5), nn.Linear(6, 2)

    def forward(self, x, labels=None):
        logits = self.head(self.body(x))
        loss = cross_entropy(logits, labels)
        if self.kind == "by name":  # a second one has as many columns
            return {"loss": loss, "others": self.projection(x)[:, :3], "logits": logits}
        if self.kind == "by width":
            return {"loss": loss, "projected": self.projection(x), "scores": logits}
        return loss, self.projection(x), logits


class Embeds(tiny.Mlp):
    """Returns its features in evaluation mode."""

    def forward(self, x, labels=None):
        return super().forward(x, labels) if self.training else {"embeddings": self.body(x)}


class Zeros(tiny.Mlp):
    """Two layers of as many outputs that begin as zeros."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(4, tiny.NUM_LABELS)
        for layer in (self.head, self.other):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x, labels=None):
        outputs = super().forward(x, labels)
        return outputs | {"loss": outputs["loss"] + (self.other(x) - 1).square().mean()}


class Twins(tiny.Mlp):
    """Two heads that are and stay equal."""

    def __init__(self):
        super().__init__()
        self.twin = copy.deepcopy(self.head)

    def forward(self, x, labels=None):
        outputs = super().forward(x, labels)
        return outputs | {"loss": outputs["loss"] + cross_entropy(self.twin(self.body(x)), labels)}


@pytest.mark.parametrize("kind", ["auxiliary", "by name", "by width", "tuple"])
def test_another_layer_or_output_does_not_hide_the_true_head(tmp_path, kind):
    model = Auxiliary() if kind == "auxiliary" else Outputs(kind)
    ours, by_hand = matched_at(tmp_path, model, "head")
    assert ours == by_hand
    assert len(ours) == 2


def test_a_model_that_returns_embeddings_in_evaluation_mode_is_matched(tmp_path):
    ours, by_hand = matched_at(tmp_path, Embeds(), "head")
    assert ours == by_hand


def test_layers_that_begin_as_zeros_are_told_apart_once_they_differ(tmp_path, caplog):
    run = tiny.trainer(tmp_path, Zeros(), tiny.vectors(), logging_steps=1, max_steps=4, optim="sgd")
    with caplog.at_level(logging.WARNING, "itra_hf"):
        run.train()
    assert [log["step"] for log in run.state.log_history if "matching_loss" in log] == [2, 3, 4]
    assert "'head'" in run.matching_line
    assert "several layers" not in caplog.text


def test_heads_that_stay_equal_are_a_question(tmp_path, caplog):
    start, runs = Twins(), []
    with caplog.at_level(logging.WARNING, "itra_hf"):
        for cls in (Trainer, ITRATrainer):
            runs.append(
                tiny.trainer(tmp_path, copy.deepcopy(start), tiny.vectors(), cls, pairing="random", max_steps=8)
            )
            runs[-1].train()
    assert torch.equal(*(tiny.weights(run.model) for run in runs))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert (
        "several layers whose outputs are its logits ('twin', '.head'); name the classifier by feature_layer" in told[0]
    )
    with pytest.raises(AmbiguousHeadError, match=r"'twin', '\.head'"):
        tiny.trainer(tmp_path, Twins(), tiny.vectors(), matching="joint", max_steps=8).train()
    ours, by_hand = matched_at(tmp_path, Twins(), "twin", feature_layer="twin")
    assert ours == by_hand


class Cosine(tiny.Mlp):
    def forward(self, x, labels=None):
        logits = 5 * nn.functional.normalize(self.head(self.body(x)))
        return {"loss": cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize(("layer", "place"), [(".head", "head"), ("body.1", "body.1")])
def test_a_classifier_that_is_not_found_is_settled_by_its_name(tmp_path, layer, place):
    with pytest.raises(HeadNotFoundError, match=r"no linear layer .*feature_layer \(it could be '.head'\)"):
        tiny.trainer(tmp_path, Cosine(), tiny.vectors(), matching="class_conditional").train()
    ours, by_hand = matched_at(tmp_path, Cosine(), place, feature_layer=layer)
    assert ours == by_hand


class Squeeze(nn.Module):
    """A 1 x 1 convolution as the head, and the mean over its places after it."""

    def __init__(self):
        super().__init__()
        self.body, self.classifier = nn.Conv2d(1, 6, 3), nn.Conv2d(6, tiny.NUM_LABELS, 1)

    def forward(self, pixel_values, labels=None):
        logits = self.classifier(self.body(pixel_values).tanh()).mean((2, 3))
        return {"loss": cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("scope", ["micro_batch", "optimizer_step"])
def test_a_convolution_is_settled_by_its_name(tmp_path, scope):
    options = {"feature_layer": "classifier", "matching_scope": scope}
    pool = lambda rows: rows.mean((2, 3))  # noqa: E731
    ours, by_hand = matched_at(tmp_path, Squeeze(), "classifier", tiny.images(), pool, **options)
    assert ours == by_hand
    if scope == "optimizer_step":
        run = tiny.trainer(tmp_path, Squeeze(), tiny.images(), gradient_accumulation_steps=2, **options)
        run.train()
        assert tiny.logs_of(run, "matching_loss")


@pytest.mark.parametrize(("pooling", "pool"), [("mean", lambda h: h.mean(1)), ("last", lambda h: h[:, -1])])
def test_any_module_is_settled_by_its_name(tmp_path, pooling, pool):
    options = {"feature_layer": "encoder.layer.1.output", "feature_pooling": pooling}
    place = "bert.encoder.layer.1.output"
    ours, by_hand = matched_at(tmp_path, tiny.bert(0.0), place, tiny.texts(), pool, **options)
    assert ours == by_hand


def test_a_token_that_the_model_picks_is_the_feature_of_a_named_head(tmp_path):
    ours, by_hand = matched_at(tmp_path, tiny.gpt2(), "score", tiny.texts(), lambda h: h[:, -1], feature_layer="score")
    assert ours == by_hand


def test_a_module_that_is_given_no_features_is_an_error(tmp_path):
    for layer, what in (("bert.embeddings.word_embeddings", r"torch.int64 of shape \(8, 6\)"), ("dropout.x", "no mod")):
        with pytest.raises(HeadNotFoundError, match=what):
            tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), feature_layer=layer).train()


def test_multiple_choice_is_told_apart_from_a_model_without_a_head(tmp_path, caplog):
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    start = BertForMultipleChoice(BertConfig(**sizes, intermediate_size=32))
    rows = [{"input_ids": [[1 + row % 7, 2], [3, 4], [5, 6]], "labels": row % 3} for row in range(32)]
    with pytest.raises(HeadNotFoundError, match="BertForMultipleChoice chooses among several texts"):
        tiny.trainer(tmp_path, start, rows, matching="class_conditional")
    runs = []
    with caplog.at_level(logging.WARNING, "itra_hf"):
        for cls in (Trainer, ITRATrainer):
            runs.append(tiny.trainer(tmp_path, copy.deepcopy(start), rows, cls, max_steps=2))
            runs[-1].train()
    assert torch.equal(*(tiny.weights(run.model) for run in runs))
    assert ["chooses among several texts" in record.getMessage() for record in caplog.records] == [True]


def test_multiple_choice_of_an_own_model_is_told_in_the_first_step(tmp_path):
    class Choice(tiny.Mlp):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 1)

        def forward(self, x, labels=None):
            logits = self.head(self.body(x.view(-1, 4))).view(len(x), -1)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

    rows = [{"x": torch.rand(2, 4), "labels": row % 2} for row in range(32)]
    with pytest.raises(HeadNotFoundError, match="Choice chooses among several texts"):
        tiny.trainer(tmp_path, Choice(), rows, matching="class_conditional").train()


@pytest.mark.parametrize(("heads", "line"), [(1, "'head', the mean of 4 calls"), (2, "'head' and 'other'")])
def test_an_average_is_told(tmp_path, heads, line):
    class Averages(tiny.Mlp):
        def __init__(self):
            super().__init__(dropout=0.5)
            self.other = nn.Linear(6, tiny.NUM_LABELS)

        def forward(self, x, labels=None):
            made = [self.head(self.body(x)) for _ in range(4)] if heads == 1 else [h(self.body(x)) for h in self.both]
            logits = torch.stack(made).mean(0)
            return {"loss": cross_entropy(logits, labels), "logits": logits}

        @property
        def both(self):
            return self.head, self.other

    run = tiny.trainer(tmp_path, Averages(), tiny.vectors())
    run.train()
    assert line in run.matching_line
    assert tiny.logs_of(run, "matching_loss")


def test_the_search_holds_no_large_output_and_looks_again_where_the_head_has_one(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LARGEST", 10)  # the logits of a batch have 24 entries
    ours, by_hand = matched_at(tmp_path, tiny.Mlp(), "head", max_steps=3)
    assert [*by_hand.expected[1:]] == pytest.approx(ours, rel=1e-4)
    assert len(ours) == 2


MOVES = {"learning_rate": 0.05, "optim": "sgd", "max_steps": 4, "matching_warmup_ratio": 0.0}


class Tokens(nn.Module):
    """A head on every token, whose outputs are averaged, or of which the first is taken."""

    def __init__(self, pick=None, zeros=True):
        super().__init__()
        self.embedding, self.head, self.pick = nn.Embedding(50, 6), nn.Linear(6, tiny.NUM_LABELS), pick
        if zeros:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, input_ids, attention_mask=None, labels=None):
        made = self.head(self.embedding(input_ids).tanh())
        logits = made.mean(1) if self.pick is None else made[:, self.pick]
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class Twice(tiny.Mlp):
    """Calls its head for something else, too."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x, labels=None):
        logits = self.head(self.body(x))
        other = self.head(self.body(-x))
        loss = cross_entropy(logits, labels) + 0.1 * cross_entropy(other, labels)
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize("layer", ["head", ".head"])
@pytest.mark.parametrize("pick", [None, 0, -1])
def test_which_tokens_make_the_logits_is_told_by_a_batch_that_shows_it(tmp_path, layer, pick):
    pool = (lambda h: h.mean(1)) if pick is None else (lambda h: h[:, pick])
    ours, by_hand = matched_at(tmp_path, Tokens(pick), "head", tiny.texts(), pool, **MOVES, feature_layer=layer)
    assert ours == pytest.approx(by_hand.expected[1:], rel=1e-4)  # the zeros of the first step show nothing


def test_rows_of_one_token_show_nothing_yet(tmp_path):
    rows = tiny.texts()
    for row in rows[:8]:
        row["input_ids"], row["attention_mask"] = row["input_ids"][:1], row["attention_mask"][:1]
    options = MOVES | {"train_sampling_strategy": "sequential"}
    pool = lambda h: h.mean(1)  # noqa: E731
    ours, by_hand = matched_at(tmp_path, Tokens(zeros=False), "head", rows, pool, **options)
    assert ours == pytest.approx(by_hand.expected[1:], rel=1e-4)


def test_which_call_of_a_head_makes_the_logits_is_told_by_a_batch_that_shows_it(tmp_path):
    given, run = [], tiny.trainer(tmp_path, Twice(), tiny.vectors(), **(STILL | MOVES))
    run.model.head.register_forward_pre_hook(lambda module, args: given.append(args[0].detach()))
    labels = []
    run.model.register_forward_pre_hook(lambda module, args, kwargs: labels.append(kwargs["labels"]), with_kwargs=True)
    run.train()
    by_hand = []
    for rows, classes in zip(given[::2], labels, strict=True):
        s, t = reference.dealt(classes)
        by_hand.append(float(reference.class_conditional(rows[s], rows[t], classes[s], classes[t])))
    assert tiny.logs_of(run, "matching_loss") == pytest.approx(by_hand[1:], rel=1e-4)


class Embeddings(tiny.Mlp):
    """Its scores are no layer's output, its embeddings are one's; no config tells which are the logits."""

    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(6, 5)

    def forward(self, x, labels=None):
        features = self.body(x)
        scores = self.head(features) / 2
        return {"loss": cross_entropy(scores, labels), "embeddings": self.projection(features), "scores": scores}


@pytest.mark.parametrize("steps", [3, 8])
def test_outputs_without_a_name_are_a_question_also_in_a_short_run(tmp_path, caplog, steps):
    with pytest.raises(AmbiguousHeadError, match="several outputs that could be its logits"):
        tiny.trainer(tmp_path, Embeddings(), tiny.vectors(), matching="joint", max_steps=steps).train()
    with caplog.at_level(logging.WARNING, "itra_hf"):
        tiny.trainer(tmp_path, Embeddings(), tiny.vectors(), max_steps=steps).train()
    assert len([text for text in caplog.messages if "call them 'logits', set config.num_labels" in text]) == 1


def test_a_loss_of_the_users_own_is_told_where_steps_are_matched_whole(tmp_path):
    class Own(ITRATrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs)["loss"]

    options = {"gradient_accumulation_steps": 2, "matching_scope": "optimizer_step", "matching": "joint"}
    with pytest.raises(HeadNotFoundError, match=r"super\(\).compute_loss"):
        tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), Own, **options).train()


@pytest.mark.parametrize("layer", ["encoder.layer.1.output", "encoder.layer.1.output.dense"])
def test_a_layer_within_a_block_is_matched_in_a_compiled_model(tmp_path, layer):
    start = tiny.bert(0.0)
    options = {"feature_layer": layer, "logging_steps": 1, "max_steps": 2}
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    runs = [tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), **options, **how) for how in ({}, compiled)]
    losses = []
    for run in runs:
        run.train()
        losses.append(tiny.logs_of(run, "matching_loss"))
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert torch._dynamo.config.skip_nnmodule_hook_guards  # as it is by default


class Buffers(tiny.Mlp):
    """Has buffers that nobody can write to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ones", torch.ones(1).expand(8), persistent=False)
        with torch.inference_mode():
            self.register_buffer("made", torch.ones(3), persistent=False)


def test_buffers_that_cannot_be_written_to_stop_no_run(tmp_path):
    options = {"gradient_accumulation_steps": 2, "matching_scope": "optimizer_step"}
    run = tiny.trainer(tmp_path, Buffers(), tiny.vectors(), **options)
    run.train()
    assert tiny.logs_of(run, "matching_loss")


def test_the_first_pass_holds_no_large_input(monkeypatch):
    monkeypatch.setattr(watch, "LARGEST", 40)
    model = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 1), nn.Linear(1, 3))
    seeks = watch.FeatureWatch(model, "head", "auto")
    with seeks.watching(model):
        model(torch.rand(8, 4))
        held = [call.module for call in seeks._recorder.calls]
    assert held == [model[2]]


def test_every_name_of_a_module_will_do(tmp_path):
    model = tiny.Mlp()
    model.classifier = model.head
    model.heads = nn.ModuleDict({"task-a": model.head})
    for layer in ("classifier", ".head", "task-a", "heads.task-a"):
        assert module_named(model, layer) is model.head
        tiny.trainer(tmp_path, model, tiny.vectors(), feature_layer=layer)
    compiled = torch.compile(tiny.Mlp(), backend="eager")
    with pytest.raises(HeadNotFoundError, match=r"'hed'.*'\.head'"):
        tiny.trainer(tmp_path, compiled, tiny.vectors(), feature_layer="hed", remove_unused_columns=False)
    with pytest.raises(HeadNotFoundError, match=r"'\.other' is the name of no modules"):
        module_named(nn.Linear(1, 1), ".other")


def test_a_model_of_the_users_own_whose_config_says_another_number_of_labels_is_matched(tmp_path):
    class Own(PreTrainedModel):
        config_class = PreTrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.inner = tiny.Mlp()
            self.post_init()

        def forward(self, x, labels=None):
            return self.inner(x, labels)

    assert Own(PreTrainedConfig()).config.num_labels == 2
    ours, by_hand = matched_at(tmp_path, Own(PreTrainedConfig()), "inner.head", matching="class_conditional")
    assert ours == by_hand


def test_picked_logits_may_be_rounded(tmp_path):
    class Rounded(Tokens):
        def forward(self, input_ids, attention_mask=None, labels=None):
            logits = self.head(self.embedding(input_ids).tanh())[:, -1].bfloat16()
            return {"loss": cross_entropy(logits.float(), labels), "logits": logits}

    ours, by_hand = matched_at(tmp_path, Rounded(zeros=False), "head", tiny.texts(), lambda h: h[:, -1])
    assert ours == by_hand


def test_frozen_features_are_told(tmp_path):
    model = tiny.Mlp()
    model.body.requires_grad_(False)
    run = tiny.trainer(tmp_path, model, tiny.vectors())
    run.train()
    assert run.hardly_matched == "no gradient reached the features, which are frozen or detached."


def test_a_named_layer_within_reentrant_checkpoints_is_refused_or_told(tmp_path):
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    options |= {"feature_layer": "encoder.layer.1.output", "matching": "class_conditional"}
    with pytest.raises(HeadNotFoundError, match="reentrant checkpointing"):
        tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), **options).train()
    with pytest.raises(ValueError, match="'use_reentrant': False"):
        tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), matching_scope="optimizer_step", **options)


class Inner(tiny.Mlp):
    """Takes a gradient in its forward pass."""

    def forward(self, x, labels=None):
        noise = torch.zeros_like(x, requires_grad=True)
        (gradient,) = torch.autograd.grad(self.head(self.body(x + noise)).square().sum(), noise)
        return super().forward(x + 0.1 * gradient, labels)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_forward_pass_that_needs_gradients_stops_no_run(tmp_path, caplog, compiled):
    start, runs = Inner(), []
    options = {"pairing": "random", "gradient_accumulation_steps": 2, "matching_scope": "optimizer_step"}
    if compiled:
        options = {"pairing": "random", "torch_compile": True, "torch_compile_backend": "eager"}
    with caplog.at_level(logging.WARNING, "itra_hf"):
        for cls in (Trainer, ITRATrainer):
            torch._dynamo.reset()
            run = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.vectors(), cls, max_steps=8, **options)
            run.train()
            runs.append(run)
    assert torch.equal(*(tiny.weights(run.model) for run in runs))
    assert len([text for text in caplog.messages if "an extra forward pass without gradient failed" in text]) == 1
    if not compiled:
        with pytest.raises(RuntimeError, match="does not require grad"):
            tiny.trainer(tmp_path, Inner(), tiny.vectors(), matching="joint", **options).train()


class Scores(Embeddings):
    """The same, but the scores are the outputs of the head."""

    def forward(self, x, labels=None):
        features = self.body(x)
        scores = self.head(features)
        return {"loss": cross_entropy(scores, labels), "embeddings": features, "scores": scores}


@pytest.mark.parametrize("num_labels", [None, 6])  # six as the embeddings have
def test_a_name_settles_which_output_is_meant(tmp_path, num_labels):
    model = Scores()
    if num_labels is not None:
        model.config = SimpleNamespace(num_labels=num_labels)
    ours, by_hand = matched_at(tmp_path, model, "head", feature_layer=".head")
    assert ours == by_hand
    assert len(ours) == 2
