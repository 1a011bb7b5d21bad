"""What people hand to the command by mistake, and what others have cut off: one line that names it."""

import json
import re
import shutil
import wave
from importlib.util import find_spec
from pathlib import Path

import folders
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from itra_hf.command import checks, cli, commands, data
from itra_hf.command.tasks import load_task

SHORT = ["--max_steps", "2", "--use_cpu", "--disable_tqdm", "True", "--save_strategy", "no"]
ROWS = [("purr the a", "cat"), ("bark the a", "dog"), ("egg so", "emu")] * 8
GOOD = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)
LINES = "\n".join(json.dumps({"text": text, "label": label}) for text, label in ROWS)
VALIDATION = "text,label\npurr,cat\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    folders.bert(folder)
    folders.vit(folder)
    return folder


def one_line(command, *argv):
    """What a command ends with, which is one line."""
    with pytest.raises(SystemExit) as ended:
        cli.main([command, *map(str, argv)])
    assert isinstance(ended.value.code, str)
    assert ended.value.code.startswith(f"itra-hf {command}: ")
    assert "\n" not in ended.value.code
    return ended.value.code


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", GOOD.replace("purr", "café").encode("latin-1"), "rows.csv: it is no text in utf-8"),
        ("rows.csv", GOOD.encode("utf-16"), "rows.csv: it is no text in utf-8"),
        ("rows.csv", b"", "rows.csv is empty"),
        ("rows.csv", b"text,label\n", "rows.csv: "),
        ("rows.csv", (GOOD + "purr,cat,more\n").encode(), "rows.csv: .*Expected 2 fields in line 26, saw 3"),
        ("rows.csv", (GOOD + "purr\n").encode(), "rows.csv, row 25, column 'label': 1 of the 25 train rows have no"),
        ("rows.csv", (GOOD + '"purr,cat\n').encode(), "rows.csv: .*EOF inside string"),
        ("rows.csv", (GOOD + "moo,cow\n").encode(), "the class 'cow' has one row"),
        ("rows.csv", b"text,label\n" + b"1,cat\n2,dog\n" * 9, "rows.csv, column 'text': it holds int64"),
        ("rows.jsonl", LINES[:-12].encode(), "rows.jsonl: .*JSON"),
        ("rows.json", b'[{"text": "purr", "lab', "rows.json: "),
        ("rows.json", b"", "rows.json is empty"),
        ("rows.json", b"3", "rows.json: "),
    ],
)
def test_a_file_that_cannot_be_read_is_named(models, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    given = ["--model_name_or_path", models / "bert", "--train_file", tmp_path / name, "--input_column", "text"]
    said = one_line("train", *given, "--output_dir", tmp_path / "out", *SHORT)
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\npurr,cat\nmoo,cow\n", "other.csv, row 2: the label 'cow' is none of .* which are cat, dog, emu"),
        ("text,label\npurr,1.5\n", "other.csv, row 1: the label '1.5' is none of"),
        ("words,label\npurr,cat\n", "other.csv has no column 'text'; it has words, label"),
        ("", "other.csv is empty"),
    ],
)
def test_a_validation_file_that_does_not_fit_is_named(tmp_path, content, message):
    (tmp_path / "rows.csv").write_text(GOOD)
    (tmp_path / "other.csv").write_text(content)
    given = data.TaskArguments(
        "model", train_file=str(tmp_path / "rows.csv"), validation_file=str(tmp_path / "other.csv")
    )
    with pytest.raises(ValueError, match=message):
        data.read_rows(given, seed=0)


def test_a_class_folder_that_is_misspelt_is_named(tmp_path):
    for split, rows in (("train", 12), ("test", 6)):
        folder = Path(folders.stripes(tmp_path, rows, split))
    (folder / "test" / "along").rename(folder / "test" / "alnog")
    with pytest.raises(
        ValueError, match="the label 'alnog' is none of the training rows' labels, which are across, along, none;"
    ):
        data.read_rows(data.TaskArguments("model", dataset_name=str(folder)), seed=0)


@pytest.mark.parametrize("label", ["cat", "1"])
def test_one_class_alone_is_refused(models, tmp_path, label):
    (tmp_path / "rows.csv").write_text("text,label\n" + f"purr,{label}\n" * 9)
    with pytest.raises(ValueError, match=f"all rows have the label '{label}'"):
        load_task(data.TaskArguments(str(models / "bert"), train_file=str(tmp_path / "rows.csv")), seed=0)


