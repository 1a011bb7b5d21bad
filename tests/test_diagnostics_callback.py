"""The callback: what it logs, saves and costs, and that training does not notice it."""

import json
import logging
import math

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from itra_hf import ITRATrainer
from itra_hf.diagnostics import ITRADiagnosticsCallback, compactness, gradient_scatter, mode_separation
from itra_hf.features import HiddenState, extract_features

ALL = ("compactness", "gradient_scatter", "over_adaptation")


def run(folder, model, rows, *callbacks, cls=ITRATrainer, **changes):
    torch.manual_seed(0)
    trainer = tiny.trainer(folder, model, rows, cls, keywords={"callbacks": list(callbacks)}, **changes)
    trainer.train()
    return trainer


def measured(trainer, name="eval_scatter_ratio"):
    return [(entry["step"], entry[name]) for entry in trainer.state.log_history if name in entry]


def training_log(trainer):
    clock = ("_runtime", "_per_second")
    entries = [entry for entry in trainer.state.log_history if {"loss", "eval_loss", "train_loss"} & set(entry)]
    return [{key: value for key, value in entry.items() if not key.endswith(clock)} for entry in entries]


def collate(rows):
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("bert", {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
        ("bert", {"matching_scope": "optimizer_step", "gradient_accumulation_steps": 2}),
        ("lora", {"optim": "adafactor"}),
        ("resnet", {"label_smoothing_factor": 0.1}),
        ("plain", {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}),
    ],
)
def test_training_is_the_same_to_the_bit(kind, changes, tmp_path):
    results = []
    options = {"eval_strategy": "steps", "eval_steps": 3, "max_steps": 6, "logging_steps": 1, "learning_rate": 0.01}
    for callbacks in ([], [ITRADiagnosticsCallback(ALL, every=2, max_share=1, max_rows=20)]):
        torch.manual_seed(0)
        model, rows = (tiny.resnet(), tiny.images()) if kind == "resnet" else (tiny.bert(), tiny.texts())
        if kind == "lora":
            adapter = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], lora_dropout=0.1)
            model = get_peft_model(model, adapter)
        trainer = tiny.trainer(tmp_path, model, rows, Trainer if kind == "plain" else ITRATrainer, **options | changes)
        for callback in callbacks:
            callback.trainer = trainer
            trainer.add_callback(callback)
        trainer.train()
        results.append((tiny.weights(trainer.model), torch.get_rng_state(), training_log(trainer)))
    (weights, randomness, log), (with_callback, randomness_after, log_after) = results
    assert [step for step, _ in measured(trainer)] == [0, 2, 4, 6]
    assert [step for step, _ in measured(trainer, "gradient_scatter")] == [0, 2, 4, 6]
    assert len(measured(trainer, "over_adaptation")) >= 3
    assert torch.equal(weights, with_callback)
    assert torch.equal(randomness, randomness_after)
    assert log == log_after


def test_logs_what_the_functions_give_at_each_evaluation(tmp_path):
    rows, modes = tiny.vectors(48), torch.arange(48) % 6
    callback = ITRADiagnosticsCallback(ALL, modes=modes.tolist(), max_share=1)
    trainer = run(tmp_path, tiny.Mlp(), rows, callback, eval_strategy="steps", eval_steps=2, max_steps=5)
    assert [step for step, _ in measured(trainer)] == [0, 2, 4, 5]
    entry = next(entry for entry in reversed(trainer.state.log_history) if "eval_scatter_ratio" in entry)
    batches = [collate(rows[start : start + 8]) for start in range(0, 48, 8)]
    features, labels = extract_features(trainer.model, batches), torch.arange(48) % tiny.NUM_LABELS
    expected = compactness(features, labels) | mode_separation(features, modes, labels)
    assert {name: entry[f"eval_{name}"] for name in expected} == pytest.approx(expected, rel=1e-6)
    drawn = [rows[i] for i in torch.randperm(48, generator=torch.Generator().manual_seed(0))]
    batches = [collate(drawn[start : start + 8]) for start in range(0, 48, 8)]
    assert entry["gradient_scatter"] == pytest.approx(gradient_scatter(trainer.model, batches)["gradient_scatter"])
    assert 0 < entry["diagnostics_share"] < 1


def test_evaluate_returns_the_figures_too(tmp_path):
    torch.manual_seed(1)
    rows = tiny.vectors(48)
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_scatter_ratio", "save_total_limit": 1}
    callback = ITRADiagnosticsCallback(max_share=1e-9)  # which the figure that Trainer chooses by does not heed
    trainer = run(
        tmp_path, tiny.Mlp(), rows, callback, greater_is_better=True, learning_rate=0.2, optim="sgd", **options
    )
    step, best = max(measured(trainer)[1:], key=lambda entry: entry[1])
    assert step < 4
    assert trainer.state.best_metric == best
    assert trainer.evaluate()["eval_scatter_ratio"] == pytest.approx(best, rel=1e-6)  # of the best model, loaded
    after = np.load(tmp_path / "_diagnostics" / "after.npz")
    assert compactness(after["features"], after["labels"])["scatter_ratio"] == pytest.approx(best, rel=1e-6)


