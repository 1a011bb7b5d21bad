"""ITRATrainer with every usual kind of data, option and adapter."""

import copy
import shutil

import datasets
import optuna
import pytest
import reference
import tiny
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models
from transformers import (
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    default_data_collator,
)

from itra_hf import ITRATrainer
from itra_hf.features import extract_features
from itra_hf.pairing import split_pair


def assert_matched(trainer):
    values = tiny.logs_of(trainer, "matching_loss")
    assert values
    assert all(value > 0 for value in values)


# ---- data


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def renamed(name, extra):
    rows = [{key if key != "labels" else name: value for key, value in row.items()} | extra for row in tiny.texts()]
    return datasets.Dataset.from_list(
        [{key: torch.as_tensor(value).tolist() for key, value in row.items()} for row in rows]
    )


DATA = {
    "labels": renamed("labels", {}),
    "label": renamed("label", {"note": 1}),
    "label_ids": renamed("label_ids", {"note": 1}).with_format("torch"),
    "torch": Rows(tiny.texts()),
    "stream": tiny.Stream(tiny.texts()),
    "streamed_datasets": renamed("labels", {}).to_iterable_dataset(),
}
IN_ORDER = {"train_sampling_strategy": "sequential"}


@pytest.fixture(scope="module")
def start():
    torch.manual_seed(0)
    return tiny.bert()


@pytest.fixture(scope="module")
def in_order(start, tmp_path_factory):
    """The weights of a run over the list of examples, in their order."""
    run = tiny.trainer(tmp_path_factory.mktemp("in_order"), copy.deepcopy(start), tiny.texts(), **IN_ORDER)
    run.train()
    assert_matched(run)
    return tiny.weights(run.model)


@pytest.mark.parametrize("name", DATA)
def test_every_kind_of_data_set_gives_the_same_run(tmp_path, start, in_order, name):
    run = tiny.trainer(tmp_path, copy.deepcopy(start), DATA[name], **IN_ORDER)
    run.train()
    assert_matched(run)
    assert torch.equal(tiny.weights(run.model), in_order)


def test_unused_columns_are_kept_where_the_collator_needs_them(tmp_path, start, in_order):
    def collate(rows):
        return default_data_collator([{key: row[key] for key in row if row["note"] and key != "note"} for row in rows])

    keywords = {"data_collator": collate}
    options = {"remove_unused_columns": False, **IN_ORDER}
    run = tiny.trainer(tmp_path, copy.deepcopy(start), DATA["label"], keywords=keywords, **options)
    run.train()
    assert torch.equal(tiny.weights(run.model), in_order)


def test_workers_load_the_same_run(tmp_path, start, in_order):
    run = tiny.trainer(tmp_path, copy.deepcopy(start), Rows(tiny.texts()), dataloader_num_workers=2, **IN_ORDER)
    run.train()
    assert torch.equal(tiny.weights(run.model), in_order)


class Recording:
    """Keeps the first token of every row of every batch."""

    def training_step(self, model, inputs, *args, **kwargs):
        self.seen = [*getattr(self, "seen", []), inputs["input_ids"][:, 0].tolist()]
        return super().training_step(model, inputs, *args, **kwargs)


class RecordingTrainer(Recording, Trainer):
    pass


class RecordingITRATrainer(Recording, ITRATrainer):
    pass


