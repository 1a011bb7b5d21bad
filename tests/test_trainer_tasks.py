"""ITRATrainer with every usual kind of data, option and adapter."""

import copy
import shutil

import datasets
import pytest
import tiny
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models
from transformers import (
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerFast,
    Trainer,
)

from itra_hf import ITRATrainer


def logs_of(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def assert_matched(trainer):
    values = logs_of(trainer, "matching_loss")
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


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from tiny.texts()


def renamed(name, extra):
    rows = [{key if key != "labels" else name: value for key, value in row.items()} | extra for row in tiny.texts()]
    return datasets.Dataset.from_list(
        [{key: torch.as_tensor(value).tolist() for key, value in row.items()} for row in rows]
    )


DATA = {
    "labels": renamed("labels", {}),
    "label": renamed("label", {"note": 1}),
    "torch": Rows(tiny.texts()),
    "stream": Stream(),
    "streamed_datasets": renamed("labels", {}).to_iterable_dataset(),
}


@pytest.mark.parametrize("name", DATA)
def test_takes_every_kind_of_data_set(tmp_path, name):
    run = tiny.trainer(tmp_path, tiny.bert(), DATA[name])
    run.train()
    assert_matched(run)


@pytest.mark.parametrize("name", ["labels", "torch"])
@pytest.mark.parametrize(
    "options",
    [
        {"dataloader_num_workers": 2},
        {"auto_find_batch_size": True},
        {"train_sampling_strategy": "group_by_length"},
        {"train_sampling_strategy": "sequential"},
        {"train_sampling_strategy": "batch_rebalance", "pairing": "random"},
        {"dataloader_drop_last": True, "per_device_train_batch_size": 7},
    ],
    ids=lambda options: next(iter(options.values())),
)
def test_takes_every_way_of_loading(tmp_path, name, options):
    run = tiny.trainer(tmp_path, tiny.bert(), DATA[name], **options)
    run.train()
    assert_matched(run)


def test_keeps_unused_columns_where_the_collator_needs_them(tmp_path):
    def collate(rows):
        assert all(row.pop("note") == 1 for row in rows)
        return {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "attention_mask", "label")} | {
            "labels": torch.tensor([row["label"] for row in rows])
        }

    class Popping(ITRATrainer):
        def _prepare_inputs(self, inputs):
            inputs.pop("label")
            return super()._prepare_inputs(inputs)

    keywords = {"data_collator": collate}
    run = tiny.trainer(tmp_path, tiny.bert(), DATA["label"], Popping, keywords, remove_unused_columns=False)
    run.train()
    assert_matched(run)


def test_searches_for_its_weight_with_optuna(tmp_path):
    keywords = {"model_init": lambda: tiny.bert()}
    run = tiny.trainer(tmp_path, None, tiny.texts(), keywords=keywords, eval_strategy="steps")
    best = run.hyperparameter_search(
        hp_space=lambda trial: {"matching_weight": trial.suggest_categorical("matching_weight", [0.0, 2.0])},
        n_trials=2,
        backend="optuna",
    )
    assert set(best.hyperparameters) == {"matching_weight"}


def test_model_init_makes_a_new_model_at_every_training(tmp_path):
    run = tiny.trainer(tmp_path, None, tiny.texts(), keywords={"model_init": lambda: tiny.bert()})
    weights = []
    for _ in range(2):
        run.train()
        assert_matched(run)
        weights.append(tiny.weights(run.model))
    assert torch.equal(*weights)


def test_regression_and_multi_label_reduce_their_matching_loss(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for config, label in (
        ({"num_labels": 1}, lambda row: float(row["input_ids"].float().mean() / 25 - 1)),
        (
            {"problem_type": "multi_label_classification"},
            lambda row: torch.randint(2, (3,), generator=generator).float(),
        ),
    ):
        rows = [row | {"labels": label(row)} for row in tiny.texts()]
        run = tiny.trainer(tmp_path, tiny.bert(**config), rows, max_steps=20, learning_rate=1e-2, logging_steps=5)
        run.train()
        assert_matched(run)
        assert logs_of(run, "task_loss")[-1] < logs_of(run, "task_loss")[0]


def test_token_classification_trains_as_under_trainer_and_a_form_asked_for_is_refused(tmp_path):
    rows = [{"input_ids": [5, 6, 7][: 2 + i % 2], "labels": [0, 1, 2][: 2 + i % 2]} for i in range(48)]
    start, weights = BertForTokenClassification(tiny.bert().config), []
    keywords = {"data_collator": DataCollatorForTokenClassification(tiny_tokenizer())}
    for cls in (Trainer, ITRATrainer):
        run = tiny.trainer(tmp_path, copy.deepcopy(start), rows, cls, keywords)
        run.train()
        weights.append(tiny.weights(run.model))
    assert torch.equal(*weights)
    with pytest.raises(ValueError, match=r"one label per row, but the labels are one per token"):
        tiny.trainer(tmp_path, start, rows, ITRATrainer, keywords, matching="class_conditional").train()


def tiny_tokenizer():
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


# ---- precision, checkpointing, compilation


def test_bfloat16_autocast_stays_close_to_float32(tmp_path):
    start, losses = tiny.bert(0.0), []
    for bf16 in (False, True):
        run = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), bf16=bf16, max_steps=10, logging_steps=5)
        run.train()
        losses.append(logs_of(run, "matching_loss"))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    start, weights = tiny.bert(0.0), []
    for checkpointing in (False, True):
        run = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(), gradient_checkpointing=checkpointing)
        run.train()
        weights.append(tiny.weights(run.model))
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch's default compiler, inductor, needs g++ on a CPU")
def test_twenty_compiled_steps_have_the_losses_of_eager_ones_in_one_graph(tmp_path):
    """Compiled by inductor, as torch_compile=True has it; with both guards at work."""
    torch._dynamo.reset()
    start, losses = tiny.bert(0.0), []
    for compiled in (False, True):
        options = {"max_steps": 20, "logging_steps": 1, "learning_rate": 1e-3, "eval_on_start": True}
        run = tiny.trainer(tmp_path, copy.deepcopy(start), tiny.texts(48), torch_compile=compiled, **options)
        torch._dynamo.utils.counters.clear()
        run.train()
        losses.append([logs_of(run, key) for key in ("task_loss", "matching_loss", "matching_weight")])
    assert run.args.torch_compile_backend == "inductor"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # the evaluation runs uncompiled
    assert not torch._dynamo.utils.counters["graph_break"]
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
    run.matching_loss = lambda *pair: seen.append(run._matching.features.head) or pair[0].square().mean()
    run.train()
    assert seen[0] is model.base_model.model.classifier.modules_to_save["default"]
