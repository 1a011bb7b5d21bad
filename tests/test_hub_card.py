"""What the model card tells a reader of the Hub."""

import json
import platform
import sys
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import tiny
import torch
import yaml
from datasets import ClassLabel, Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig, TaskType, get_peft_model
from transformers import Trainer, TrainerCallback, pipeline

from itra_hf.config import MatchingArguments


class LogScatter(TrainerCallback):
    """Logs as the diagnostics do, at the first and the last step."""

    def on_train_begin(self, args, state, control, **kwargs):
        state.log_history.append({"eval_scatter_ratio": 2.5, "eval_nc1": 3.0, "step": 0})

    def on_train_end(self, args, state, control, **kwargs):
        state.log_history.append({"eval_scatter_ratio": 0.5, "eval_nc1": 1.0, "step": state.global_step})


def accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def rows():
    plain = [{key: torch.as_tensor(value).tolist() for key, value in row.items()} for row in tiny.texts()]
    return Dataset.from_list(plain).cast_column("labels", ClassLabel(names=["cat", "dog", "emu"]))


@pytest.fixture
def trained(tmp_path):
    names = ["cat", "dog", "emu"]
    model = tiny.bert(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    changes = {"matching_weight": 0.25, "learning_rate": 1e-3, "eval_strategy": "steps", "eval_steps": 2}
    keywords = {"compute_metrics": accuracy, "callbacks": [LogScatter()]}
    run = tiny.trainer(tmp_path / "pets", model, rows(), keywords=keywords, hub_token="hf_secret", **changes)
    run.train()
    return run


def test_the_card_tells_what_was_trained_how_and_how_well(trained, tmp_path):
    (tmp_path / "pets" / "features.png").touch()
    for _ in range(2):  # written twice, everything stands once
        trained.create_model_card(tags=["text"], dataset="Pets of the town")
    card = ModelCard.load(tmp_path / "pets" / "README.md")
    scores = trained.state.log_history[-1] if "eval_loss" in trained.state.log_history[-1] else trained.evaluate()
    text = card.text
    assert text.startswith("\n# pets\n")
    assert "`BertForSequenceClassification` of 13,827 parameters, trained from scratch on Pets of the town" in text
    assert "Pets of the town (48 rows to train on, 48 rows to evaluate on)" in text
    assert "Classes: cat, dog, emu." in text
    assert f"| accuracy | {scores['eval_accuracy']:.4f} |" in text
    assert f"| loss | {scores['eval_loss']:.4f} |" in text
    assert "| nc1 |" not in text  # a diagnostic is no score of the task
    assert "| before training | 2.5000 |\n| after 4 steps | 0.5000 |" in text
    assert "](features.png)" in text
    assert "| learning_rate | 0.001 |" in text
    assert text.count("## In-Training Representation Alignment") == 1
    options = {name: str(getattr(trained.args, name)) for name in MatchingArguments.__dataclass_fields__}
    options["matching"] = "class_conditional (auto)"
    assert all(f"| {name} | {value} |" in text for name, value in options.items())
    assert "10.1609/aaai.v37i7.26044" in text
    assert "@software{itra_hf" in text
    history = [line.split("|") for line in text.splitlines() if line.startswith(("| 2 ", "| 4 "))]
    assert [line[1].strip() for line in history] == ["2", "4"]
    assert "OptimizerNames" not in text


def test_the_metadata_is_valid_and_holds_the_results(trained, tmp_path):
    trained.create_model_card(tags="text", dataset="Pets of the town", finetuned_from="google-bert/bert-base-uncased")
    header = (tmp_path / "pets" / "README.md").read_text().split("---\n")[1]
    data = yaml.safe_load(header)
    assert data["tags"] == ["text", "generated_from_trainer", "itra"]
    assert data["base_model"] == "google-bert/bert-base-uncased"
    assert data["pipeline_tag"] == "text-classification"
    (model,) = data["model-index"]
    (result,) = model["results"]
    assert model["name"] == "pets"
    assert result["dataset"] == {"name": "Pets of the town", "type": "Pets-of-the-town"}
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values.keys() == {"loss", "accuracy"}
    assert values["accuracy"] == pytest.approx(trained.evaluate()["eval_accuracy"])


def test_no_token_user_or_path_gets_into_the_card(trained, tmp_path):
    """Even where the names that were given are paths, and the arguments hold the author's own texts."""
    (tmp_path / "secret.csv").touch()
    trained.args.hub_model_id = "jane/pets"
    trained.args.run_name = str(tmp_path / "run")
    trained.create_model_card(
        dataset=str(tmp_path / "secret.csv"), finetuned_from=str(tmp_path), dataset_tags=str(tmp_path)
    )
    card = (tmp_path / "pets" / "README.md").read_text()
    for secret in ("hf_secret", str(tmp_path), tmp_path.name):
        assert secret not in card
    assert card.count("jane") == card.count('model="jane/pets"') == 1  # the name of the repository is public
    assert "on secret (48 rows" in card
    trained.state.log_history.append({"eval_loss": 0.5, "eval_accuracy": 0.5, "step": 4})
    for private in ("dataset", "dataset_tags", "dataset_args"):
        names = {"dataset": "pets", "dataset_tags": "pets", "dataset_args": "small"}
        trained.create_model_card(**names | {private: str(tmp_path / "secret.csv")})
        assert str(tmp_path) not in (tmp_path / "pets" / "README.md").read_text()


def test_no_name_of_a_folder_gets_into_the_card(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("acme-base", "acme-rows", "acme/rows", "acme-tags", "acme-out"):
        (tmp_path / name).mkdir(parents=True)
    trained.args.output_dir, trained.args.hub_model_id = "acme-out", "jane/pets"
    trained.create_model_card(
        dataset=["acme-rows", "acme/rows", str(tmp_path / "acme-rows")],
        finetuned_from="acme-base",
        dataset_tags="acme-tags",
    )
    card = (tmp_path / "acme-out" / "README.md").read_text()
    assert "acme" not in card
    assert "# pets\n" in card
    assert "on data that has no name (48 rows" in card


def test_the_arguments_of_the_card_repeat_the_run(trained, tmp_path):
    trained.create_model_card()
    text = (tmp_path / "pets" / "README.md").read_text()
    code = text[text.index("args = ITRAConfig(") : text.index("trainer = ITRATrainer(")]
    space = {"ITRAConfig": tiny.ITRAConfig}
    exec(code, space)  # noqa: S102
    args = space["args"]
    for name in (
        "learning_rate",
        "max_steps",
        "per_device_train_batch_size",
        "seed",
        *MatchingArguments.__dataclass_fields__,
    ):
        assert getattr(args, name) == getattr(trained.args, name), name


def test_the_lines_of_use_run(trained, tmp_path, monkeypatch, capsys):
    """With the owner's folder in place of the Hub."""
    from test_drop_in import tokenizer

    monkeypatch.chdir(tmp_path)
    trained.processing_class = tokenizer.__wrapped__()
    trained.save_model(str(tmp_path / "OWNER" / "pets"))
    trained.create_model_card()
    text = (tmp_path / "pets" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 5
    assert "max_length" not in code
    exec(code, {})  # noqa: S102
    assert "'label': " in capsys.readouterr().out
    assert pipeline("text-classification", model="OWNER/pets")("good film")[0]["label"] in {"cat", "dog", "emu"}
    trained.processing_class(["good film"], truncation=True, max_length=3)  # as training does
    trained.create_model_card()
    code = (tmp_path / "pets" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert 'print(classify("a text of yours", truncation=True, max_length=3))' in code
    exec(code, {})  # noqa: S102
    assert "'label': " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "pushed_to", "told"),
    [
        ("jane/pets", None, "jane/pets"),
        ("pets", "jane/pets", "jane/pets"),
        ("pets", None, "OWNER/pets"),
        ('x"); import os; ("', None, "OWNER/NAME"),
        ("../jane/pets", None, "OWNER/NAME"),
    ],
)
def test_the_lines_of_use_load_the_repository_and_no_other_text(trained, tmp_path, name, pushed_to, told):
    trained.args.hub_model_id, trained.hub_model_id = name, pushed_to
    trained.create_model_card()
    text = (tmp_path / "pets" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert f'pipeline("text-classification", model="{told}")\n' in code
    assert (f"put the name of this repository in place of `{told}`" in text) is told.startswith("OWNER/")


def test_names_of_tasks_data_sets_and_metrics_are_those_of_trainers_card(trained, tmp_path):
    known = {"tasks": ["text-classification"], "dataset": ["Pets"], "dataset_tags": ["pets"], "dataset_args": ["small"]}
    trained.state.log_history.append({"eval_loss": 0.5, "eval_f1": 0.75, "eval_accuracy": 0.25, "step": 4})
    cards = []
    for create in (Trainer.create_model_card, tiny.ITRATrainer.create_model_card):
        create(trained, model_name="The pets", **known)
        cards.append(yaml.safe_load((tmp_path / "pets" / "README.md").read_text().split("---\n")[1]))
    plain, ours = ([result for model in card["model-index"] for result in model["results"]] for card in cards)
    assert plain[0].pop("dataset") | {"split": None, "config": None} == ours[0]["dataset"] | {
        "split": None,
        "config": None,
    }
    assert plain[0]["task"] == ours[0]["task"] == {"name": "Text Classification", "type": "text-classification"}
    assert all(metric in ours[0]["metrics"] for metric in plain[0]["metrics"])
    assert {metric["name"]: metric["type"] for metric in ours[0]["metrics"]}["F1"] == "f1"
    assert [card["model-index"][0]["name"] for card in cards] == ["The pets"] * 2


def test_an_f1_of_several_classes_is_an_f1_by_its_average(trained, tmp_path):
    trained.state.log_history.append({"eval_macro_f1": 0.75, "eval_f1_micro": 0.5, "eval_f1_of_cats": 0.25, "step": 4})
    trained.create_model_card(tasks=["text-classification"], dataset="pets")
    card = ModelCard.load(tmp_path / "pets" / "README.md")
    told = {result.metric_name: (result.metric_type, result.metric_args) for result in card.data.eval_results}
    assert told["Macro F1"] == ("f1", {"average": "macro"})
    assert told["F1 Micro"] == ("f1", {"average": "micro"})
    assert told["F1 Of Cats"] == ("f1_of_cats", None)
    assert {"f1", "f1_of_cats"} <= set(card.data.metrics)
    assert card.data.eval_results[0].task_name == "Text Classification"


def test_versions_stand_under_their_own_heading(trained, tmp_path):
    trained.create_model_card()
    text = (tmp_path / "pets" / "README.md").read_text().split("### Framework versions\n")[1].split("\n#")[0]
    for package in ("itra_hf", "transformers", "torch", "datasets", "tokenizers"):
        assert f"- {package} {version(package)}\n" in text
    assert f"- Python {platform.python_version()}\n" in text


@pytest.mark.parametrize(("steps", "told"), [(0.1, "0.1 of all steps"), (3, "3")])
def test_a_warmup_of_a_share_reads_as_one(trained, tmp_path, steps, told):
    trained.args.warmup_steps = steps
    trained.create_model_card()
    assert f"| lr_scheduler_warmup_steps | {told} |" in (tmp_path / "pets" / "README.md").read_text()


@pytest.mark.parametrize(
    ("url", "is_told"),
    [
        ("https://wandb.ai/jane/pets/runs/1a2b", True),
        ("https://wandb.ai/jane/pets/runs/1a2b?apiKey=secret", False),
        ("http://localhost:8080/jane/pets/runs/1a2b", False),
        (None, False),  # offline
    ],
)
def test_a_run_that_a_public_tracker_shows_is_linked(trained, tmp_path, monkeypatch, url, is_told):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=SimpleNamespace(url=url)))
    trained.create_model_card()
    assert "wandb" not in (tmp_path / "pets" / "README.md").read_text()  # the run of somebody else
    trained.args.report_to = ["wandb"]
    trained.create_model_card()
    text = (tmp_path / "pets" / "README.md").read_text()
    assert (f"[Weights & Biases]({url})" in text) is is_told
    assert "secret" not in text
    assert "localhost" not in text


def test_a_space_of_trackio_is_linked_and_tagged(trained, tmp_path):
    space = "https://huggingface.co/spaces/jane/pets"
    trained.model.model_tags = ["trackio", f"trackio:{space}"]  # which Trainer's callback leaves there
    trained.create_model_card()
    card = ModelCard.load(tmp_path / "pets" / "README.md")
    assert f"[Trackio]({space})" in card.text
    assert {"trackio", f"trackio:{space}"} <= set(card.data.tags)


def test_adapters_on_a_local_model_keep_its_path_to_themselves(tmp_path):
    base = tiny.bert()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(
        tiny.BertForSequenceClassification.from_pretrained(tmp_path / "base"),
        LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["query", "value"]),
    )
    run = tiny.trainer(tmp_path / "adapters", model, tiny.texts())
    run.train()
    run.save_model()
    run.create_model_card()
    card = ModelCard.load(tmp_path / "adapters" / "README.md")
    assert str(tmp_path) not in str(card)
    assert card.data.library_name == "peft"
    assert {"itra", "generated_from_trainer", "lora"} <= set(card.data.tags)
    assert "fine-tuned from a local model on data" in card.text
    assert "PeftModel.from_pretrained(base" in card.text


