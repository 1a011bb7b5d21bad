"""Trainer against ITRATrainer: what is compared, what it says, and how it goes on after a crash."""

import copy
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import folders
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, set_seed

from itra_hf import ITRAConfig, ITRATrainer, report
from itra_hf.command import compare as module
from itra_hf.command import kept_runs
from itra_hf.command.compare import SettingsError, arms_of, compare, folder_name
from itra_hf.command.contents import rows_digest
from itra_hf.command.data import TaskArguments
from itra_hf.command.differences import summarise, table
from itra_hf.command.tasks import Task, load_task

SEEDS = [3, 4]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    return load_task(TaskArguments(folders.bert(folder), train_file=folders.pets(folder)), seed=0)


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    """A comparison that nothing has cut off, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return compare(task, config(folder), SEEDS), folder


def config(folder, **changes):
    return ITRAConfig(**tiny.options(folder, max_steps=6, learning_rate=1e-2, **changes))


def altered(folder, changes):
    return ITRAConfig(**(tiny.options(folder, max_steps=6, learning_rate=1e-2) | changes))


def metrics(result):
    return {(run["seed"], run["trainer"]): run["metrics"] for run in result["runs"]}


def test_each_run_is_what_its_trainer_does_by_hand(task, whole, tmp_path):
    result, folder = whole
    assert json.loads((folder / "comparison.json").read_text()) == result
    for seed in SEEDS:
        for name, cls in (("Trainer", Trainer), ("ITRATrainer", ITRATrainer)):
            set_seed(seed)
            by_hand = cls(
                task.new_model(),
                config(tmp_path / "hand", seed=seed),
                task.collator,
                task.train,
                task.test,
                task.processor,
                compute_metrics=task.compute_metrics,
            )
            by_hand.train()
            scores = by_hand.evaluate()
            found = dict(metrics(result)[seed, name])
            assert found.pop("scatter_ratio") > 0
            assert found == {key: scores[f"eval_{key}"] for key in ("loss", "accuracy", "macro_f1")}
    assert metrics(result)[3, "Trainer"] != metrics(result)[3, "ITRATrainer"]
    for run in result["runs"]:
        assert (folder / run["folder"] / "trainer_state.json").exists()
    assert "ITRATrainer" in table(result)


def test_what_was_matched_and_that_it_was_hardly_any_is_shown(whole):
    result, _ = whole
    assert result["matched"].startswith("ITRA matches the input of ")
    lines = {run["trainer"]: run["matched"] for run in result["runs"]}
    assert lines == {"Trainer": None, "ITRATrainer": result["matched"]}
    told = [run for run in result["runs"] if run["hardly"]]
    assert {run["trainer"] for run in told} == {"ITRATrainer"}  # six steps are too few for the cap to open
    lines = [f"Seed {run['seed']}, ITRATrainer: the matching hardly took place: {run['hardly']}" for run in told]
    assert result["warnings"][:-1] == lines
    assert result["warnings"][-1].startswith("Neither model has learned")  # nor are they enough for that


class Die(TrainerCallback):
    """Stops everything after so many steps of all runs."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("died_after", "left"), [(6, 20), (15, 10)])  # checkpoints at 2, 4 and 6 of 6 steps
def test_goes_on_where_it_stopped(task, whole, tmp_path, monkeypatch, died_after, left):
    """Finished runs are not repeated; one that was cut off goes on from its checkpoint, to the same scores."""
    tiny.needs_transformers("5.6", "it saves a loaded BERT's LayerNorms by old names, which Trainer does not find")
    args = config(tmp_path / "cut", save_strategy="steps", save_steps=2)
    dying = Die(died_after)
    steps = []

    class Dying(module._Progress):
        def on_step_end(self, *given, **keywords):
            dying.on_step_end(*given, **keywords)
            super().on_step_end(*given, **keywords)

    class Counting(module._Progress):
        def on_step_end(self, args, state, control, **keywords):
            steps.append(state.global_step)

    monkeypatch.setattr(module, "_Progress", Dying)
    with pytest.raises(KeyboardInterrupt):
        compare(task, copy.copy(args), SEEDS)
    monkeypatch.setattr(module, "_Progress", Counting)
    again = compare(task, copy.copy(args), SEEDS)
    assert metrics(again) == metrics(whole[0])
    assert len(steps) == left
    assert not list((tmp_path / "cut").glob("*/checkpoint-*"))
    steps.clear()
    more = compare(task, copy.copy(args), [*SEEDS, 5])
    assert len(steps) == 12
    assert len(more["runs"]) == 6


