"""What the documentation says: its snippets run, its commands parse, its lists are those of the code."""

import ast
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import tiny
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from datasets import Dataset
from nbclient import NotebookClient
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from itra_hf.command import commands
from itra_hf.hub.saving import NOT_LOST

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "itra_hf").rglob("*.py"))


def template(node: ast.expr, constants: dict[str, str]) -> str | None:
    """The text of a message, with an ellipsis in place of every value; None if it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
        return "".join(parts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return re.sub(r"\{.*?\}", "…", constants[node.func.value.id])
    return None


SAYING = ("warning", "warning_once", "warn", "exit", "add_note", "raise_or_go_without")


def messages(path: Path) -> Iterator[str]:
    """Every message that a module raises, warns of or exits with."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {"NOT_LOST": NOT_LOST} | {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }
    for node in ast.walk(tree):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call) or not call.args:
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if isinstance(node, ast.Raise) or name.endswith("Error") or name in SAYING:
            text = template(
                call.args[1 if name == "raise_or_go_without" else 0], constants
            )  # its first argument is the trainer
            if name != "AttributeError" and text is not None and not re.fullmatch(r"itra-hf( \w+| …)?: …", text):
                yield text


def listed() -> list[str]:
    """The beginnings of messages that the page on troubleshooting explains."""
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    return [text for _, text in re.findall(r"^(`+)(.+)\1\n: ", page, re.MULTILINE)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_message_is_explained(path):
    missing = [text for text in messages(path) if not text.startswith(tuple(listed()))]
    assert not missing, "docs/troubleshooting.md does not explain these messages"


def test_every_explained_message_is_there():
    known = [text for path in SOURCES for text in messages(path)]
    assert len(listed()) == len(set(listed())) > 50, "docs/troubleshooting.md explains a message twice"
    assert [text for text in listed() if not any(message.startswith(text) for message in known)] == []


def part(path: Path) -> str:
    """The part of the package that a module is of: a module or a folder."""
    return path.relative_to(ROOT / "itra_hf").parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The parts of the package that a module imports, also those of a function and for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("itra_hf.")}
    return found


def test_map_of_the_package_is_that_of_its_imports():
    page = (ROOT / "docs/contributing.md").read_text(encoding="utf-8").split("## Who imports whom")[1].split("\n## ")[0]
    told = {
        name: set(re.findall(r"`(\w+)`", cells)) for name, cells in re.findall(r"^\| `(\w+)` \|(.*)\|$", page, re.M)
    }
    real: dict[str, set[str]] = {}
    for path in SOURCES:
        real[part(path)] = real.get(part(path), set()) | imported(path) - {part(path)}
    assert real == told, "docs/contributing.md says otherwise who imports whom"
    order = list(told)
    upwards = [(part, name) for part in order for name in told[part] if order.index(name) >= order.index(part)]
    assert not upwards, "these stand below what they import, or import each other in a circle"