def test_every_tracker_sees_the_figures(tmp_path):
    logged = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logged.append((state.global_step, logs))

    trainer = run(tmp_path, tiny.Mlp(), tiny.vectors(), Tracker(), ITRADiagnosticsCallback(every=2, max_share=1))
    seen = [(step, logs["eval_scatter_ratio"]) for step, logs in logged if "eval_scatter_ratio" in logs]
    assert seen == measured(trainer)
    assert len(seen) == 3


def test_takes_no_more_than_its_share_but_for_the_first_and_the_last(tmp_path, monkeypatch, caplog):
    clock = [0.0]
    monkeypatch.setattr("itra_hf.diagnostics.callback.time.perf_counter", lambda: clock[0])
    callback = ITRADiagnosticsCallback(every=1, max_share=0.125)

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            clock[0] += 1.0

    features = tiny.Mlp()
    features.register_forward_hook(lambda module, *_: clock.__setitem__(0, clock[0] + 0.1 * (not module.training)))
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        trainer = run(tmp_path, features, tiny.vectors(8), Clock(), callback, max_steps=40, log_level="warning")
    steps = [step for step, _ in measured(trainer)]
    assert steps[0] == 0
    assert steps[-1] == 40
    assert 3 < len(steps) < 40
    shares = dict(measured(trainer, "diagnostics_share"))
    assert all(share <= 0.125 for share in shares.values())
    assert sum("max_share=0.125" in record.getMessage() for record in caplog.records) == 1
    saved = json.loads((tmp_path / "_diagnostics" / "config.json").read_text())
    assert saved["skipped_measurements"] == 41 - len(steps)
    between = 0.2 * (len(steps) - 2)  # two forward passes each
    assert saved["diagnostics_share"] == pytest.approx(between / (40 + between))  # 40 steps of a second


def test_leaves_features_settings_and_log_for_the_report(tmp_path):
    model, rows = tiny.bert(), tiny.texts()
    before = extract_features(model, [collate(rows)])
    trainer = run(tmp_path, model, rows, ITRADiagnosticsCallback(), hub_token="secret", seed=3)
    after = extract_features(trainer.model, [collate(rows)])
    for name, expected in (("before", before), ("after", after)):
        saved = np.load(tmp_path / "_diagnostics" / f"{name}.npz", allow_pickle=False)
        np.testing.assert_allclose(saved["features"], expected.numpy(), rtol=1e-5, atol=1e-6)
        assert saved["labels"].tolist() == [row["labels"] for row in rows]
        assert saved["names"][:3].tolist() == ["LABEL_0", "LABEL_1", "LABEL_2"]
    text = (tmp_path / "_diagnostics" / "config.json").read_text()
    assert "secret" not in text
    assert str(tmp_path) not in text
    assert json.loads(text)["settings"] | {"seed": 3, "matching_weight": 1.0} == json.loads(text)["settings"]
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["log_history"] == trainer.state.log_history


def test_measures_a_sample_of_rows_drawn_once(tmp_path):
    rows = Dataset.from_list([{"x": row["x"].tolist(), "labels": row["labels"]} for row in tiny.vectors(300)])
    trainer = run(tmp_path, tiny.Mlp(), rows, ITRADiagnosticsCallback(max_rows=50))
    before, after = (np.load(tmp_path / "_diagnostics" / f"{name}.npz") for name in ("before", "after"))
    assert before["features"].shape == (50, 6)
    assert np.array_equal(before["labels"], after["labels"])
    assert math.isfinite(measured(trainer)[0][1])


def test_reads_the_hidden_state_that_is_matched(tmp_path):
    trainer = run(tmp_path, tiny.bert(), tiny.texts(), ITRADiagnosticsCallback(), feature_layer="1")
    batch = collate(tiny.texts())
    expected = extract_features(trainer.model, [batch], lambda model, inputs: HiddenState.find(model, inputs, 1))
    saved = np.load(tmp_path / "_diagnostics" / "after.npz")["features"]
    np.testing.assert_allclose(saved, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_a_run_that_stops_early_is_measured_at_its_end(tmp_path):
    stop = EarlyStoppingCallback(early_stopping_patience=1)
    options = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_scatter_ratio"}
    options |= {"greater_is_better": True, "save_strategy": "no", "load_best_model_at_end": False}
    callback = ITRADiagnosticsCallback(every=100)
    trainer = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), max_steps=30, learning_rate=0.0, **options)
    trainer.compute_metrics = lambda _: {"scatter_ratio": 1.0}
    trainer.add_callback(stop)
    trainer.add_callback(callback)
    trainer.train()
    assert trainer.state.global_step == 2
    assert [entry["step"] for entry in trainer.state.log_history if "eval_nc1" in entry] == [0, 2]


