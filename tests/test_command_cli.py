"""The command `itra-hf` as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import folders
import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification, pipeline

from itra_hf.command import cli, commands
from itra_hf.config import MatchingArguments
from itra_hf.version import __version__

SHORT = ["--max_steps", "4", "--use_cpu", "--disable_tqdm", "True", "--learning_rate", "1e-3"]


def start(*argv):
    """The command in a process of its own, that can be killed with all it has started."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "itra_hf.command.cli", *argv]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)  # noqa: S603


def test_help_tells_the_commands_and_the_options(capsys):
    cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in ("train", "compare", "report"))
    cli.main(["compare", "--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name} " in shown for name in MatchingArguments.__dataclass_fields__)
    assert "--seeds " in shown
    assert max(map(len, shown.splitlines())) <= 120
    for command in ("report", "env"):  # which have no options
        cli.main([command, "--help"])
        assert len(capsys.readouterr().out.splitlines()) == 1
    with pytest.raises(SystemExit, match="'trian' is not a command; choose one of train, compare, report"):
        cli.main(["trian"])


def test_trains_on_texts_by_a_file_that_flags_override(tmp_path, capsys):
    data = {"model_name_or_path": folders.bert(tmp_path), "train_file": folders.pets(tmp_path)}
    config = {
        **data,
        "input_column": "text",
        "matching_weight": 2.0,
        "learning_rate": 1e-3,
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    cli.main(["train", str(tmp_path / "config.yaml"), *SHORT, "--matching_weight", "0.5"])
    out = tmp_path / "out"
    scores = json.loads((out / "eval_results.json").read_text())
    card = ModelCard.load(out / "README.md")
    assert "| matching_weight | 0.5 |" in card.text
    assert f"| accuracy | {scores['eval_accuracy']:.4f} |" in card.text
    assert str(tmp_path) not in str(card)
    assert card.data.pipeline_tag == "text-classification"
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert pipeline("text-classification", model=str(out))("the purr")[0]["label"] in folders.PETS
    cli.main(["train", str(tmp_path / "config.yaml"), *SHORT, "--max_steps", "6", "--save_steps", "2"])
    cli.main(["train", str(tmp_path / "config.yaml"), *SHORT, "--max_steps", "8", "--resume_from_checkpoint", "True"])
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 8


def test_trains_on_a_folder_of_images(tmp_path, capsys):
    data = ["--model_name_or_path", folders.vit(tmp_path), "--dataset_name", folders.stripes(tmp_path)]
    cli.main(["train", *data, *SHORT, "--logging_steps", "2", "--report", "--output_dir", str(tmp_path / "out")])
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "across", 1: "along", 2: "none"}
    assert "'matching_loss'" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| before training | " in card
    assert "| after 4 steps | " in card
    assert "](features.png)" in card
    assert (tmp_path / "out" / "features.png").exists()
    page = tmp_path / "out" / "report.html"
    page.unlink()
    cli.main(["report", str(tmp_path / "out")])
    assert page.exists()


@pytest.mark.parametrize("kind", ["one row of each class is held out", "numbers"])
def test_trains_compares_and_reports_where_compactness_cannot_be_measured(tmp_path, capsys, kind):
    rows = [f"{['purr', 'bark', 'egg'][row % 3]} a,{row % 10 if kind != 'numbers' else row / 7}" for row in range(50)]
    (tmp_path / "few.csv").write_text("\n".join(["text,label", *rows]))
    data = ["--model_name_or_path", folders.bert(tmp_path), "--train_file", str(tmp_path / "few.csv")]
    cli.main(["train", *data, *SHORT, "--report", "--output_dir", str(tmp_path / "out")])
    page = tmp_path / "out" / "report.html"
    assert page.exists()
    assert f"{page} shows it." in capsys.readouterr().out
    cli.main(["compare", *data, *SHORT, "--seeds", "2", "--output_dir", str(tmp_path / "both")])
    assert (tmp_path / "both" / "comparison.html").exists()


def test_what_the_user_has_to_mend_is_one_line(tmp_path):
    data = ["--model_name_or_path", folders.bert(tmp_path), "--train_file", folders.pets(tmp_path)]
    data += [*SHORT, "--output_dir", str(tmp_path / "out")]
    for argv, message in (
        (["train", "--matching", "clas"], "argument --matching: invalid choice: 'clas' .*; see --help"),
        (["train", *data, "--feature_layer", "9"], "feature_layer=9 is none of them"),
        (["compare", *data, "--feature_layer", "9"], "feature_layer=9 is none of them"),
        (["train", "--model_name_or_path", "x"], "give one of the two"),
        (["compare", "--seeds", "0", "--model_name_or_path", "x", "--train_file", "y.csv"], "seeds=0 must be"),
        (["train", "--model_name_or_path", "x", "--train_file", "y.csv", "--matching", "none"], "y.csv"),
    ):
        with pytest.raises(SystemExit, match=f"^itra-hf {argv[0]}: .*{message}") as ended:
            cli.main(argv)
        assert "\n" not in ended.value.code


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train_fiel: pets.csv", "config.yaml sets train_fiel, which is not an option that train takes from a file"),
        ("matching_weight: abc", "argument --matching_weight.*: invalid float value: 'abc'; see --help"),
        ("a: b: c", "config.yaml cannot be read as yaml; fix it: .* line 1, column 5"),
        ("train_file", "config.yaml holds no options; write one on each line"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(SystemExit, match=f"^itra-hf train: .*{message}") as ended:
        cli.main(["train", str(tmp_path / "config.yaml")])
    assert "\n" not in ended.value.code


def test_no_is_a_strategy_in_yaml_too(tmp_path):
    (tmp_path / "config.yaml").write_text("model_name_or_path: a\ntrain_file: b.csv\nsave_strategy: no\nreport: no\n")
    _, how, args = commands.parse("train", [str(tmp_path / "config.yaml")], commands.TrainArguments)
    assert args.save_strategy == "no"
    assert how.report is False


def test_two_processes_are_handed_over_to_accelerate(tmp_path):
    data = ["--model_name_or_path", folders.bert(tmp_path), "--train_file", folders.pets(tmp_path)]
    flags = ["--num_processes", "2", "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "out")]
    process = start("train", *data, *SHORT, "--logging_steps", "1", *flags)
    out, error = process.communicate(timeout=900)
    assert process.returncode == 0, error
    assert out.count("***** eval metrics *****") == 1  # of rank 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["epoch"] == pytest.approx(4 * 8 / 48)  # 8 rows a step, 4 on each rank
    assert all(entry["matching_loss"] > 0 for entry in state["log_history"] if "loss" in entry)


def test_a_killed_comparison_goes_on(tmp_path):
    data = ["--model_name_or_path", folders.bert(tmp_path), "--train_file", folders.pets(tmp_path)]
    argv = ["compare", *data, *SHORT, "--max_steps", "15", "--seeds", "2", "--output_dir", str(tmp_path / "out")]
    process = start(*argv)
    runs = tmp_path / "out" / "runs.jsonl"
    while process.poll() is None and not (runs.exists() and runs.read_text().count("\n") >= 2):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = runs.read_text().splitlines()
    assert 2 <= len(before) < 4
    process = start(*argv)
    out, error = process.communicate(timeout=900)
    assert process.returncode == 0, error
    assert runs.read_text().splitlines()[: len(before)] == before
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [(run["seed"], run["trainer"]) for run in result["runs"]] == [
        (seed, name) for seed in (42, 43) for name in ("Trainer", "ITRATrainer")
    ]
    assert result["sentence"] in out
    assert "95 % interval" in out
    assert (tmp_path / "out" / "comparison.html").exists()
    assert (tmp_path / "out" / "comparison.png").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("learning_rate", "nan"), ("weight_decay", "inf"), ("matching_weight", "nan")]
)
def test_an_option_that_is_no_number_is_refused_before_the_data_are_read(name, value):
    data = ["--model_name_or_path", "x", "--train_file", "y.csv"]
    with pytest.raises(SystemExit, match=f"^itra-hf train: {name}={value} (is not a number|must be finite)"):
        cli.main(["train", *data, f"--{name}", value])


def test_no_limit_is_infinite(tmp_path):
    data = ["--model_name_or_path", "x", "--train_file", "y.csv"]
    *_, args = commands.parse("train", [*data, "--max_grad_norm", "inf", "--matching_max_grad_ratio", "inf"])
    assert args.max_grad_norm == float("inf")
    assert args.matching_max_grad_ratio is None


def test_the_version_and_what_a_bug_report_needs(capsys, tmp_path):
    cli.main(["--version"])
    assert capsys.readouterr().out.strip() == __version__
    cli.main(["env"])
    shown = capsys.readouterr().out
    for name in ("itra_hf", "Python", "torch", "transformers", "accelerate", "GPUs"):
        assert f"{name} " in shown
    assert str(os.path.expanduser("~")) not in shown


def test_an_unknown_option_gets_the_nearest_known_one(tmp_path):
    data = ["--model_name_or_path", "x", "--train_file", "y.csv"]
    for words, message in (
        ([*data, "--matching_wieght", "1"], r"unknown option --matching_wieght; did you mean --matching_weight\?"),
        ([*data, "--lerning_rate=1"], r"unknown option --lerning_rate=1; did you mean --learning_rate\?"),
        ([*data, "y"], "unknown option y; see --help"),
    ):
        with pytest.raises(SystemExit, match=f"^itra-hf train: {message}"):
            cli.main(["train", *words])
    (tmp_path / "a.yaml").write_text("train_fiel: pets.csv")
    with pytest.raises(SystemExit, match=r"did you mean train_file\?"):
        cli.main(["train", str(tmp_path / "a.yaml")])


def test_debug_shows_the_traceback(tmp_path):
    data = ["--model_name_or_path", "x", "--train_file", str(tmp_path / "none.csv")]
    with pytest.raises(SystemExit, match=r"^itra-hf train: "):
        cli.main(["train", *data])
    for words in (["--debug", *data], [*data, "--debug"]):
        with pytest.raises(FileNotFoundError):
            cli.main(["train", *words])
    assert cli._without_debug(["--debug", "underflow_overflow"]) == (["--debug", "underflow_overflow"], False)


def test_ctrl_c_in_a_comparison_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    for command, more in (("compare", "; the same command goes on where it stopped"), ("train", "")):
        monkeypatch.setattr(commands, f"{command}_command", interrupted)
        with pytest.raises(SystemExit) as ended:
            cli.main([command])
        assert ended.value.code == 130
        assert capsys.readouterr().err == f"\nitra-hf {command}: interrupted{more}\n"


ALSO = ["--model_name_or_path", "x", "--train_file", "y.csv", "--seeds", "1"]


def arms_that_are_compared(monkeypatch, argv):
    """The values of two options in the further arms of a comparison, and the rows of a class."""
    found = []

    def compared(task, args, seeds, also, samples_per_class):
        found.append([(arm.label_smoothing_factor, arm.weight_decay) for arm in also])
        found.append(samples_per_class)
        raise ValueError("enough")

    monkeypatch.setattr(commands, "load_task", lambda data, seed: None)
    monkeypatch.setattr(commands, "compare", compared)
    with pytest.raises(SystemExit, match="enough"):
        cli.main(argv)
    return found


def test_compare_takes_further_arms_and_few_rows(monkeypatch, tmp_path):
    more = ["--also", "label_smoothing_factor=0.1", "--also", "weight_decay=0.5", "--samples_per_class", "5"]
    assert arms_that_are_compared(monkeypatch, ["compare", *ALSO, *more]) == [[(0.1, 0.0), (0.0, 0.5)], 5]
    (tmp_path / "config.yaml").write_text("also: label_smoothing_factor=0.1\nsamples_per_class: 5\n")
    assert arms_that_are_compared(monkeypatch, ["compare", str(tmp_path / "config.yaml"), *ALSO]) == [[(0.1, 0.0)], 5]
    (tmp_path / "config.yaml").write_text("also: [label_smoothing_factor=0.1, weight_decay=0.5]\n")
    found = arms_that_are_compared(monkeypatch, ["compare", str(tmp_path / "config.yaml"), *ALSO])
    assert found == [[(0.1, 0.0), (0.0, 0.5)], None]
    (tmp_path / "config.yaml").write_text("also: label_smoothing_factor=0.1\n")
    argv = ["compare", str(tmp_path / "config.yaml"), *ALSO, "--also", "weight_decay=-1e-3"]
    assert arms_that_are_compared(monkeypatch, argv) == [[(0.1, 0.0), (0.0, -1e-3)], None]
    (tmp_path / "config.yaml").write_text("also:\n  - label_smoothing_factor: 0.1\n")
    with pytest.raises(SystemExit, match="sets also to a list of other things than words"):
        cli.main(["compare", str(tmp_path / "config.yaml"), *ALSO])


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (
            "label_smoothing=0.1",
            "also='label_smoothing=0.1' is not an option of a run with its value; did you mean label_s",
        ),
        ("max_length=5", "also='max_length=5' is not an option of a run"),
        ("seed=5", "also='seed=5' is not an option of a run"),
        ("output_dir=x", "also='output_dir=x' is not an option of a run"),
        ("bf16=true", "a further arm (also) changes bf16, which holds for a whole process"),
        ("weight_decay", "also='weight_decay' is not an option of a run"),
        ("weight_decay=much", "argument --weight_decay/--weight-decay: invalid float value: 'much'"),
        ("weight_decay=nan", "weight_decay=nan is not a number"),
    ],
)
def test_a_further_arm_that_cannot_be_is_refused_before_the_data_are_read(monkeypatch, option, told):
    monkeypatch.setattr(commands, "load_task", lambda data, seed: pytest.fail("the data were read"))
    with pytest.raises(SystemExit, match=f"itra-hf compare: {re.escape(told)}"):
        cli.main(["compare", *ALSO, "--also", option])


def test_the_number_of_rows_of_a_class_is_checked():
    with pytest.raises(SystemExit, match="samples_per_class=0 must be at least 1"):
        cli.main(["compare", *ALSO, "--samples_per_class", "0"])


def test_help_does_not_wait_for_trainer():
    """Measured by what is imported; `itra-hf --help` took 5.5 seconds with transformers, and takes 0.1 without."""
    code = "import sys; from itra_hf.command import cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # noqa: S603
    assert done.returncode == 0
    assert "Commands:" in done.stdout
