"""Pushing to the Hub and loading from it, by the real client, against a server on this machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub import Hub
from huggingface_hub import ModelCard
from pushes import STRATEGIES, TOKEN

LOAD = """
import sys
sys.modules["itra_hf"] = None  # as where it is not installed: an import fails
import numpy, torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments, pipeline
from huggingface_hub import hf_hub_download
torch.set_num_threads(1)

folder, names, inputs = sys.argv[1], sys.argv[2].split(), torch.load(sys.argv[3])
for name in names:
    kind = AutoPeftModelForSequenceClassification if name == "adapters" else AutoModelForSequenceClassification
    model = kind.from_pretrained(f"jane/{name}", **({"num_labels": 3} if name == "adapters" else {})).eval()
    args = torch.load(hf_hub_download(f"jane/{name}", "training_args.bin"), weights_only=False)
    assert type(args) is TrainingArguments and args.hub_token is None, name
    rows = [{key: values[row] for key, values in inputs.items()} for row in range(len(inputs["input_ids"]))]
    predictions = Trainer(model, TrainingArguments(folder, report_to="none", use_cpu=True)).predict(rows).predictions
    numpy.save(f"{folder}/{name}.npy", predictions)
print(pipeline("text-classification", model="jane/end-ITRATrainer")("w3 w4 w5")[0]["label"])
"""
OURS = [f"{strategy}-ITRATrainer" for strategy in STRATEGIES]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The Hub after all that `pushes.py` has pushed, with the folder and the results of it."""
    folder = tmp_path_factory.mktemp("pushed")
    with Hub({TOKEN: "jane"}, failing={"jane/failing": 1}) as server:
        server.environment |= {"HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
        run([str(Path(__file__).with_name("pushes.py")), str(folder)], server)
        server.folder = folder
        server.results = json.loads((folder / "results.json").read_text())
        yield server


def run(command, server):
    process = subprocess.run(  # noqa: S603
        [sys.executable, *command], env=os.environ | server.environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_pushes_the_files_and_commits_of_trainer(hub, strategy):
    ours, theirs = (hub.repos[f"jane/{strategy}-{name}"] for name in ("ITRATrainer", "Trainer"))
    assert sorted(ours.files) == sorted(theirs.files)
    assert sorted(ours.commits) == sorted(theirs.commits)  # those in the background come in any order
    assert ours.commits[-1] == "First push"
    assert {"README.md", "model.safetensors", "tokenizer.json", "training_args.bin"} <= set(ours.files)
    folders = {"checkpoint": ["last-checkpoint"], "all_checkpoints": ["checkpoint-2", "checkpoint-4"]}
    found = sorted({path.split("/")[0] for path in ours.files if "checkpoint" in path})
    assert found == folders.get(strategy, [])


def test_nothing_that_is_pushed_holds_the_token_and_no_pickle_needs_itra(hub):
    """Every file of every push, of those while training and of checkpoints too; Trainer's files do hold the token."""
    pickles = set()
    for name, repo in hub.repos.items():
        if name.endswith("-Trainer"):
            continue
        for path, content in repo.pushed:
            assert TOKEN.encode() not in content, (name, path)
            if path.endswith((".bin", ".pt", ".pth")):
                assert b"itra_hf" not in content, (name, path)
                pickles.add(path.split("/")[-1])
    assert pickles == {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert TOKEN.encode() in hub.repos["jane/end-Trainer"].files["training_args.bin"]


def test_a_pushed_model_needs_nothing_of_ours(hub, tmp_path):
    """Loaded from the Hub where itra_hf cannot be imported, it predicts what it predicted after training."""
    import tiny
    import torch

    names = [*OURS, "again", "adapters"]
    rows = tiny.texts()
    torch.save({key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}, tmp_path / "rows.pt")
    label = run(["-c", LOAD, str(tmp_path), " ".join(names), str(tmp_path / "rows.pt")], hub)
    assert label.strip() in {"LABEL_0", "LABEL_1", "LABEL_2"}
    for name in names:
        assert (np.load(tmp_path / f"{name}.npy") == np.load(hub.folder / f"{name}.npy")).all(), name


def test_a_second_push_replaces_the_first(hub):
    repo = hub.repos["jane/again"]
    assert repo.commits == ["End of training", "After training"]
    assert repo.files["model.safetensors"] == (hub.folder / "again" / "model.safetensors").read_bytes()


def test_a_wrong_token_is_told_at_once_and_loses_nothing(hub):
    assert "401" in hub.results["wrong at construction"]
    message, note = hub.results["wrong after training"]
    assert "401" in message
    assert "save_model" in note
    assert "push_to_hub" in note
    assert hub.results["steps under a wrong token"] == 4
    assert (hub.folder / "wrong" / "model.safetensors").exists()
    assert "jane/wrong" not in hub.repos


def test_a_server_that_fails_in_the_middle_costs_no_training(hub):
    assert hub.results["steps under a failing server"] == 4
    assert hub.results["kept"]
    [warning] = [text for text in hub.results["failing while training"] if "hardly took place" not in text]
    assert "500" in warning
    assert "the disk of the Hub is full" in warning
    message, note = hub.results["failing at the end"]
    assert "the disk of the Hub is full" in message
    assert "push_to_hub" in note


def test_the_cards_hold_no_token_user_or_path(hub):
    for name in [*OURS, "again", "adapters"]:
        card = hub.repos[f"jane/{name}"].files["README.md"].decode()
        assert not re.search(rf"{TOKEN}|{re.escape(str(hub.folder))}", card)
        assert card.count(f'"jane/{name}")') == 1  # the lines of use load what was pushed
        assert "jane" not in card.replace("jane/base", "").replace(f'"jane/{name}")', "")
        assert {"itra", "generated_from_trainer"} <= set(ModelCard(card).data.tags)