def test_of_a_run_that_stops_early_and_loads_its_best_checkpoint_nothing_is_logged_as_the_last_steps(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"metric_for_best_model": "loss", "load_best_model_at_end": True, "learning_rate": 0.5}
    callback = ITRADiagnosticsCallback(every=100)
    trainer = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), max_steps=30, greater_is_better=True, **options)
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=1))
    trainer.add_callback(callback)
    trainer.train()
    assert trainer.state.best_global_step < trainer.state.global_step < 30
    assert [step for step, _ in measured(trainer)] == [0]
    best = extract_features(trainer.model, [collate(tiny.vectors())])
    np.testing.assert_allclose(np.load(tmp_path / "_diagnostics" / "after.npz")["features"], best, rtol=1e-5)


def test_a_score_of_one_of_several_evaluation_sets_asks_for_no_measurement(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"metric_for_best_model": "b_loss", "load_best_model_at_end": True}
    trainer = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), **options)
    trainer.eval_dataset = {"a": tiny.vectors(), "b": tiny.vectors()}
    trainer.add_callback(ITRADiagnosticsCallback(every=100))
    trainer.train()
    assert [step for step, _ in measured(trainer)] == [0, 4]


def test_rows_that_lie_sorted_by_class_make_mini_batches_of_all_classes(tmp_path):
    """Their gradients scatter about as those of the same rows in any other order, not several times as far."""
    rows = tiny.vectors(192)
    scatters = []
    for order in (rows, sorted(rows, key=lambda row: row["labels"])):
        torch.manual_seed(0)
        trainer = tiny.trainer(tmp_path, tiny.Mlp(), order)
        callback = ITRADiagnosticsCallback(("gradient_scatter",), trainer=trainer)
        trainer.add_callback(callback)
        trainer.train()
        scatters.append(measured(trainer, "gradient_scatter")[0][1])
    assert scatters[1] < 2 * scatters[0]


def test_rows_without_a_class_are_not_measured(tmp_path):
    rows = tiny.vectors(48)
    for row in rows[::4]:
        row["labels"] = -100
    trainer = run(tmp_path, tiny.Mlp(), rows, ITRADiagnosticsCallback(modes=list(range(24)) * 2))
    after = np.load(tmp_path / "_diagnostics" / "after.npz")
    assert len(after["features"]) == 36
    assert set(after["labels"]) == {0, 1, 2}
    assert measured(trainer, "eval_mode_chance")


def test_half_precision_is_measured_as_it_is(tmp_path):
    model = tiny.bert().to(torch.bfloat16)
    assert extract_features(model, [collate(tiny.texts())]).dtype == torch.bfloat16
    trainer = run(tmp_path, model, tiny.texts(), ITRADiagnosticsCallback(modes=list(range(24)) * 2))
    assert np.load(tmp_path / "_diagnostics" / "after.npz")["features"].dtype == np.float32
    assert len(measured(trainer)) == 2


def test_a_resumed_run_keeps_what_was_measured_before(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    run(tmp_path, tiny.Mlp(), tiny.vectors(), ITRADiagnosticsCallback(), **options)
    before = (tmp_path / "_diagnostics" / "before.npz").read_bytes()
    torch.manual_seed(1)
    trainer = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), **options)
    trainer.add_callback(ITRADiagnosticsCallback())
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (tmp_path / "_diagnostics" / "before.npz").read_bytes() == before
    assert [step for step, _ in measured(trainer)] == [0, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ["nc1"]}, "measure 'nc1' is unknown"),
        ({"every": 0}, "every=0 must be at least 1"),
        ({"max_rows": 1}, "max_rows=1 must be at least 4"),
        ({"max_share": 0}, "max_share=0 must lie above 0"),
    ],
)
def test_a_value_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ITRADiagnosticsCallback(**options)


@pytest.mark.parametrize(
    ("callback", "rows", "message"),
    [
        (ITRADiagnosticsCallback(modes=[0, 1]), tiny.vectors(), "2 modes do not fit the 48 rows"),
        (ITRADiagnosticsCallback(), [{"x": row["x"]} for row in tiny.vectors()], "hold no 'labels'"),
        (ITRADiagnosticsCallback(), tiny.vectors(1), "1 class in 1 rows"),
        (
            ITRADiagnosticsCallback(["over_adaptation"]),
            "few",
            "6 training rows are one mini-batch of train_batch_size=8",
        ),
    ],
)
def test_rows_that_cannot_be_measured_are_refused_when_training_begins(callback, rows, message, tmp_path):
    trainer = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(6 if rows == "few" else 48))
    trainer.eval_dataset = tiny.vectors() if rows == "few" else rows
    trainer.add_callback(callback)
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_a_stream_is_refused_for_a_sample(tmp_path):
    trainer = tiny.trainer(tmp_path, tiny.Mlp(), tiny.Stream(tiny.vectors()))
    trainer.add_callback(ITRADiagnosticsCallback())
    with pytest.raises(ValueError, match="a Stream has no length to draw rows from"):
        trainer.train()


def test_under_another_trainer_it_asks_whose_it_is(tmp_path):
    trainer = tiny.trainer(tmp_path, tiny.Mlp(), tiny.vectors(), Trainer)
    trainer.add_callback(ITRADiagnosticsCallback())
    with pytest.raises(ValueError, match=r"trainer\.add_callback\(ITRADiagnosticsCallback\(trainer=trainer\)\)"):
        trainer.train()
