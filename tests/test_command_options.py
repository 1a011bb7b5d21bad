"""Options in a file are checked as words are, and named with the file."""

import json

import folders
import pytest

from itra_hf.command import commands
from itra_hf.command.options import nearest, read_options

DATA = {"model_name_or_path": "x", "train_file": "y.csv"}


def parsed(path, values):
    """The options that `train` takes from a json file."""
    path.write_text(json.dumps(DATA | values))
    return commands.parse("train", [str(path)], commands.TrainArguments)


@pytest.mark.parametrize("value", [5e-4, "5e-4", "0.0005"])
def test_numbers_may_be_numbers_or_words(tmp_path, value):
    *_, args = parsed(tmp_path / "a.json", {"learning_rate": value})
    assert args.learning_rate == 5e-4


def test_what_takes_a_list_a_dict_or_a_truth_value_gets_it(tmp_path):
    values = {"input_column": ["a", "b"], "lr_scheduler_kwargs": {"num_cycles": 2}, "gather_features": False}
    data, _, args = parsed(tmp_path / "a.json", values | {"report": True, "bf16": False})
    assert data.input_column == ["a", "b"]
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert args.gather_features is False
    (one, _, _) = parsed(tmp_path / "b.json", {"input_column": "a"})
    assert one.input_column == ["a"]


@pytest.mark.parametrize("name", ["learning_rate", "max_train_samples", "matching", "output_dir"])
def test_a_blank_value_means_the_default(tmp_path, name):
    (tmp_path / "a.yaml").write_text(f"model_name_or_path: x\ntrain_file: y.csv\n{name}:\n")
    assert commands.parse("train", [str(tmp_path / "a.yaml")]) == parsed_without(tmp_path)


def parsed_without(tmp_path):
    (tmp_path / "b.yaml").write_text("model_name_or_path: x\ntrain_file: y.csv\n")
    return commands.parse("train", [str(tmp_path / "b.yaml")])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", [1e-4], r"a\.json sets learning_rate to a list; give one value"),
        ("learning_rate", {"a": 1}, r"a\.json sets learning_rate to a dict; give one value"),
        ("train_file", ["a.csv"], r"a\.json sets train_file to a list"),
        ("max_train_samples", 10.5, "argument --max_train_samples.*invalid int value: '10.5'"),
        ("max_train_samples", True, "argument --max_train_samples.*invalid int value: 'True'"),
        ("learning_rate", True, "argument --learning_rate.*invalid float value: 'True'"),
        ("learning_rate", "nan", "learning_rate=nan is not a number"),
        ("report", "perhaps", "argument --report.*Truthy value expected: got perhaps"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_option(tmp_path, name, value, message):
    with pytest.raises(ValueError, match=message):
        parsed(tmp_path / "a.json", {name: value})


def test_files_that_cannot_be_read_are_named(tmp_path):
    latin, broken, tabs = (tmp_path / name for name in ("latin.yaml", "broken.json", "tabs.json"))
    latin.write_bytes("output_dir: K\u00f6ln".encode("latin-1"))
    broken.write_text('{"learning_rate": 1,')
    tabs.write_text('{\n\t"learning_rate":\t0.5\n}')
    with pytest.raises(ValueError, match=r"latin\.yaml is no text in utf-8"):
        read_options(str(latin))
    with pytest.raises(ValueError, match=r"broken\.json cannot be read as json; fix it: .*line 1"):
        read_options(str(broken))
    assert read_options(str(tabs)) == {"learning_rate": 0.5}


def test_relative_paths_are_looked_for_beside_the_file_first(tmp_path, monkeypatch):
    (tmp_path / "beside").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "beside" / "a.yaml"
    path.write_text("model_name_or_path: bert\ntrain_file: pets.csv\noutput_dir: out\n")
    assert read_options(str(path))["train_file"] == "pets.csv"
    folders.pets(tmp_path / "here")
    assert read_options(str(path))["train_file"] == "pets.csv"
    folders.pets(tmp_path / "beside")
    found = read_options(str(path))
    assert found["train_file"] == str(tmp_path / "beside" / "pets.csv")
    assert found["output_dir"] == "out"
    assert found["model_name_or_path"] == "bert"  # of the Hub


def test_what_is_near_is_offered():
    assert nearest("trian", ["train", "test"]) == "; did you mean train?"
    assert nearest("xyz", ["train"]) == ""


def test_an_empty_text_means_the_default_and_a_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bert").mkdir()
    (tmp_path / "a.yaml").write_text('validation_file: ""\nmodel_name_or_path: ~/bert\n')
    assert read_options(str(tmp_path / "a.yaml")) == {"model_name_or_path": str(tmp_path / "bert")}