@pytest.mark.parametrize("pairing", ["class", "random"])
@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length", "batch_rebalance"])
def test_every_sampling_strategy_is_trainers_but_random_with_pairs_of_a_class(tmp_path, strategy, pairing):
    if (strategy, pairing) == ("batch_rebalance", "class"):
        return  # refused at construction, see test_trainer.py
    tokens = torch.arange(6)
    rows = [{"input_ids": row + tokens[: 2 + row % 4] % 3, "labels": row // 2 % 3} for row in range(42)]
    seen = []
    for cls in (RecordingTrainer, RecordingITRATrainer):
        keywords = {"data_collator": DataCollatorWithPadding(tiny_tokenizer())}
        options = {"train_sampling_strategy": strategy, "pairing": pairing, "dataloader_drop_last": True}
        run = tiny.trainer(tmp_path, tiny.bert(), rows, cls, keywords, **options)
        run.train()
        seen.append(run.seen)
    theirs, ours = seen
    assert_matched(run)
    if (strategy, pairing) == ("random", "class"):
        assert theirs != ours
        assert all(rows[s]["labels"] == rows[t]["labels"] for batch in ours for s, t in zip(*split(batch), strict=True))
    else:
        assert theirs == ours


def split(batch):
    return batch[::2], batch[1::2]


def test_a_batch_that_does_not_fit_the_memory_is_made_smaller(tmp_path):
    """The run is that of the smaller size, to the bit of its weights and its log."""

    class Small(RecordingITRATrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            loss = super().training_step(model, inputs, *args, **kwargs)
            if len(inputs["input_ids"]) == 8:
                raise RuntimeError("CUDA out of memory.")
            return loss

    start, options = tiny.bert(0.0), {"matching_warmup_ratio": 0.0, "logging_steps": 1}
    found = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), Small, auto_find_batch_size=True, **options)
    found.train()
    size = len(found.seen[-1])
    assert 2 <= size < 8
    assert [len(batch) for batch in found.seen] == [8, *[size] * 4]
    given = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), per_device_train_batch_size=size, **options)
    given.train()
    assert_matched(given)
    for name in ("loss", "task_loss", "matching_loss", "matching_weight"):
        assert tiny.logs_of(found, name) == tiny.logs_of(given, name), name
    assert torch.equal(tiny.weights(found.model), tiny.weights(given.model))


def test_searches_for_its_weight_with_optuna(tmp_path, start):
    trials = {}

    class Record(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            trials[args.matching_weight] = [entry for entry in state.log_history if "loss" in entry]

    weights = [0.0, 2.0]
    keywords = {"model_init": lambda: copy.deepcopy(start), "callbacks": [Record()]}
    run = tiny.trainer(tmp_path, None, tiny.texts(), keywords=keywords, eval_strategy="steps")
    best = run.hyperparameter_search(
        hp_space=lambda trial: {"matching_weight": trial.suggest_categorical("matching_weight", weights)},
        n_trials=2,
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"matching_weight": weights}),
    )
    assert best.hyperparameters["matching_weight"] in weights
    assert all(entry["matching_loss"] > 0 for entry in trials[2.0])
    plain = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), Trainer, eval_strategy="steps")
    plain.train()
    assert [entry["loss"] for entry in trials[0.0]] == tiny.logs_of(plain, "loss")
    assert not any("matching_loss" in entry for entry in trials[0.0])