def test_a_number_that_float32_cannot_hold_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n" + "purr,0.5\n" * 9 + "purr,1e300\n")
    with pytest.raises(ValueError, match="row 10, column 'label': the label is 1e\\+300"):
        data.read_rows(data.TaskArguments("model", train_file=str(tmp_path / "rows.csv")), seed=0)


def test_a_row_of_no_class_is_refused(tmp_path, monkeypatch):
    """As test sets on the Hub mark rows whose label is kept secret."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    rows = Dataset.from_dict({"text": ["x"] * 4, "label": [0, 1, 0, -1]}, features)
    monkeypatch.setattr(data, "load_dataset", lambda *names: DatasetDict(train=rows))
    with pytest.raises(ValueError, match="hub, row 4, column 'label': the label is -1"):
        data.read_rows(data.TaskArguments("model", dataset_name="hub"), seed=0)


def test_so_many_rows_are_drawn_where_classes_cannot_have_their_share(tmp_path):
    (tmp_path / "rows.csv").write_text(GOOD + "moo,cow\n")
    (tmp_path / "other.csv").write_text(VALIDATION)
    files = {"train_file": str(tmp_path / "rows.csv"), "validation_file": str(tmp_path / "other.csv")}
    for rows in (2, 10, 24):
        drawn = data.read_rows(data.TaskArguments("model", **files, max_train_samples=rows), seed=0)
        assert len(drawn.train) == rows


def test_a_model_of_another_problem_is_trained_on_classes(models, tmp_path):
    (tmp_path / "rows.csv").write_text(GOOD)
    for problem in ("regression", "multi_label_classification"):
        folder = shutil.copytree(models / "bert", tmp_path / problem)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"problem_type": problem}))
        given = ["--model_name_or_path", folder, "--train_file", tmp_path / "rows.csv", *SHORT]
        cli.main(["train", *map(str, given), "--output_dir", str(tmp_path / "out")])


def test_pictures_of_16_bits_are_those_of_8(models, tmp_path):
    task = load_task(data.TaskArguments(str(models / "vit"), dataset_name=folders.stripes(tmp_path)), seed=0)
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    batches = []
    for pixels in (ramp, ramp.astype(np.uint16) * 256 + 255):
        Image.fromarray(pixels).save(tmp_path / "picture.png")
        cell = {"bytes": (tmp_path / "picture.png").read_bytes(), "path": None}
        batches.append(task.collator([{"image": cell, "labels": 0}])["pixel_values"])
    assert torch.equal(*batches)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "picture.tiff")
    with pytest.raises(
        ValueError,
        match=r"picture.tiff is a broken picture .its pixel format is not supported; save it with 8 or 16 bits",
    ):
        task.collator([{"image": {"bytes": None, "path": str(tmp_path / "picture.tiff")}, "labels": 0}])


def test_numbers_to_train_on_and_texts_to_evaluate_on_are_named(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n" + "purr,0.5\n" * 9)
    (tmp_path / "other.csv").write_text("text,label\npurr,cat\n")
    files = {"train_file": str(tmp_path / "rows.csv"), "validation_file": str(tmp_path / "other.csv")}
    with pytest.raises(ValueError, match=r"cannot read the labels of .*other.csv as numbers: .*cat"):
        data.read_rows(data.TaskArguments("model", **files), seed=0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["label"], "column 'label' holds the labels and is no input"),
        (["text", "label"], "column 'label' holds the labels and is no input"),
        (["text", "text"], "got input_column=text, text; give one column"),
        (["text", "more", "most"], "got input_column=text, more, most; give one column"),
        (["text", "number"], "got input_column=text, number; give one column"),
    ],
)
def test_input_columns_that_no_task_has_are_refused(tmp_path, columns, message):
    (tmp_path / "rows.csv").write_text("text,more,most,number,label\n" + "a,b,c,1,cat\nd,e,f,2,dog\n" * 9)
    given = data.TaskArguments("model", train_file=str(tmp_path / "rows.csv"), input_column=columns)
    with pytest.raises(ValueError, match=message):
        data.read_rows(given, seed=0)


def break_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def break_tokenizer(folder):
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:100])


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "there is no folder .*bert; give model_name_or_path a folder"),
        (empty, "cannot read a Tokenizer of .*bert for the texts"),
        (break_tokenizer, "cannot read a Tokenizer of .*bert for the texts"),
        (break_weights, "cannot read the model .*bert: "),
    ],
)
def test_a_model_folder_that_is_missing_or_cut_off_is_named(models, tmp_path, damage, message):
    shutil.copytree(models / "bert", tmp_path / "bert")
    damage(tmp_path / "bert")
    (tmp_path / "rows.csv").write_text(GOOD)
    given = ["--model_name_or_path", tmp_path / "bert", "--train_file", tmp_path / "rows.csv", *SHORT]
    said = one_line("train", *given, "--output_dir", tmp_path / "out")
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume_from_checkpoint", "True"], "resume_from_checkpoint=True, and .*out holds no whole checkpoint"),
        (
            ["--resume_from_checkpoint", "nowhere"],
            "resume_from_checkpoint=nowhere is not a folder; give a checkpoint's",
        ),
        (["--output_dir", "rows.csv"], "output_dir=rows.csv is a file; give a folder"),
        (["--matching", "joint", "--per_device_train_batch_size", "1"], "per_device_train_batch_size=1"),
    ],
)
def test_folders_and_options_that_cannot_be_are_refused(models, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text(GOOD)
    given = ["--model_name_or_path", models / "bert", "--train_file", "rows.csv", "--output_dir", "out", *SHORT]
    said = one_line("train", *given, *options)
    assert re.search(message, said), said


def test_a_batch_of_one_row_is_trained_as_trainer_does(models, tmp_path):
    (tmp_path / "rows.csv").write_text(GOOD)
    given = ["--model_name_or_path", models / "bert", "--train_file", tmp_path / "rows.csv", *SHORT]
    given += ["--per_device_train_batch_size", "1", "--output_dir", tmp_path / "out"]
    cli.main(["train", *map(str, given)])
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 2


@pytest.mark.parametrize("content", [b"", b"no picture", "half"])
def test_a_broken_picture_is_named_before_the_first_step(models, tmp_path, content, monkeypatch):
    monkeypatch.setattr("transformers.Trainer.train", lambda *given, **options: pytest.fail("a step"))
    path = next(Path(folders.stripes(tmp_path), "none").glob("*.png"))
    path.write_bytes(path.read_bytes()[:60] if content == "half" else content)
    given = ["--model_name_or_path", models / "vit", "--dataset_name", tmp_path / "stripes", *SHORT]
    said = one_line("train", *given, "--output_dir", tmp_path / "out")
    assert f"{path} is a broken picture" in said


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_breaks_off_is_named_when_it_is_met(models, tmp_path, workers, monkeypatch):
    """A JPEG tells by its first bytes alone that it is one; all of it is read in its step."""
    folder = Path(folders.stripes(tmp_path))
    for path in list(folder.rglob("*.png")):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(
            path.with_suffix(".jpg")
        )
        path.unlink()
    for path in folder.rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-900])
    given = ["--model_name_or_path", models / "vit", "--dataset_name", folder, *SHORT]
    said = one_line("train", *given, "--dataloader_num_workers", workers, "--output_dir", tmp_path / "out")
    assert re.fullmatch(rf"itra-hf train: {folder}/\w+/\d+\.jpg is a broken picture \(image file is truncated.*", said)


def test_so_many_pictures_are_looked_at_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "PICTURES", 3)
    seen = []
    monkeypatch.setattr("PIL.Image.open", lambda path: seen.append(path) or Image.new("L", (1, 1)))
    data.read_rows(data.TaskArguments("model", dataset_name=folders.stripes(tmp_path)), seed=0)
    assert len(seen) == 3


@pytest.mark.skipif(find_spec("torchcodec") is not None, reason="a decoder is installed")
def test_sounds_without_a_decoder_say_what_to_install(tmp_path):
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**sizes)).save_pretrained(tmp_path / "model")
    for number in range(20):
        folder = tmp_path / "sounds" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(bytes(1000))
    given = ["--model_name_or_path", tmp_path / "model", "--dataset_name", tmp_path / "sounds", *SHORT]
    said = one_line("train", *given, "--output_dir", tmp_path / "out")
    assert re.search("install '(torchcodec|soundfile)'", said)  # the latter for older releases of datasets


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    """The folders of a run and of a comparison."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "rows.csv").write_text(GOOD)
    given = ["--model_name_or_path", models / "bert", "--train_file", folder / "rows.csv", *SHORT]
    for command, more in (("train", []), ("compare", ["--seeds", "1"])):
        cli.main([command, *map(str, [*given, "--output_dir", folder / command, *more])])
    return folder