@pytest.mark.parametrize(
    ("changes", "label", "form"),
    [
        ({"problem_type": "multi_label_classification"}, [1.0, 0.0, 1.0], "joint (auto)"),
        ({}, 1, "marginal"),
        ({}, 1, "matching_loss, a function of the author's"),
    ],
)
def test_the_card_names_the_form_that_was_taken(tmp_path, changes, label, form):
    rows = [row | {"labels": label} for row in tiny.texts()]
    own = {"matching_loss": lambda source, *others: source.square().mean()} if "function" in form else {}
    options = {"matching": "marginal"} if form == "marginal" else {}
    run = tiny.trainer(tmp_path, tiny.bert(**changes), rows, keywords=own, **options)
    run.train()
    run.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert f"| matching | {form} |" in text
    assert text.count("matching_loss(h_s, h_t)") == text.count(", matching_loss=matching_loss)") == len(own)
    assert text.count("MMD^2(h_s, h_t)") == 1 - len(own)


def test_switched_off_the_card_is_trainers(tmp_path):
    cards = []
    for cls in (Trainer, tiny.ITRATrainer):
        run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), cls, matching="none")
        run.create_model_card(dataset="pets")
        cards.append((tmp_path / "README.md").read_text())
    assert cards[0] == cards[1]


