"""The runs of the evidence: the same start for every method, resuming, tuning, what is planned."""

import json

import pytest
import run as command
import runs
from methods import METHODS, settings
from on_ranks import launch
from one_run import Run, execute
from plan import ABLATION_METHODS, FOR_FEW_ROWS, FOR_MANY_ROWS, FRESH_SEEDS, FRESH_TASKS, GPU_METHODS, GPU_TASKS
from runs import planned, read_tuned, run_all
from tasks import Task
from tune import best, grid_of


def test_all_methods_start_from_the_same_weights_and_take_the_same_steps():
    task, scores = Task("digits-100/cnn"), {}
    tuned = {name: {m.knob: m.grid[0]} for name, m in METHODS.items() if m.knob}
    for name in (*METHODS, *ABLATION_METHODS):
        chosen = settings(task, name, tuned, {"learning_rate": 0.0, "max_steps": 2})
        rows = 16 if name == "half_batch" else 32
        assert chosen["per_device_train_batch_size"] == rows
        row = execute(Run(task.name, name, 5, "test", chosen), {})
        scores[name] = (row["accuracy"], row["loss"], row["nc1"], row["train_loss"])
    assert len(set(scores.values())) == 1, scores
    moved = execute(Run(task.name, "itra", 5, "test", settings(task, "itra", {}, {"max_steps": 2})), {})
    half = {"max_steps": 2, "one_half": True}
    half_moved = execute(Run(task.name, "itra", 5, "test", settings(task, "itra", {}, half)), {})
    assert len({scores["itra"][1], moved["loss"], half_moved["loss"]}) == 3


def test_two_ranks_share_the_batch_of_one():
    options = {"max_steps": 20, "learning_rate": 0.01}
    one, two = (
        Run("digits-300/cnn", name, 0, "test", settings(Task("digits-300/cnn"), name, {}, options))
        for name in ("itra", "itra:ranks=2")
    )
    assert launch(two, {})["loss"] == pytest.approx(execute(one, {})["loss"], rel=1e-4)


def test_a_killed_benchmark_goes_on_where_it_stopped(tmp_path, monkeypatch):
    results = tmp_path / "results.jsonl"
    methods = ["trainer:max_steps=1", "itra:max_steps=1"]
    first = run_all(planned(["digits-100/cnn"], methods, [0], "test"), results, {}, 1)
    lines = results.read_text().splitlines(keepends=True)
    assert len(lines) == len(first) == 2
    results.write_text(lines[0] + lines[1][:40])
    executed = []

    def execute_and_count(run, folders):
        executed.append(run.method)
        return {**run._asdict(), "accuracy": 1.0}

    class OneProcess:
        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def imap_unordered(self, function, jobs):
            return map(function, jobs)

    monkeypatch.setattr(runs, "execute", execute_and_count)
    monkeypatch.setattr(runs.multiprocessing, "get_context", lambda kind: type("Context", (), {"Pool": OneProcess}))
    second = run_all(planned(["digits-100/cnn"], methods, [0], "test"), results, {}, 1)
    assert executed == [json.loads(lines[1])["method"]]
    assert results.read_text().splitlines(keepends=True)[0] == lines[0]
    assert {row["method"] for row in second} == set(methods)


def test_without_methods_those_of_the_page_are_run_and_the_ablations_on_their_tasks(monkeypatch):
    asked = []

    def note(runs, results, folders, workers):
        asked.extend(runs)
        return []

    monkeypatch.setattr(command, "run_all", note)
    monkeypatch.setattr(command, "print_means", list)
    every = {name: {m.knob: m.grid[0]} for name, m in METHODS.items() if m.knob}
    tasks = ("digits-100/cnn", "digits-300/cnn", "fashion_mnist-all/cnn")
    monkeypatch.setattr(runs, "read_tuned", lambda: dict.fromkeys(tasks, every))
    command.main(["--tasks", *tasks, "--seeds", "0"])
    done = {task: {run.method for run in asked if run.task == task} for task in tasks}
    assert done == {
        tasks[0]: set(METHODS),
        tasks[1]: {*METHODS, *FOR_FEW_ROWS},
        tasks[2]: {"trainer", "itra", *FOR_MANY_ROWS},
    }
    asked.clear()
    command.main(["--tasks", tasks[1], "--methods", "trainer", "--seeds", "0"])
    assert [run.method for run in asked] == ["trainer"]


def test_fresh_runs_some_tasks_on_their_seeds_into_their_file(monkeypatch):
    asked = []
    monkeypatch.setattr(command, "run_all", lambda runs, results, *others: asked.extend([results.name, *runs]) or [])
    monkeypatch.setattr(command, "print_means", list)
    command.main(["--fresh"])
    assert asked[0] == "fresh.jsonl"
    assert {run.task for run in asked[1:]} == set(FRESH_TASKS)
    assert {(run.seed, run.split) for run in asked[1:]} == {(seed, "test") for seed in FRESH_SEEDS}
    assert {run.method for run in asked[1:]} == {"trainer", "itra"}