STATE, CONFIG, BEFORE = "trainer_state.json", "_diagnostics/config.json", "_diagnostics/before.npz"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (STATE, None),
        (STATE, ""),
        (STATE, "[]"),
        (STATE, "{}"),
        (STATE, '{"log_history": null}'),
        (STATE, '{"log_history": [1, {"loss": 1}]}'),
        (CONFIG, None),
        (CONFIG, "[1]"),
        (BEFORE, None),
        (BEFORE, ""),
        (BEFORE, "x"),
    ],
)
def test_a_report_names_the_file_of_a_run_that_is_broken(finished, tmp_path, name, content):
    shutil.copytree(finished / "train", tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:-30] if content is None else content.encode())
    assert one_line("report", tmp_path / "run").startswith(f"itra-hf report: cannot read {path}: ")
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_report_of_settings_that_are_none_names_the_run(finished, tmp_path):
    shutil.copytree(finished / "train", tmp_path / "run")
    (tmp_path / "run" / CONFIG).write_text('{"settings": 3}')
    assert one_line("report", tmp_path / "run").startswith(f"itra-hf report: cannot read the run in {tmp_path / 'run'}")


@pytest.mark.parametrize(
    "change",
    [
        {"features": np.zeros(12)},
        {"features": np.zeros((5, 3, 2))},
        {"features": np.array([["a"]] * 5)},
        {"features": np.array([[{}]] * 5, dtype=object)},
        {"labels": np.zeros(1, int)},
        {"names": None},
    ],
)
def test_a_report_names_features_of_wrong_shapes(finished, tmp_path, change):
    shutil.copytree(finished / "train", tmp_path / "run")
    with np.load(tmp_path / "run" / BEFORE) as arrays:
        changed = {name: values for name, values in (dict(arrays) | change).items() if values is not None}
    np.savez(tmp_path / "run" / BEFORE, **changed)
    said = one_line("report", tmp_path / "run")
    assert said.startswith(f"itra-hf report: cannot read {tmp_path / 'run' / BEFORE}: ")