def test_model_init_makes_a_new_model_at_every_training(tmp_path):
    run = tiny.trainer(tmp_path, None, tiny.texts(), keywords={"model_init": lambda: tiny.bert()})
    weights = []
    for _ in range(2):
        run.train()
        assert_matched(run)
        weights.append(tiny.weights(run.model))
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("config", "label", "kernel"),
    [
        ({"num_labels": 1}, lambda row: row / 7.0, "gaussian"),
        ({"problem_type": "multi_label_classification"}, lambda row: [row % 2, 1.0, row // 2 % 2], "linear"),
    ],
    ids=["regression", "multi-label"],
)
def test_regression_and_multi_label_are_matched_jointly_with_their_labels(tmp_path, config, label, kernel):
    model = tiny.bert(0.0, **config)
    rows = [row | {"labels": torch.tensor(label(i))} for i, row in enumerate(tiny.texts(8))]
    batch = default_data_collator(rows)
    features, task = extract_features(model, [batch]), model(**batch).loss.item()
    (source, target), (ys, yt) = split_pair(features), split_pair(batch["labels"])
    expected = reference.joint(source, target, ys, yt, kernel=kernel)
    run = tiny.trainer(tmp_path, model, rows, max_steps=1, logging_steps=1, **IN_ORDER)
    run.train()
    assert tiny.logs_of(run, "matching_loss") == [pytest.approx(expected.item(), rel=1e-4)]
    assert tiny.logs_of(run, "task_loss") == [pytest.approx(task, rel=1e-5)]


def test_token_classification_trains_as_under_trainer_and_a_form_asked_for_is_refused(tmp_path):
    rows = [{"input_ids": [5, 6, 7][: 2 + i % 2], "labels": [0, 1, 2][: 2 + i % 2]} for i in range(48)]
    start, weights = BertForTokenClassification(tiny.bert().config), []
    keywords = {"data_collator": DataCollatorForTokenClassification(tiny_tokenizer())}
    for cls in (Trainer, ITRATrainer):
        run = tiny.trainer(tmp_path, copy.deepcopy(start), rows, cls, keywords)
        run.train()
        weights.append(tiny.weights(run.model))
    assert torch.equal(*weights)
    with pytest.raises(ValueError, match="per token; name a module by feature_layer, and take matching='marginal'"):
        tiny.trainer(tmp_path, start, rows, ITRATrainer, keywords, matching="class_conditional").train()
    run = tiny.trainer(tmp_path, start, rows, ITRATrainer, keywords, matching="marginal", feature_layer=-1)
    run.train()
    assert_matched(run)


def tiny_tokenizer():
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


# ---- precision, checkpointing, compilation


def test_bfloat16_autocast_stays_close_to_float32(tmp_path):
    start, losses = tiny.bert(0.0), []
    for bf16 in (False, True):
        run = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), bf16=bf16, max_steps=10, logging_steps=5)
        run.train()
        losses.append(tiny.logs_of(run, "matching_loss"))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    start, weights = tiny.bert(0.0), []
    for checkpointing in (False, True):
        run = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), gradient_checkpointing=checkpointing)
        run.train()
        weights.append(tiny.weights(run.model))
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch's default compiler, inductor, needs g++ on a CPU")
def test_twenty_compiled_steps_have_the_losses_of_eager_ones_with_one_break_at_the_head(tmp_path):
    """Compiled by inductor, as torch_compile=True has it; with both guards at work."""
    torch._dynamo.reset()
    start, losses = tiny.bert(0.0), []
    for compiled in (False, True):
        options = {"max_steps": 20, "logging_steps": 1, "learning_rate": 1e-3, "eval_on_start": True}
        run = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(48), torch_compile=compiled, **options)
        torch._dynamo.utils.counters.clear()
        run.train()
        losses.append([tiny.logs_of(run, key) for key in ("task_loss", "matching_loss", "matching_weight")])
    assert run.args.torch_compile_backend == "inductor"
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 3  # the body, the head, the loss; the evaluation runs uncompiled
    assert all("Recorder._begin" in reason for reason in counters["graph_break"])  # one break, at the head
    for eager, ours in zip(*losses, strict=True):
        assert ours == pytest.approx(eager, rel=1e-5, abs=1e-7)
    weights = losses[1][2]
    assert weights[0] == 0  # the ramp
    assert max(weights) < 0.5  # the cap


# ---- peft


ADAPTERS = {
    "lora": LoraConfig(task_type=TaskType.SEQ_CLS, r=tiny.NUM_LABELS, target_modules=["query", "value"]),
    "ia3": IA3Config(task_type=TaskType.SEQ_CLS, target_modules=["key", "value", "output.dense"],
                     feedforward_modules=["output.dense"]),
    "prompt": PromptTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=3),
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_trains_saves_and_loads_adapters(tmp_path, name):
    base = tiny.bert()
    model = get_peft_model(copy.deepcopy(base), copy.deepcopy(ADAPTERS[name]))
    run = tiny.trainer(tmp_path, model, tiny.texts(), learning_rate=1e-1)
    run.train()
    assert_matched(run)
    run.save_model()
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    ours = run.predict(tiny.texts()).predictions
    theirs = Trainer(loaded, run.args).predict(tiny.texts()).predictions
    assert (ours == theirs).all()
    if name != "prompt":
        merged = Trainer(loaded.merge_and_unload(), run.args).predict(tiny.texts()).predictions
        assert merged == pytest.approx(ours, abs=1e-5)


def test_a_fully_trainable_head_is_the_one_that_is_read(tmp_path):
    """PEFT keeps the frozen original of a module in `modules_to_save`; only the copy is called."""
    model = get_peft_model(tiny.bert(), copy.deepcopy(ADAPTERS["lora"]))
    run = tiny.trainer(tmp_path, model, tiny.texts())
    seen = []
    run.matching_loss = lambda *pair: seen.append(run._run.watch.reader.head) or pair[0].square().mean()
    run.train()
    assert seen[0] is model.base_model.model.classifier.modules_to_save["default"]