def test_a_score_that_is_not_finite_stays_out_of_the_results(trained, tmp_path):
    trained.state.log_history.append({"eval_loss": float("nan"), "eval_accuracy": 0.5, "step": 4})
    trained.create_model_card()
    card = ModelCard.load(tmp_path / "pets" / "README.md")
    assert {result.metric_type for result in card.data.eval_results} == {"accuracy"}
    assert json.dumps(card.data.to_dict())


def test_the_card_of_the_best_checkpoint_tells_its_scores(tmp_path):
    scores = iter([0.9, 0.8, 0.7])
    changes = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    changes |= {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"}
    keywords = {"compute_metrics": lambda _: {"accuracy": next(scores)}, "callbacks": [LogScatter()]}
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), keywords=keywords, **changes)
    run.train()
    run.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert {result.metric_type: result.metric_value for result in card.data.eval_results}["accuracy"] == 0.9
    assert "| accuracy | 0.9000 |" in card.text
    run.compute_metrics = lambda _: {"accuracy": 0.6}  # after training it is the saved model that is evaluated
    run.evaluate()
    run.create_model_card()
    assert "| accuracy | 0.6000 |" in ModelCard.load(tmp_path / "README.md").text


def test_a_run_in_the_present_folder_has_a_card_with_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tiny.trainer(".", tiny.bert(), tiny.texts())
    run.train()
    run.create_model_card()
    assert f"# {tmp_path.name}\n" in ModelCard.load(tmp_path / "README.md").text


