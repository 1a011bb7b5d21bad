"""The examples, run from beginning to end without the internet, as a user runs them without arguments."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
)

NAMES = ["text_classification", "image_classification", "audio_classification", "lora_decoder"]
QUIET = ["--disable_tqdm", "True", "--use_cpu", "--per_device_eval_batch_size", "128"]


def run(name: str, folder: Path, *words: str) -> dict[str, float]:
    return tiny.load_example(name).main([*QUIET, "--output_dir", str(folder), *words])


@pytest.mark.parametrize("name", NAMES)
def test_matching_none_is_the_run_of_trainer(name, tmp_path, monkeypatch):
    example = tiny.load_example(name)
    monkeypatch.setattr(example, "ITRADiagnosticsCallback", TrainerCallback, raising=False)  # takes long
    flags = [*QUIET, "--max_steps", "4", "--output_dir", str(tmp_path)]
    none, itra = (example.main([*flags, "--matching", form])["eval_loss"] for form in ("none", "marginal"))
    monkeypatch.setattr(example, "ITRATrainer", Trainer)
    assert example.main(flags)["eval_loss"] == none != itra


def check_saved(folder: Path, scores: dict[str, float], printed: str) -> None:
    """The card has the score that the script printed, and the log what the matching did."""
    card = (folder / "README.md").read_text()
    assert "In-Training Representation Alignment" in card
    assert f"value: {scores['eval_accuracy']}" in card
    assert f"Accuracy {scores['eval_accuracy']:.2%}" in printed
    assert "'matching_loss': " in printed


def test_text_learns_and_saves_a_model_that_names_the_libraries(tmp_path, capsys):
    scores = run("text_classification", tmp_path, "--max_steps", "120")
    assert scores["eval_accuracy"] > 0.5  # the largest class has a third of the rows
    model, tokenizer = (cls.from_pretrained(tmp_path) for cls in (AutoModelForSequenceClassification, AutoTokenizer))
    with torch.no_grad():
        logits = model(**tokenizer("A Cauchy continuous random variable.", return_tensors="pt")).logits
    assert model.config.id2label[int(logits.argmax())] == "scipy.stats"
    check_saved(tmp_path, scores, capsys.readouterr().out)


def test_image_learns_and_saves_a_model_and_a_report(tmp_path, capsys):
    scores = run("image_classification", tmp_path, "--max_steps", "150")
    assert scores["eval_accuracy"] > 0.5  # chance is 1/10
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert model.config.id2label == {digit: str(digit) for digit in range(10)}
    rows = tiny.load_example("image_classification").digits().select(range(300))
    pictures = [row["image"].convert("RGB") for row in rows]
    with torch.no_grad():
        logits = model(**AutoImageProcessor.from_pretrained(tmp_path)(pictures, return_tensors="pt")).logits
    assert np.mean(logits.argmax(-1).numpy() == rows["labels"][:]) == pytest.approx(scores["eval_accuracy"], abs=0.1)
    assert "scatter" in (tmp_path / "report.html").read_text()
    assert "features.png" in (tmp_path / "README.md").read_text()
    check_saved(tmp_path, scores, capsys.readouterr().out)


def test_audio_learns_and_saves_a_model_that_names_the_sounds(tmp_path, capsys):
    scores = run("audio_classification", tmp_path, "--max_steps", "100")
    assert scores["eval_accuracy"] > 0.6  # chance is 1/3
    model, extractor = (
        cls.from_pretrained(tmp_path) for cls in (AutoModelForAudioClassification, AutoFeatureExtractor)
    )
    assert list(model.config.id2label.values()) == ["steady", "rising", "falling"]
    clips = [np.asarray(row["audio"]["array"]) for row in tiny.load_example("audio_classification").sounds(60, seed=9)]
    with torch.no_grad():
        logits = model(**extractor(clips, sampling_rate=16_000, return_tensors="pt")).logits
    hits = float((logits.argmax(-1) == torch.arange(60) % 3).float().mean())
    assert hits == pytest.approx(scores["eval_accuracy"], abs=0.2)
    check_saved(tmp_path, scores, capsys.readouterr().out)


def test_the_pitch_of_a_sound_moves_as_its_class_says():
    rows = tiny.load_example("audio_classification").sounds(150, seed=0)
    halves = np.abs(np.fft.rfft(np.asarray([row["array"] for row in rows["audio"][:]]).reshape(150, 2, -1)))
    pitch = (halves**2).argmax(-1)  # of the first and of the second half
    moved = [np.median((pitch[:, 1] - pitch[:, 0])[kind::3]) for kind in range(3)]
    assert moved[2] < moved[0] < moved[1]


def test_lora_saves_adapters_and_head_that_load_again(tmp_path, capsys):
    scores = run("lora_decoder", tmp_path, "--max_steps", "100")
    assert scores["eval_accuracy"] > 0.75  # chance is 1/4, and 1/2 for one of the two things
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in saved} == {"lora_A", "lora_B", "score"}
    model = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=4).eval()
    test = tiny.load_example("lora_decoder").requests(480, seed=43)  # what it evaluates on
    with torch.no_grad():
        logits = model(**AutoTokenizer.from_pretrained(tmp_path)(test["text"][:], padding=True, return_tensors="pt"))
    hits = (logits.logits.argmax(-1) == torch.tensor(test["label"][:])).float().mean()
    assert float(hits) == pytest.approx(scores["eval_accuracy"], abs=0.01)
    check_saved(tmp_path, scores, capsys.readouterr().out)


class TestCompare:
    def test_writes_the_report_of_paired_seeds(self, tmp_path, capsys):
        short = ["--max_steps", "4", "--eval_steps", "2", "--logging_steps", "2", "--train_size", "40", "--seeds", "2"]
        threads = torch.get_num_threads()
        page = tiny.load_example("compare").main(["--output_dir", str(tmp_path), *short, *QUIET])
        torch.set_num_threads(threads)
        result = json.loads((tmp_path / "comparison.json").read_text())
        assert [(run["seed"], run["trainer"]) for run in result["runs"]] == [
            (seed, trainer) for seed in (42, 43) for trainer in ("Trainer", "ITRATrainer")
        ]
        assert page == tmp_path / "comparison.html"
        assert result["sentence"] in page.read_text()
        printed = capsys.readouterr().out
        assert result["sentence"] in printed
        first = [f"{run['metrics']['accuracy']:.2%}" for run in result["runs"][:2]]
        assert ["seed", "42", *first] in [line.split() for line in printed.splitlines()]
        assert f"The report is {page}, its picture {tmp_path / 'comparison.png'}." in printed
        assert (tmp_path / "comparison.png").stat().st_size > 10_000

    def test_counts_the_seeds_that_itra_won(self):
        scores = {0: (0.5, 0.75), 1: (0.5, 0.25), 2: (0.25, 0.5)}
        runs = [
            {"seed": seed, "trainer": name, "metrics": {"accuracy": value}}
            for seed, pair in scores.items()
            for name, value in zip(("Trainer", "ITRATrainer"), pair, strict=True)
        ]
        by_seed = tiny.load_example("compare").by_seed
        assert by_seed(runs).endswith("ITRATrainer won 2 of 3 seeds.")
        runs[5]["metrics"]["accuracy"] = 0.25
        assert by_seed(runs).endswith("ITRATrainer won 1 of 3 seeds; 1 ended equal.")