def test_other_settings_in_the_same_folder_are_refused(task, tmp_path):
    compare(task, config(tmp_path / "out"), [3])
    with pytest.raises(ValueError, match=r"matching_weight \(1.0 then, 0.5 now\); take another --output_dir"):
        compare(task, config(tmp_path / "out", matching_weight=0.5), [3])


def test_a_run_that_was_cut_off_does_not_go_on_under_other_settings(task, tmp_path, monkeypatch):
    def killed(*given):
        raise ChildProcessError

    monkeypatch.setattr(module, "_run", killed)
    with pytest.raises(ChildProcessError):
        compare(task, config(tmp_path / "out"), [3])
    for changes in ({"learning_rate": 1e-5}, {"lr_scheduler_kwargs": {"num_cycles": 2}}):
        with pytest.raises(SettingsError, match="holds a comparison of other settings: " + next(iter(changes))):
            compare(task, altered(tmp_path / "out", changes), [3])
    for harmless in ({"logging_steps": 1}, {"disable_tqdm": False}):
        with pytest.raises(ChildProcessError):
            compare(task, altered(tmp_path / "out", harmless), [3])


def other_weights(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder / "bert")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[3, 0] += 1e-3
    model.save_pretrained(folder / "bert")


def other_config(folder):
    path = folder / "bert" / "config.json"
    path.write_text(path.read_text().replace('"hidden_dropout_prob": 0.1', '"hidden_dropout_prob": 0.2'))


def other_tokens(folder):
    path = folder / "bert" / "tokenizer.json"
    path.write_text(path.read_text().replace('"purr"', '"growl"'))


def one_text(folder):
    path = folder / "pets.csv"
    path.write_text(path.read_text().replace("purr", "meow", 1))