def test_several_evaluation_sets_are_all_told_at_the_last_step(tmp_path):
    run = tiny.trainer(tmp_path, tiny.bert(), tiny.texts(), eval_strategy="steps", eval_steps=2)
    run.eval_dataset = {"old": tiny.texts(24), "new": tiny.texts(16)}
    run.train()
    run.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert {result.metric_type for result in card.data.eval_results} == {"old_loss", "new_loss"}


@pytest.mark.parametrize("cls", [Trainer, tiny.ITRATrainer])
def test_a_model_outside_transformers_gets_a_card_where_trainer_writes_one(tmp_path, cls):
    model = tiny.Mlp()
    model.config = SimpleNamespace(_name_or_path="", num_labels=3)
    run = tiny.trainer(tmp_path, model, tiny.vectors(), cls)
    run.train()
    run.create_model_card()
    assert "Mlp" in (tmp_path / "README.md").read_text() or cls is Trainer


def test_words_of_others_are_plain_text_in_the_card(trained, tmp_path):
    trained.model.config.id2label = {0: "a\n# pwned", 1: "<img src=x>", 2: "[x](http://a.b)"}
    trained.state.log_history[-2 if "eval_loss" not in trained.state.log_history[-1] else -1]["eval_a|b"] = 0.5
    trained.create_model_card(dataset="<b>pets</b>")
    text = (tmp_path / "pets" / "README.md").read_text().split("---\n")[2]
    assert "Classes: a &#35; pwned, &#60;img src=x&#62;, &#91;x&#93;(http&#58;//a.b)." in text
    assert "| a&#124;b | 0.5000 |" in text
    assert "on &#60;b&#62;pets&#60;/b&#62; (48 rows" in text
    trained.state.log_history += [{"step": step, "eval_loss": 1.0, "eval_f1_<img>": 0.5} for step in (100, 200)]
    trained.create_model_card()
    text = (tmp_path / "pets" / "README.md").read_text().split("---\n", 2)[2]
    assert "f1&#95;&#60;img&#62;" in text
    assert "<img" not in text


def test_a_link_in_the_place_of_the_card_is_not_followed(trained, tmp_path):
    (tmp_path / "outside.md").write_text("mine")
    card = tmp_path / "pets" / "README.md"
    card.unlink(missing_ok=True)
    card.symlink_to(tmp_path / "outside.md")
    trained.create_model_card()
    assert (tmp_path / "outside.md").read_text() == "mine"
    assert not card.is_symlink()


def test_the_title_and_the_options_are_plain_text(trained, tmp_path):
    trained.args.feature_layer = "x|\n# evil <img src=x>"
    trained.create_model_card(model_name="<img src=evil>/")
    text = (tmp_path / "pets" / "README.md").read_text().split("---\n", 2)[2]
    assert "# &#60;img src=evil&#62;\n" in text
    assert "<img src=x>" not in text.split("## Reproduce")[0]  # after it comes code
