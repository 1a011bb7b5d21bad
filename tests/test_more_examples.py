"""The audio, the LoRA and the compare example, run from beginning to end on tiny models and data, offline."""

import json
from types import ModuleType

import datasets
import numpy as np
import pytest
import tiny
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

QUIET = ["--disable_tqdm", "True", "--logging_steps", "5"]


@pytest.fixture(scope="module")
def audio() -> ModuleType:
    return tiny.load_example("audio_classification")


@pytest.fixture(scope="module")
def lora() -> ModuleType:
    return tiny.load_example("lora_decoder")


class TestAudioClassification:
    SMALL = ("--train_size", "96", "--test_size", "24", *QUIET)

    def test_learns_and_saves_a_model_that_names_the_sounds(self, audio, tmp_path, capsys):
        scores = audio.main([*self.SMALL, "--test_size", "96", "--max_steps", "120", "--output_dir", str(tmp_path)])
        assert scores["eval_accuracy"] > 0.3  # chance is 1/6
        model, extractor = (
            AutoModelForAudioClassification.from_pretrained(tmp_path),
            AutoFeatureExtractor.from_pretrained(tmp_path),
        )
        assert tuple(model.config.id2label.values()) == audio.SOUNDS
        clip = audio.sound("rising", np.random.default_rng(0))
        assert model(**extractor(clip, sampling_rate=16_000, return_tensors="pt")).logits.shape == (1, 6)
        assert "In-Training Representation Alignment" in (tmp_path / "README.md").read_text()
        printed = capsys.readouterr().out
        assert f"Test accuracy {scores['eval_accuracy']:.2%}, matching='auto'" in printed
        assert f"Loaded again, it scores the same {scores['eval_accuracy']:.2%}" in printed
        assert "'matching_loss': " in printed

    def test_matching_none_is_the_run_of_trainer(self, audio, tmp_path, monkeypatch):
        flags = [*self.SMALL, "--max_steps", "4", "--output_dir", str(tmp_path)]
        none, itra = (audio.main([*flags, "--matching", form])["eval_loss"] for form in ("none", "marginal"))
        monkeypatch.setattr(audio, "ITRATrainer", Trainer)
        assert audio.main(flags)["eval_loss"] == none != itra

    def test_a_model_that_changed_on_disk_is_noticed(self, audio, tmp_path, monkeypatch):
        def load_other(folder):
            model = AutoModelForAudioClassification.from_pretrained(folder)
            torch.nn.init.zeros_(model.classifier.dense.weight)
            return model

        monkeypatch.setattr(audio, "AutoModelForAudioClassification", type("", (), {"from_pretrained": load_other}))
        with pytest.raises(RuntimeError, match=r"scores .*%, not .*%"):
            audio.main([*self.SMALL, "--max_steps", "60", "--output_dir", str(tmp_path)])

    def test_each_class_sounds_as_it_is_called(self, audio):
        rng = np.random.default_rng(0)
        pitch = {}
        for kind in ("rising", "falling"):
            clip = np.mean([np.abs(np.fft.rfft(audio.sound(kind, rng).reshape(2, -1), axis=1)) for _ in range(50)], 0)
            pitch[kind] = (clip * np.arange(clip.shape[1])).sum(1) / clip.sum(1)
        assert pitch["rising"][0] < pitch["rising"][1]
        assert pitch["falling"][0] > pitch["falling"][1]

    def test_own_data_and_own_model(self, audio, tmp_path, monkeypatch):
        """All of the Hub's way but the decoding of files, which takes torchcodec."""
        rates = []

        def decoded(sampling_rate):
            rates.append(sampling_rate)
            return {"array": datasets.Sequence(datasets.Value("float32")), "path": datasets.Value("string")}

        rng = np.random.default_rng(0)
        sounds = [{"array": rng.standard_normal(rng.integers(900, 2500)), "path": None} for _ in range(40)]
        rows = datasets.Dataset.from_dict({"clip": sounds, "kind": ["cat", "dog"] * 20})
        asked = []
        monkeypatch.setattr(audio, "Audio", decoded)
        monkeypatch.setattr(
            audio, "load_dataset", lambda *names: asked.append(names) or datasets.DatasetDict(train=rows)
        )
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        shape = {"conv_dim": (8, 8), "conv_stride": (10, 8), "conv_kernel": (10, 8), "num_conv_pos_embeddings": 4}
        options = {**sizes, **shape, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0}
        Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**options)).save_pretrained(tmp_path / "model")
        Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path / "model")
        flags = ["--dataset_name", "animals", "--dataset_config_name", "small", "--audio_column", "clip"]
        flags += ["--label_column", "kind", "--max_seconds", "0.2", "--model_name_or_path", str(tmp_path / "model")]
        scores = audio.main([*flags, *QUIET, "--max_steps", "2", "--output_dir", str(tmp_path / "out")])
        assert asked == [("animals", "small")]
        assert rates == [8000]
        assert scores["eval_accuracy"] in {hits / 8 for hits in range(9)}  # a fifth of 40 rows was held out
        config = AutoModelForAudioClassification.from_pretrained(tmp_path / "out").config
        assert config.id2label == {0: "cat", 1: "dog"}
        with pytest.raises(ValueError, match="no column 'sound'; the data has clip, kind"):
            audio.main([*flags, "--audio_column", "sound"])

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--dataset_name", "a"], "dataset_name='a' and model_name_or_path=None; give both"),
            (["--model_name_or_path", "a"], "dataset_name=None and model_name_or_path='a'; give both"),
            (["--max_seconds", "0"], "max_seconds=0.0 must be positive"),
            (["--train_size", "5"], "train_size=5 must be at least 6"),
        ],
    )
    def test_arguments_that_do_not_fit(self, audio, flags, message):
        with pytest.raises(ValueError, match=message):
            audio.main(flags)


