"""The examples on data sets and models as the Hub has them: a folder stands for each, so nothing is downloaded."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import tiny
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WORDS = ["[END]", "it", "is", "very", "good", "bad"]


def run(name: str, tmp_path: Path, *words: str) -> dict[str, float]:
    """Of the model in the folder `model` on the data in the folder `data`."""
    flags = ["--model_name_or_path", str(tmp_path / "model"), "--dataset_name", str(tmp_path / "data")]
    flags += ["--output_dir", str(tmp_path / "out"), "--disable_tqdm", "True", "--use_cpu"]
    return tiny.load_example(name).main([*flags, *words])


def save_texts(folder: Path, text: str, label: str, splits: tuple[str, ...]) -> None:
    """Forty rows for each split, in parquet files that know their classes."""
    moods = datasets.ClassLabel(names=["bad", "good"])
    texts = [f"it is {'very ' * (row % 4)}{moods.names[row % 2]}" for row in range(40)]
    for split in splits:
        rows = datasets.Dataset.from_dict({text: texts, label: [row % 2 for row in range(40)]})
        rows.cast_column(label, moods).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def save_tokenizer(folder: Path, **tokens: str) -> None:
    words = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="[END]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[END]", **tokens).save_pretrained(folder)


def test_text_of_other_columns(tmp_path):
    save_texts(tmp_path / "data", "utterance", "mood", ("train", "validation"))
    save_tokenizer(tmp_path / "model", pad_token="[END]")
    BertForSequenceClassification(BertConfig(vocab_size=6, **SIZES)).save_pretrained(tmp_path / "model")
    columns = ["--text_column", "utterance", "--label_column", "mood"]
    scores = run("text_classification", tmp_path, *columns, "--max_steps", "60", "--learning_rate", "0.02")
    assert scores["eval_accuracy"] == 1
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert (config.id2label, config.model_type) == ({0: "bad", 1: "good"}, "bert")


@pytest.mark.parametrize(("splits", "rows"), [(("train",), 8), (("train", "test"), 40)])
def test_a_fifth_is_held_out_where_no_split_is_for_it(tmp_path, splits, rows):
    save_texts(tmp_path / "data", "text", "label", splits)
    for name in ("text_classification", "lora_decoder"):
        example = tiny.load_example(name)
        train, test = example.load_splits(example.ScriptArguments(dataset_name=str(tmp_path / "data")), seed=0)
        assert (len(train), len(test)) == (40 if rows == 40 else 32, rows)


def test_the_yaml_of_the_examples_is_read_whole():
    example = tiny.load_example("text_classification")
    path = Path(example.__file__).with_suffix(".yaml")
    script, args = example.parse([str(path)])
    assert script.dataset_name == "legacy-datasets/banking77"
    assert (args.learning_rate, args.matching, args.output_dir) == (1e-4, "auto", "outputs/banking77")


def test_a_pretrained_model_starts_from_the_usual_defaults():
    for name in ("text_classification", "image_classification", "audio_classification", "lora_decoder"):
        parse = tiny.load_example(name).parse
        assert parse([])[1].max_steps > 0
        assert parse(["--model_name_or_path", "a"])[1].max_steps == -1
        assert parse(["--max_steps", "7"])[1].max_steps == 7


def test_images_of_any_size_and_mode(tmp_path):
    rng = np.random.default_rng(0)
    for shade, name in enumerate(("dark", "light")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for row in range(10):
            pixels = rng.integers(128 * shade, 128 * shade + 128, (20 + row, 20)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{row}.png")
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **SIZES)).save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "model")
    run("image_classification", tmp_path, "--max_steps", "2")
    config = AutoModelForImageClassification.from_pretrained(tmp_path / "out").config
    assert (config.id2label, config.image_size) == ({0: "dark", 1: "light"}, 16)


def test_sounds_of_another_rate(tmp_path, monkeypatch):
    """All of the Hub's way but the decoding of files, which takes torchcodec."""
    example = tiny.load_example("audio_classification")
    rates, asked = [], []
    decoded = {"array": datasets.Sequence(datasets.Value("float32"))}
    rng = np.random.default_rng(0)
    sounds = [{"array": rng.standard_normal(rng.integers(900, 2500))} for _ in range(40)]
    rows = datasets.Dataset.from_dict({"clip": sounds, "kind": [row % 2 for row in range(40)]})
    rows = rows.cast_column("kind", datasets.ClassLabel(names=["cat", "dog"]))
    monkeypatch.setattr(example, "Audio", lambda sampling_rate: rates.append(sampling_rate) or decoded)
    monkeypatch.setattr(example, "load_dataset", lambda *names: asked.append(names) or datasets.DatasetDict(train=rows))
    monkeypatch.setattr(tiny, "load_example", lambda name: example)
    shape = {"conv_dim": (8, 8), "conv_stride": (10, 8), "conv_kernel": (10, 8), "num_conv_pos_embeddings": 4}
    options = {**SIZES, **shape, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0}
    Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**options)).save_pretrained(tmp_path / "model")
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path / "model")
    columns = ["--audio_column", "clip", "--label_column", "kind", "--dataset_config_name", "small"]
    scores = run("audio_classification", tmp_path, *columns, "--max_steps", "2")
    assert (asked, rates) == ([(str(tmp_path / "data"), "small")], [8000])
    assert scores["eval_accuracy"] in {hits / 8 for hits in range(9)}  # a fifth of 40 rows was held out
    config = AutoModelForAudioClassification.from_pretrained(tmp_path / "out").config
    assert config.id2label == {0: "cat", 1: "dog"}


def test_a_decoder_without_a_padding_token(tmp_path):
    save_texts(tmp_path / "data", "text", "label", ("train",))
    save_tokenizer(tmp_path / "model", eos_token="[END]")
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=6, bos_token_id=None, eos_token_id=0)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "model")
    scores = run("lora_decoder", tmp_path, "--max_steps", "60", "--learning_rate", "0.02")
    assert scores["eval_accuracy"] == 1
    assert not (tmp_path / "out" / "base").exists()