def test_a_step_flows_through_what_is_there():
    page = (ROOT / "docs/contributing.md").read_text(encoding="utf-8").split("## How a step flows")[1].split("\n## ")[0]
    source = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    told = {name.split(".")[-1] for name in re.findall(r"`([\w.]+)`", page)}
    missing = [name for name in told if not re.search(rf"\b(def|class) {name}\b|\"{name}\"|{name}:", source)]
    assert len(told) > 15
    assert missing == []


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
NEEDS = "# Needs "  # the first line of a block that is checked to be Python, but not run
LANGUAGES = ("python", "sh", "yaml", "json", "diff", "bibtex", "")
PROGRAMS = ("accelerate", "itra-hf", "make", "pip", "python", "twine")


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and text; directives of the site are left out."""
    found = re.findall(r"^```(.*)\n((?:.*\n)*?)```$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [(language, text) for language, text in found if not language.startswith("{")]


@pytest.fixture(scope="session")
def tiny_hub(tmp_path_factory) -> Path:
    """A folder that holds tiny models and data under the names that the pages use for those of the Hub."""
    folder = tmp_path_factory.mktemp("hub")
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "good", "bad", "odd"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    text = folder / "distilbert/distilbert-base-uncased"
    sizes = {"vocab_size": 5, "dim": 16, "hidden_dim": 16, "n_layers": 2, "n_heads": 2}
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(text)
    DistilBertModel(DistilBertConfig(**sizes)).save_pretrained(text)
    image = folder / "google/vit-base-patch16-224-in21k"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**sizes, image_size=8, patch_size=4)).save_pretrained(image)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(image)
    audio = folder / "facebook/wav2vec2-base"
    convolutions = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
    embeddings = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = Wav2Vec2Config(**sizes, **convolutions, **embeddings, vocab_size=5)
    Wav2Vec2Model(config).save_pretrained(audio)
    Wav2Vec2FeatureExtractor().save_pretrained(audio)
    for split in ("train", "test"):
        lines = [f"{('good', 'bad', 'odd')[row % 3]} {'bad ' * (row % 4)},{row % 3}" for row in range(24)]
        (folder / f"{split}.csv").write_text("text,label\n" + "\n".join(lines))
        for row in range(8):
            path = folder / f"flowers/{split}/{('rose', 'daisy')[row % 2]}/{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 20 * row, np.uint8)).save(path)
    return folder


@pytest.fixture
def names(tiny_hub, monkeypatch, tmp_path) -> dict[str, Any]:
    """What a page takes for granted, in a working folder of its own."""
    for path in tiny_hub.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    name = "distilbert/distilbert-base-uncased"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(name)
    rows = Dataset.from_csv("train.csv", cache_dir=str(tmp_path / "csv")).map(
        lambda rows: tokenizer(rows["text"]), batched=True
    )
    wave = np.random.default_rng(0).normal(size=400).astype(np.float32)
    return {
        "__name__": "page",
        "model": DistilBertForSequenceClassification.from_pretrained(name, num_labels=3),
        "tokenizer": tokenizer,
        "train": rows,
        "test": rows,
        "sounds": [{"array": wave * (1 + row), "label": row % 2} for row in range(8)],
    }


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_of_a_page_runs(page, names):
    for number, (language, text) in enumerate(blocks(page)):
        assert language in LANGUAGES, f"block {number} is {language!r}"
        if language == "python":
            code = compile(text, f"{page.name}, block {number}", "exec")
            if not text.startswith(NEEDS):
                exec(code, names)
        elif language == "json":
            json.loads(text)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_of_a_page_parse(page, tiny_hub, monkeypatch, tmp_path):
    for path in tiny_hub.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("model_name_or_path: a\ntrain_file: train.csv\n")
    for language, text in blocks(page):
        if language == "yaml":
            name = re.match(r"# (\w+\.yaml)\b", text)[1]
            (tmp_path / name).write_text(text)
            if "distributed_type" in text:
                load_config_from_file(name)
        if language in ("sh", ""):
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True) if language or line.startswith(PROGRAMS) else []
                if words:
                    check_command(*words)


def check_command(program: str, *rest: str) -> None:
    """A command is one that is there, with options that it knows."""
    assert program in PROGRAMS, f"{program} is no command that the pages may use"
    if program == "itra-hf":
        check_itra_hf(*rest)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program == "accelerate":
        assert rest[0] == "launch"
        options = launch_command_parser().parse_args(rest[1:])
        assert (ROOT / options.training_script).exists()
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]) or rest[1] in ("build", "venv")
    elif program == "python":
        assert (ROOT / rest[0]).exists()
        if rest[1:]:
            parse_example(*rest)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = [name for word in rest for name in re.findall(r"\[(.*)\]", word)]
        assert rest[0] == "install"
        assert set(wanted) <= set(extras)


def parse_example(script: str, *options: str) -> None:
    """The options of a script of the folder examples."""
    tiny.load_example(Path(script).stem).parse(list(options))


def check_itra_hf(command: str, *rest: str) -> None:
    """The arguments of the command line, without those that `launch` takes."""
    words = " ".join(rest)
    words = re.sub(r"--(num_processes|accelerate_config) \S+", "", words)
    if command == "report":
        assert len(words.split()) == 1
    else:
        kinds = {"train": commands.TrainArguments, "compare": commands.CompareArguments}
        commands.parse(command, words.split(), kinds[command])


def test_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = ROOT / "examples/quickstart.ipynb"
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert re.search(r"ITRATrainer +accuracy 0\.\d{4}", "".join(output.get("text", "") for output in shown))

    kept = path.read_text(encoding="utf-8")
    assert "image/png" in kept, "make notebook keeps the outputs"
    assert not re.search(r"(/tmp|/home|/root|stderr)", kept)


def test_figures_are_those_of_the_pages(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs/figures.py")
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    monkeypatch.setattr(figures, "STEPS", 10)
    figures.main(tmp_path)
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {path.name for path in (ROOT / "docs/figures").iterdir()}
    shown = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("index.md", "concepts.md"))
    assert made == set(re.findall(r"figures/(\S+\.png)", shown))


def test_links_of_the_readme_work_on_pypi():
    """The build replaces what leads to a file of the repository by its address."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files = re.findall(r"\]\((?!https?://)([^)]+)\)", text)
    for each in options["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    assert len(files) > 5
    assert all((ROOT / file).exists() for file in files)
    assert re.findall(r"\]\((?!https?://)", text) == []
    assert "/raw/main/docs/evidence.png)" in text
    assert all(f"/main/{file})" in text for file in files)
