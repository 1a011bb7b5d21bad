"""The examples, run from beginning to end on tiny models and data, without the internet."""

import csv
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tiny
import torch
import yaml
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

CLASSES = ["complaint", "praise", "question"]


@pytest.fixture(scope="module")
def images() -> ModuleType:
    return tiny.load_example("image_classification")


@pytest.fixture(scope="module")
def texts() -> ModuleType:
    return tiny.load_example("text_classification")


@pytest.fixture
def threads():
    """The demo sets the number of threads; set it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
class TestImageClassification:
    def test_demo_from_end_to_end(self, images, tmp_path, capsys):
        flags = "--train_size 60 --max_steps 12 --logging_steps 6 --disable_tqdm True"
        plain, itra = images.main([*flags.split(), "--output_dir", str(tmp_path)])
        assert plain["features"].shape == itra["features"].shape == (1737, 64)
        assert not np.array_equal(plain["features"], itra["features"])

        loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
        assert loaded.config.id2label == {digit: str(digit) for digit in range(10)}
        processor = AutoImageProcessor.from_pretrained(tmp_path)
        scan = np.zeros((8, 8, 1), np.uint8)
        assert loaded(**processor(scan, return_tensors="pt")).logits.shape == (1, 10)
        with Image.open(tmp_path / "features.png") as picture:
            assert picture.width > picture.height > 400
        assert "In-Training Representation Alignment" in (tmp_path / "README.md").read_text()

        printed = capsys.readouterr().out
        for row, name in ((plain, "Trainer"), (itra, "ITRATrainer")):
            line = next(line.split() for line in printed.splitlines() if line.startswith(f"{name} ") and "%" in line)
            assert line[1:4] == [f"{row['accuracy']:.2%}", f"{row['loss']:.4f}", f"{row['scatter']:.4f}"]
        assert "One seed proves nothing" in printed

    def test_weight_zero_is_trainer_so_both_start_alike(self, images, tmp_path):
        flags = "--train_size 60 --max_steps 3 --matching_weight 0 --disable_tqdm True"
        plain, itra = images.main([*flags.split(), "--output_dir", str(tmp_path)])
        assert np.array_equal(plain["features"], itra["features"])

    def test_a_model_that_changed_on_disk_is_noticed(self, images, tmp_path, monkeypatch):
        def load_other(folder):
            torch.manual_seed(1)
            return ViTForImageClassification(AutoModelForImageClassification.from_pretrained(folder).config)

        monkeypatch.setattr(images, "AutoModelForImageClassification", type("", (), {"from_pretrained": load_other}))
        flags = "--train_size 60 --max_steps 12 --disable_tqdm True"
        with pytest.raises(RuntimeError, match="but scored"):
            images.main([*flags.split(), "--output_dir", str(tmp_path)])

    @pytest.mark.parametrize("with_test", [True, False])
    def test_own_folder_of_images_and_own_model(self, images, tmp_path, with_test):
        rng = np.random.default_rng(0)
        for split in ("train", "test"):
            for shade, name in enumerate(("dark", "light")):
                (tmp_path / split / name).mkdir(parents=True)
                for number in range(10):
                    pixels = rng.integers(128 * shade, 128 * shade + 128, (20, 20, 3)).astype(np.uint8)
                    Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "vit")
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
        flags = ["--train_dir", str(tmp_path / "train"), "--model_name_or_path", str(tmp_path / "vit")]
        flags += ["--test_dir", str(tmp_path / "test")] if with_test else []
        _, itra = images.main([*flags, "--max_steps", "2", "--output_dir", str(tmp_path / "out")])
        assert len(itra["labels"]) == (20 if with_test else 4)
        config = AutoModelForImageClassification.from_pretrained(tmp_path / "out").config
        assert config.id2label == {0: "dark", 1: "light"}

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--train_dir", "a", "--dataset_name", "b"], "both train_dir='a' and dataset_name='b'"),
            (["--dataset_name", "b", "--test_dir", "c"], "test_dir='c' goes with train_dir, not with dataset_name='b'"),
            (["--train_dir", "a"], "a needs a model; give --model_name_or_path"),
            (["--model_name_or_path", "a"], "need --train_dir or --dataset_name"),
        ],
    )
    def test_arguments_that_do_not_fit(self, images, flags, message):
        with pytest.raises(ValueError, match=message):
            images.main(flags)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A folder with a random BERT and a tokenizer that knows a dozen words."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", *CLASSES, "it", "is", "a", "very", "long", "text"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with `train.csv`, `dev.tsv` and `test.jsonl`, the last one without labels."""
    folder = tmp_path_factory.mktemp("data")
    rows = [(f"it is a {'very ' * (i % 3)}{CLASSES[i % 3]}", CLASSES[i % 3]) for i in range(48)]
    for name, delimiter in (("train.csv", ","), ("dev.tsv", "\t")):
        with open(folder / name, "w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([("utterance", "intent"), *rows])
    (folder / "test.jsonl").write_text("".join(json.dumps({"utterance": text}) + "\n" for text, _ in rows))
    return folder


@pytest.fixture
def options(bert, data, tmp_path) -> dict:
    return {
        "model_name_or_path": str(bert),
        "train_file": str(data / "train.csv"),
        "validation_file": str(data / "dev.tsv"),
        "text_column": "utterance",
        "label_column": "intent",
        "output_dir": str(tmp_path / "out"),
        "max_steps": 4,
        "learning_rate": 0.02,
        "disable_tqdm": True,
    }


def flags(options: dict) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


class TestTextClassification:
    def test_learns_and_saves_a_model_with_its_labels(self, texts, options):
        scores = texts.main(flags(options | {"max_steps": 60}))
        assert scores["eval_accuracy"] == scores["eval_macro_f1"] == 1
        out = Path(options["output_dir"])
        model, tokenizer = AutoModelForSequenceClassification.from_pretrained(out), AutoTokenizer.from_pretrained(out)
        logits = model(**tokenizer("it is a very praise", return_tensors="pt")).logits
        assert model.config.id2label[int(logits.argmax())] == "praise"
        assert {"train_results.json", "eval_results.json", "trainer_state.json", "README.md"} <= names_in(out)

    def test_lora_trains_adapters_and_head_alone(self, texts, options, bert):
        out = Path(options["output_dir"])
        lora = ["--use_lora", "--lora_r", "3", "--lora_target_modules", "query", "value"]
        scores = texts.main([*flags(options | {"max_steps": 60, "eval_strategy": "no"}), *lora])
        saved = load_file(out / "adapter_model.safetensors")
        assert {name.split(".")[-2] for name in saved} == {"lora_A", "lora_B", "classifier"}
        config = AutoConfig.from_pretrained(out, subfolder="base_config")
        base = AutoModelForSequenceClassification.from_pretrained(bert, config=config, ignore_mismatched_sizes=True)
        loaded, tokenizer = PeftModel.from_pretrained(base, out).eval(), AutoTokenizer.from_pretrained(out)
        assert loaded.config.id2label == dict(enumerate(CLASSES))
        rows = texts.load_splits(texts.parse(flags(options))[1])["validation"]
        inputs = tokenizer(rows["text"][:], padding=True, return_tensors="pt")
        loss = loaded(**inputs, labels=torch.tensor(rows["label"][:])).loss.item()
        assert loss == pytest.approx(scores["eval_loss"], rel=1e-4)
        again = {name: options[name] for name in ("train_file", "validation_file", "text_column", "label_column")}
        again |= {"model_name_or_path": str(out), "output_dir": str(out / "again")}
        assert texts.main([*flags(again), "--do_eval"])["eval_loss"] == pytest.approx(scores["eval_loss"], rel=1e-4)

    def test_yaml_stands_in_for_flags_and_flags_override_it(self, texts, options, tmp_path):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(options | {"matching": "marginal"}) + "weight_decay: 1e-3\n")
        _, data_args, args = texts.parse([str(path), "--max_steps", "2"])
        assert (args.matching, args.max_steps, args.weight_decay) == ("marginal", 2, 1e-3)
        assert data_args.text_column == "utterance"
        scores = texts.main([str(path), "--max_steps", "2"])
        assert 0 <= scores["eval_accuracy"] <= 1

    def test_yaml_with_an_unknown_name_is_refused(self, texts, tmp_path):
        path = tmp_path / "config.yaml"
        path.write_text("matching: none\nmatching_wieght: 2\n")
        with pytest.raises(ValueError, match="sets matching_wieght, which is no argument"):
            texts.main([str(path)])

    def test_the_yaml_of_the_examples_is_valid(self, texts):
        model_args, data_args, args = texts.parse([str(Path(texts.__file__).with_suffix(".yaml"))])
        assert model_args.model_name_or_path
        assert data_args.dataset_name
        assert args.learning_rate == 1e-4

    def test_predict_alone_writes_the_label_names(self, texts, options, data):
        texts.main(flags(options | {"max_steps": 60}))
        again = {name: options[name] for name in ("train_file", "text_column", "label_column", "output_dir")}
        again |= {"model_name_or_path": options["output_dir"], "test_file": str(data / "test.jsonl")}
        texts.main([*flags(again), "--do_predict"])
        lines = (Path(options["output_dir"]) / "predict_results.txt").read_text().splitlines()
        assert lines == ["index\tprediction", *(f"{i}\t{CLASSES[i % 3]}" for i in range(48))]

    def test_resume_goes_on_where_the_checkpoint_ends(self, texts, options, monkeypatch):
        tiny.needs_transformers("5.6", "it saves a loaded BERT's LayerNorms by old names, which Trainer does not find")
        steps = []

        class CountingTrainer(texts.ITRATrainer):
            def training_step(self, *args, **kwargs):
                steps.append(self.state.global_step)
                return super().training_step(*args, **kwargs)

        monkeypatch.setattr(texts, "ITRATrainer", CountingTrainer)
        words, out = flags(options | {"save_steps": 2}), Path(options["output_dir"])
        texts.main(words)
        whole = load_file(out / "model.safetensors")
        texts.main([*words, "--resume_from_checkpoint", str(out / "checkpoint-2")])
        resumed = load_file(out / "model.safetensors")
        assert steps == [0, 1, 2, 3, 2, 3]
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    def test_few_shot_rows_are_balanced_and_seeded(self, texts, options):
        _, data_args, _ = texts.parse([*flags(options), "--samples_per_class", "5"])
        train = texts.load_splits(data_args)["train"]
        chosen = texts.choose_rows(train, data_args, seed=0)
        assert np.bincount(chosen["label"]).tolist() == [5, 5, 5]
        assert chosen["text"][:] == texts.choose_rows(train, data_args, seed=0)["text"][:]
        assert chosen["label"][:] != texts.choose_rows(train, data_args, seed=1)["label"][:]
        data_args.max_train_samples = 7
        assert len(texts.choose_rows(train, data_args, seed=0)) == 7

    def test_number_labels_keep_their_order(self, texts, options, tmp_path):
        path = tmp_path / "numbers.csv"
        path.write_text("utterance,intent\n" + "".join(f"it is {i},{i}\n" for i in (2, 10, 1)))
        _, data_args, _ = texts.parse(flags(options | {"train_file": path, "validation_file": path}))
        train = texts.load_splits(data_args)["train"]
        assert train.features["label"].names == ["1", "2", "10"]
        assert train["label"][:] == [1, 2, 0]

    def test_truth_values_are_classes(self, texts, options, tmp_path):
        path = tmp_path / "truth.csv"
        path.write_text("utterance,intent\nit is,True\nis it,False\nit,True\n")
        _, data_args, _ = texts.parse(flags(options | {"train_file": path, "validation_file": path}))
        train = texts.load_splits(data_args)["train"]
        assert [train.features["label"].int2str(label) for label in train["label"][:]] == ["true", "false", "true"]

    def test_missing_labels_are_an_error_but_for_a_test_split(self, texts, options, tmp_path):
        path = tmp_path / "gaps.jsonl"
        path.write_text('{"utterance": "it is", "intent": "praise"}\n{"utterance": "is it", "intent": null}\n')
        data_args = texts.parse(flags(options | {"test_file": path}))[1]
        assert texts.load_splits(data_args)["test"].column_names == ["text"]
        for split in ("train", "validation"):
            with pytest.raises(ValueError, match=f"1 of the 2 {split} rows have no label; take them out"):
                texts.load_splits(texts.parse(flags(options | {f"{split}_file": path}))[1])

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"text_column": "sentence"}, "no column 'sentence' in the train data; it has utterance, intent"),
            ({"label_column": "class"}, "no column 'class' in the train data; it has utterance, intent"),
            ({"train_file": "rows.parquet"}, r"cannot read rows.parquet; give a file that ends in .csv, .tsv"),
            ({"samples_per_class": 0}, "samples_per_class=0 must be at least 1"),
            ({"dataset_name": "b"}, "give one of the two"),
            ({"dataset_name": "b", "train_file": ""}, "validation_file=.* goes with train_file, .*dataset_name='b'"),
            ({"dataset_name": "b", "train_file": "", "validation_file": "", "test_file": "c"}, "test_file='c' goes"),
            ({"dataset_config_name": "c"}, "dataset_config_name='c' goes with dataset_name, not with train_file="),
            ({"model_name_or_path": ""}, "give --model_name_or_path"),
        ],
    )
    def test_arguments_that_do_not_fit(self, texts, options, changes, message):
        with pytest.raises(ValueError, match=message):
            texts.main(flags(options | changes))

    def test_evaluation_alone_without_data_names_the_flag(self, texts, options):
        del options["validation_file"]
        with pytest.raises(ValueError, match="give --validation_file"):
            texts.main([*flags(options), "--do_eval"])

    def test_training_without_validation_data_holds_out_a_fifth(self, texts, options):
        del options["validation_file"]
        texts.main(flags(options))
        results = json.loads(Path(options["output_dir"], "all_results.json").read_text())
        steps = json.loads(Path(options["output_dir"], "trainer_state.json").read_text())
        assert "eval_loss" in results
        assert steps["epoch"] == pytest.approx(4 / 5)  # 38 of the 48 rows, 8 in a batch
        rows = texts.load_splits(texts.parse(flags(options))[1])["train"]
        held_out = texts.hold_out(rows, seed=0)["validation"]
        assert np.bincount(held_out["label"]).min() >= 3
        assert held_out["text"][:] == texts.hold_out(rows, seed=0)["validation"]["text"][:]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