class TestLoraDecoder:
    def test_learns_and_saves_adapters_and_head_alone(self, lora, tmp_path, capsys):
        scores = lora.main([*QUIET, "--max_steps", "60", "--lora_r", "3", "--output_dir", str(tmp_path)])
        assert scores["eval_accuracy"] > 0.5  # chance is 1/8
        saved = load_file(tmp_path / "adapter_model.safetensors")
        assert {name.split(".")[-2] for name in saved} == {"lora_A", "lora_B", "score"}
        labels = dict(enumerate(lora.INTENTS))
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", id2label=labels)
        model, tokenizer = PeftModel.from_pretrained(base, tmp_path), AutoTokenizer.from_pretrained(tmp_path)
        test = lora.synthetic(80, np.random.default_rng(1))
        with torch.no_grad():
            logits = model.eval()(**tokenizer(test["text"][:], padding=True, return_tensors="pt")).logits
        hits = (logits.argmax(-1) == torch.tensor(test["label"][:])).float().mean()
        assert hits == pytest.approx(scores["eval_accuracy"], abs=0.15)
        assert "In-Training Representation Alignment" in (tmp_path / "README.md").read_text()
        printed = capsys.readouterr().out
        assert f"Test accuracy {scores['eval_accuracy']:.2%}, matching='auto'" in printed
        assert "Loaded again, they predict the same" in printed
        assert "'matching_loss': " in printed

    def test_matching_none_is_the_run_of_trainer(self, lora, tmp_path, monkeypatch):
        flags = [*QUIET, "--max_steps", "4", "--output_dir", str(tmp_path)]
        none, itra = (lora.main([*flags, "--matching", form])["eval_loss"] for form in ("none", "marginal"))
        monkeypatch.setattr(lora, "ITRATrainer", Trainer)
        assert lora.main(flags)["eval_loss"] == none != itra

    def test_adapters_that_changed_on_disk_are_noticed(self, lora, tmp_path, monkeypatch):
        def save_other(trainer, options):
            trainer.save_model()
            path = tmp_path / "adapter_model.safetensors"
            save_file({name: 2 * value for name, value in load_file(path).items()}, path)

        monkeypatch.setattr(lora, "save", save_other)
        with pytest.raises(RuntimeError, match="predict otherwise than before: logits differ by"):
            lora.main([*QUIET, "--max_steps", "4", "--output_dir", str(tmp_path)])

    def test_own_data_and_own_decoder_without_a_padding_token(self, lora, tmp_path):
        (tmp_path / "data").mkdir()
        rows = "".join(f"it is {'very ' * (i % 4)}{name},{name}\n" for i in range(20) for name in ("bad", "good"))
        (tmp_path / "data" / "train.csv").write_text("line,mood\n" + rows)
        words = {word: i for i, word in enumerate(["<end>", "it", "is", "very", "good", "bad"])}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<end>")
        fast.save_pretrained(tmp_path / "model")
        tokens = {"vocab_size": len(words), "bos_token_id": None, "eos_token_id": 0}
        config = GPT2Config(n_embd=16, n_layer=1, n_head=2, **tokens)
        GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "model")
        flags = ["--dataset_name", str(tmp_path / "data"), "--model_name_or_path", str(tmp_path / "model")]
        flags += ["--text_column", "line", "--label_column", "mood", "--output_dir", str(tmp_path / "out")]
        scores = lora.main([*flags, *QUIET, "--max_steps", "40", "--learning_rate", "0.02"])
        assert scores["eval_accuracy"] == 1
        assert not (tmp_path / "out" / "base").exists()
        with pytest.raises(ValueError, match="no column 'text'; the data has line, mood"):
            lora.main([*flags, "--text_column", "text"])

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--dataset_name", "a"], "dataset_name='a' and model_name_or_path=None; give both"),
            (["--model_name_or_path", "a"], "dataset_name=None and model_name_or_path='a'; give both"),
            (["--lora_r", "0"], "lora_r=0 must be at least 1"),
            (["--train_size", "7"], "train_size=7 must be at least 8"),
        ],
    )
    def test_arguments_that_do_not_fit(self, lora, flags, message):
        with pytest.raises(ValueError, match=message):
            lora.main(flags)


class TestCompare:
    def test_writes_the_report_of_paired_seeds(self, tmp_path, capsys):
        short = ["--max_steps", "4", "--eval_steps", "2", "--logging_steps", "2", "--train_size", "40", "--seeds", "2"]
        page = tiny.load_example("compare").main(["--output_dir", str(tmp_path), *short, "--use_cpu", *QUIET])
        result = json.loads((tmp_path / "comparison.json").read_text())
        assert [(run["seed"], run["trainer"]) for run in result["runs"]] == [
            (seed, trainer) for seed in (42, 43) for trainer in ("Trainer", "ITRATrainer")
        ]
        assert result["differences"]["accuracy"]["seeds"] == [42, 43]
        assert page == tmp_path / "comparison.html"
        assert result["sentence"] in page.read_text()
        assert result["sentence"] in capsys.readouterr().out
        assert (tmp_path / "comparison.png").stat().st_size > 10_000