def test_gpu_tunes_and_runs_task_by_task_in_the_plans_order(monkeypatch):
    done = []
    monkeypatch.setattr(command, "tune", lambda task, methods, *others: done.append(("tune", task, *methods)))
    monkeypatch.setattr(command, "run_all", lambda runs, *others: done.append([*runs]) or [])
    monkeypatch.setattr(command, "print_means", list)
    rate = {"trainer": {"learning_rate": 0.1, "weight_decay": 0.0005}}
    monkeypatch.setattr(runs, "read_tuned", lambda: dict.fromkeys(GPU_TASKS, rate))
    command.main(["--gpu"])
    assert [entry for entry in done if entry[0] == "tune"] == [("tune", task, "trainer") for task in GPU_TASKS]
    first = done[1]
    assert {run.task for run in first} == {"cifar10-1000/resnet18"}
    assert {run.method for run in first} == set(GPU_METHODS)
    assert {run.seed for run in first} == set(range(10))
    smoothing = next(run for run in first if run.method == "itra+label_smoothing")
    assert smoothing.settings["label_smoothing_factor"] == 0.1
    assert smoothing.settings["learning_rate"] == 0.1
    assert [point["learning_rate"] for point in grid_of(GPU_TASKS[0], "trainer")] == [0.02, 0.05, 0.1]


def test_changed_settings_are_run_anew():
    task = Task("digits-100/cnn")
    plain, heavier = (
        Run(task.name, "itra", 0, "test", settings(task, "itra", {}, overrides))
        for overrides in ({}, {"matching_weight": 2.0})
    )
    assert plain.key != heavier.key
    assert plain.settings["matching_max_grad_ratio"] is not None  # defaults are part of the key


@pytest.mark.parametrize("name", ["r_drop", "itra+dropout", "itra_tuned"])
def test_a_knob_without_a_value_is_an_error_and_no_run_without_it(name):
    with pytest.raises(ValueError, match="--tune"):
        settings(Task("digits-100/cnn"), name, {}, {})


def test_tuning_takes_the_lowest_loss_of_those_as_accurate_as_the_best():
    grid = [{"lr": 1}, {"lr": 2}, {"lr": 3}, {"lr": 4}]
    scores = {1: ((0.90, 0.90), 0.5), 2: ((0.93, 0.85), 0.4), 3: ((0.89, 0.89), 0.1), 4: ((0.94, 0.80), 0.6)}
    rows = [
        {"settings": {"lr": lr, "other": 0}, "seed": seed, "accuracy": accuracy, "loss": loss}
        for lr, (accuracies, loss) in scores.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    # lr 2 is 0.01 behind lr 1 with a standard error of 0.04; lr 3 is 0.01 behind for sure
    assert best(rows, grid) == {"lr": 2}
    assert best(rows[:2] + rows[4:6], [grid[0], grid[2]]) == {"lr": 1}


@pytest.mark.parametrize("task", read_tuned())
def test_what_was_tuned_was_on_todays_grids(task):
    for method, chosen in read_tuned()[task].items():
        assert chosen in grid_of(task, method)


def test_lower_learning_rates_are_tried_on_all_of_a_text_data_set_and_lora_has_its_own():
    tasks = ("banking77-10shot/minilm-last2", "banking77-all/minilm-last2", "banking77-all/minilm-lora")
    few, whole, lora = ({point["learning_rate"] for point in grid_of(task, "trainer")} for task in tasks)
    assert few < whole
    assert min(whole) < min(few) <= min(lora)


@pytest.mark.parametrize("task", ["sst2-all/minilm"])
def test_a_whole_encoder_is_tried_at_lower_learning_rates_on_all_data(task):
    rates, few = ({point["learning_rate"] for point in grid_of(name, "trainer")} for name in (task, "sst2-5/minilm"))
    assert min(rates) < min(few)
    assert max(rates) <= 3e-4


def test_a_learning_rate_is_added_where_the_last_of_the_grid_was_best():
    assert {point["learning_rate"] for point in grid_of("sst2-200/minilm", "trainer")} == {3e-5, 1e-4, 3e-4, 1e-3}
    added = [point for point in grid_of("fashion_mnist-300/cnn", "trainer") if point["learning_rate"] == 0.08]
    assert [point["weight_decay"] for point in added] == [0.01, 0.3, 1.0]
    assert grid_of("fashion_mnist-300/cnn", "mixup") == grid_of("fashion_mnist-1000/cnn", "mixup")