@pytest.mark.parametrize(
    "change",
    [
        None,
        "",
        "[]",
        {"runs": None},
        {"runs": [1]},
        {"runs": []},
        {"differences": {"accuracy": {}}},
        {"model": None},
        {"settings": None},
        {"warnings": 3},
    ],
)
def test_a_report_names_a_comparison_that_is_broken(finished, tmp_path, change):
    shutil.copytree(finished / "compare", tmp_path / "both")
    path = tmp_path / "both" / "comparison.json"
    text = path.read_text()
    if isinstance(change, dict):
        text = json.dumps({name: value for name, value in (json.loads(text) | change).items() if name != "model"})
        text = text if "model" in change else json.dumps(json.loads(path.read_text()) | change)
    path.write_text(text[:-20] if change is None else text if isinstance(change, dict) else change)
    assert one_line("report", tmp_path / "both").startswith(f"itra-hf report: cannot read {path}: ")


@pytest.mark.parametrize("name", [STATE, BEFORE])
def test_a_report_of_a_comparison_names_the_file_of_the_run_that_is_broken(finished, tmp_path, name):
    shutil.copytree(finished / "compare", tmp_path / "both")
    path = next((tmp_path / "both").glob("Trainer-*")) / name
    path = path if name == STATE else path.with_name("after.npz")
    path.write_text("")
    assert one_line("report", tmp_path / "both").startswith(f"itra-hf report: cannot read {path}: ")


def test_a_wrong_number_of_words_or_processes_is_one_line(tmp_path):
    assert "got 0 arguments; give one" in one_line("report")
    assert "num_processes=0 must be at least 1" in one_line("train", "--num_processes", "0")


@pytest.mark.parametrize("word", ["False", "false"])
def test_not_to_resume_can_be_said(word):
    given = ["--model_name_or_path", "x", "--train_file", "y.csv", "--resume_from_checkpoint", word]
    assert commands.parse("train", given)[-1].resume_from_checkpoint is None


def test_a_folder_that_may_not_be_written_is_named(finished, tmp_path, monkeypatch):
    shutil.copytree(finished / "train", tmp_path / "run")

    def refused(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_bytes", refused)
    assert "Permission denied: " in one_line("report", tmp_path / "run")
    assert str(tmp_path / "run") in one_line("report", tmp_path / "run")