TEXT_CHANGES = {
    other_weights: "content of the model",
    other_config: "content of the model",
    other_tokens: "content of the processor",
    one_text: "content of the (training|evaluation) rows",
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of texts, with its model and data."""
    folder = tmp_path_factory.mktemp("compared")
    task = load_task(TaskArguments(folders.bert(folder), train_file=folders.pets(folder)), seed=0)
    compare(task, config(folder / "out"), [3])
    return folder


@pytest.mark.parametrize(("change", "named"), TEXT_CHANGES.items())
def test_other_contents_under_the_same_names_are_refused(compared, tmp_path, monkeypatch, change, named):
    shutil.copytree(compared, tmp_path / "all")
    monkeypatch.chdir(tmp_path / "all")
    source = TaskArguments("./bert", train_file="pets.csv")
    again = compare(load_task(source, seed=0), config("out"), [3])  # the same content in another place
    before = json.loads((compared / "out" / "comparison.json").read_text())
    assert [run["seconds"] for run in again["runs"]] == [run["seconds"] for run in before["runs"]]
    change(tmp_path / "all")
    with pytest.raises(SettingsError, match=named):
        compare(load_task(source, seed=0), config("out"), [3])


@pytest.mark.parametrize("split", ["train", "test"])
def test_other_pixels_under_the_same_name_are_refused(tmp_path, split):
    for name, rows in (("train", 30), ("test", 12)):
        data = folders.stripes(tmp_path, rows, name)
    source = TaskArguments(folders.vit(tmp_path), dataset_name=data)
    compare(load_task(source, seed=0), config(tmp_path / "out", remove_unused_columns=False), [3])
    path = next(Path(data, split, "none").glob("*.png"))
    times = path.stat()
    pixels = np.array(Image.open(path))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    named = "content of the training rows" if split == "train" else "content of the evaluation rows"
    with pytest.raises(SettingsError, match=f"settings: {named}"):
        compare(load_task(source, seed=0), config(tmp_path / "out", remove_unused_columns=False), [3])


def test_other_arguments_of_the_data_are_refused(task, tmp_path):
    compare(task, config(tmp_path / "out"), [3])
    other = replace(task, source=task.source | {"max_length": 4})
    with pytest.raises(SettingsError, match=r"max_length \(128 then, 4 now\)"):
        compare(other, config(tmp_path / "out"), [3])


@pytest.mark.parametrize("broken", ["", "{", "{}", "[]", "[1]", "\x00\x00", "[" * 100_000, None])
def test_settings_that_cannot_be_read_are_named(compared, task, tmp_path, broken):
    """Also where they are missing, and there are runs."""
    folder = shutil.copytree(compared / "out", tmp_path / "out")
    (folder / "settings.json").unlink() if broken is None else (folder / "settings.json").write_text(broken)
    with pytest.raises(SettingsError, match=r"settings.json cannot be read .*take another --output_dir"):
        compare(task, config(folder), [3])


def test_a_run_that_was_killed_after_its_last_step_does_not_take_one_more(task, tmp_path, monkeypatch):
    options = {"save_strategy": "steps", "save_steps": 500, "lr_scheduler_type": "constant", "max_steps": 4}
    whole = compare(task, altered(tmp_path / "whole", options), [3])

    def killed(*given, **options):
        raise ChildProcessError

    with monkeypatch.context() as patch:
        patch.setattr(module.Trainer, "evaluate", killed)
        with pytest.raises(ChildProcessError):
            compare(task, altered(tmp_path / "cut", options), [3])
    again = compare(task, altered(tmp_path / "cut", options), [3])
    assert [run["steps"] for run in again["runs"]] == [4, 4]
    assert metrics(again) == metrics(whole)


@pytest.mark.parametrize(("kind", "line"), [("end", 4), ("metrics", 5)])
def test_a_run_whose_line_was_cut_off_is_run_anew(task, whole, tmp_path, monkeypatch, kind, line):
    result, folder = whole
    shutil.copytree(folder, tmp_path / "cut")
    lines = (folder / "runs.jsonl").read_text()
    cut = {
        "end": lines[:-20],
        "metrics": lines + lines.splitlines()[0].replace("0.", "9", 1).replace('"seconds": ', '"seconds": "x", "y": '),
    }[kind]
    (tmp_path / "cut" / "runs.jsonl").write_text(cut)
    warnings = []
    monkeypatch.setattr(kept_runs.logger, "warning", warnings.append)
    again = compare(task, config(tmp_path / "cut"), SEEDS)
    assert metrics(again) == metrics(result)
    seconds, before = ([run["seconds"] for run in given["runs"]] for given in (again, result))
    assert seconds[:3] == before[:3]
    assert f"runs.jsonl: line {line} cannot be read; its run is repeated" in warnings[0]


def test_a_comparison_of_trainer_with_itself_is_refused(task, tmp_path):
    for changes in ({"matching": "none"}, {"matching_weight": 0.0}):
        with pytest.raises(ValueError, match="nothing to compare"):
            compare(task, config(tmp_path / "out", **changes), [3])


def test_the_score_that_decides_can_be_chosen(task, tmp_path):
    result = compare(task, config(tmp_path / "out", metric_for_best_model="eval_loss"), [3])
    assert (result["metric"], result["greater_is_better"]) == ("loss", False)
    result = compare(task, config(tmp_path / "compact", metric_for_best_model="scatter_ratio"), [3])
    assert (result["metric"], result["greater_is_better"]) == ("scatter_ratio", False)
    with pytest.raises(ValueError, match="metric_for_best_model='bleu' is unknown; choose one of loss, accuracy"):
        compare(task, config(tmp_path / "other", metric_for_best_model="bleu"), [3])
    compare(task, config(tmp_path / "other", metric_for_best_model="accuracy"), [3])  # mended, the runs still serve


def test_one_bar_runs_over_all_steps(task, tmp_path, capfd):
    compare(task, config(tmp_path / "out", disable_tqdm=False), SEEDS)
    shown = capfd.readouterr()
    assert "24/24" in shown.err
    assert {bar.split("|")[0].split(":")[0] for bar in shown.err.split("\r") if "|" in bar} <= {
        f"seed {seed}, {name}" for seed in SEEDS for name in ("Trainer", "ITRATrainer")
    } | {"  0%"}
    assert "loss" not in shown.out


def arms(result):
    return [run["trainer"] for run in result["runs"]]


def test_further_arms_are_both_trainers_with_that_option_on_the_same_seeds(task, whole, tmp_path):
    smooth = config(tmp_path / "out", label_smoothing_factor=0.3)
    folder = shutil.copytree(whole[1], tmp_path / "out")
    before = (folder / "Trainer-seed-3" / "trainer_state.json").stat().st_mtime_ns
    result = compare(task, config(folder), SEEDS, also=[smooth])
    told = "label_smoothing_factor=0.3"
    plain, itra = f"Trainer with {told}", f"ITRATrainer with {told}"
    assert arms(result) == ["Trainer", "ITRATrainer", plain, itra] * 2
    assert (folder / "Trainer-seed-3" / "trainer_state.json").stat().st_mtime_ns == before  # it was not run again
    by_hand = compare(task, config(tmp_path / "hand", label_smoothing_factor=0.3), SEEDS)
    for seed in SEEDS:
        assert metrics(result)[seed, plain] == metrics(by_hand)[seed, "Trainer"] != metrics(result)[seed, "Trainer"]
        assert metrics(result)[seed, itra] == metrics(by_hand)[seed, "ITRATrainer"]
    assert [(pair["first"], pair["second"]) for pair in result["also"]] == [
        ("Trainer", plain),
        (plain, itra),
        (plain, "ITRATrainer"),
    ]
    assert "loss" not in result["also"][0]["differences"]  # of smoothed labels it is another loss
    gains = [metrics(result)[seed, itra]["loss"] - metrics(result)[seed, plain]["loss"] for seed in SEEDS]
    assert result["also"][1]["differences"]["loss"]["values"] == pytest.approx(gains)
    assert result["differences"] == whole[0]["differences"]
    assert f"{itra} against {plain}:" in table(result)
    page = report.write_comparison(folder / "comparison.json").read_text()
    assert f"{itra} against {plain}" in page


def test_a_further_arm_of_matching_options_trains_itratrainer_alone(task, tmp_path):
    result = compare(task, config(tmp_path), [3], also=[config(tmp_path, matching_weight=0.5)])
    assert arms(result) == ["Trainer", "ITRATrainer", "ITRATrainer with matching_weight=0.5"]
    assert [pair["first"] for pair in result["also"]] == ["ITRATrainer", "Trainer"]


def test_a_further_arm_that_is_no_other_is_refused(task, tmp_path):
    with pytest.raises(SettingsError, match=r"a further arm \(also\) has the options of the comparison itself"):
        compare(task, config(tmp_path), [3], also=[config(tmp_path / "elsewhere", logging_steps=7)])


def test_every_seed_draws_other_rows_of_each_class(task, tmp_path, monkeypatch):
    drawn = []

    def build(self, cls, args, callbacks):
        drawn.append(self.train)
        return trainer(self, cls, args, callbacks)

    trainer = Task.trainer
    monkeypatch.setattr(Task, "trainer", build)
    result = compare(task, config(tmp_path), SEEDS, samples_per_class=4)
    assert [Counter(rows["labels"]) for rows in drawn] == [{0: 4, 1: 4, 2: 4}] * 4
    contents = [rows_digest(rows) for rows in drawn]
    assert contents[0] == contents[1] != contents[2] == contents[3]
    assert result["settings"]["training rows"] == 12
    assert result["settings"]["samples_per_class"] == 4
    with pytest.raises(SettingsError, match=r"samples_per_class \(4 then, None now\)"):
        compare(task, config(tmp_path), SEEDS)
    with pytest.raises(ValueError, match=r"samples_per_class=40: the class '\w+' has 16 training rows; give less"):
        compare(task, config(tmp_path), SEEDS, samples_per_class=40)
    with pytest.raises(ValueError, match="samples_per_class=4 needs classes"):
        compare(replace(task, names=None), config(tmp_path), SEEDS, samples_per_class=4)


def test_settings_tell_all_matching_options_and_what_the_rows_are(whole, task):
    told = whole[0]["settings"]
    assert told["max_length"] == 128
    assert (told["training rows"], told["evaluation rows"]) == (len(task.train), len(task.test))
    assert (told["matching"], told["num_bandwidths"], told["matching_warmup_ratio"]) == ("auto", 5, 0.3)


@pytest.mark.parametrize(("accuracy", "warns"), [(0.4, True), (0.62, False)])
def test_it_says_when_neither_model_has_learned(task, accuracy, warns):
    """Of 12 rows of three classes, guessing gets 1/3 +- 0.27."""
    runs = [
        {"seed": seed, "trainer": name, "metrics": {"accuracy": value, "loss": 1.0}}
        for seed in SEEDS
        for name, value in (("Trainer", 0.3), ("ITRATrainer", accuracy))
    ]
    said = summarise(task, config("out"), {"model": "m", "dataset": "d"}, runs, [])["warnings"]
    assert len(task.test) == 12
    assert [warning.startswith("Neither model has learned: guessing") for warning in said] == [True] * warns


def test_a_further_arm_of_what_holds_for_the_process_is_refused(task, tmp_path):
    further = config(tmp_path)
    further.full_determinism = True
    with pytest.raises(SettingsError, match=r"further arm \(also\) changes full_determinism, which holds for a whole"):
        compare(task, config(tmp_path), [3], also=[further])


def test_further_arms_are_told_once_and_may_load_their_best_model(task, tmp_path):
    saves = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 3}
    best = config(tmp_path, load_best_model_at_end=True, **saves)
    arms, pairs = arms_of(config(tmp_path, **saves), [best, best])
    assert len(arms) == 4
    assert len(pairs) == len(set(pairs)) == 3
    assert "load_best_model_at_end=True" in list(arms)[-1]


def test_folders_of_arms_have_names_that_every_file_system_takes():
    names = [folder_name(f"Trainer with a={letter * 300}", 3) for letter in "ab"]
    assert len(set(names)) == 2
    assert max(map(len, names)) < 160
    assert folder_name("Trainer with x='a/b'", 3) == "Trainer-with-x=-a-b--seed-3"
