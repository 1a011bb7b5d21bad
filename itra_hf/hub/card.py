"""The model card: what was trained on what, how, how well, and how to use and repeat it."""

import math
import re
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn
from transformers import Trainer
from transformers.modelcard import extract_hyperparameters_from_trainer, make_markdown_table
from transformers.models.auto import modeling_auto
from transformers.trainer_utils import has_length
from transformers.utils.import_utils import is_peft_available

from itra_hf.config import MatchingArguments, matching_arguments
from itra_hf.hub.public import as_text, is_folder, is_local, public_arguments, public_name
from itra_hf.hub.scores import last_scores, log_of_saved_model, scores_of
from itra_hf.version import __version__

if is_peft_available():
    import peft

TEMPLATE = Path(__file__).with_name("card_template.md")
PICTURE = "features.png"

# a task of the Hub: the Auto class, the classes of models behind it, and an input
TASKS: dict[str, tuple[str, Any, str]] = {
    "image-classification": (
        "AutoModelForImageClassification",
        modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "an_image.png",
    ),
    "audio-classification": (
        "AutoModelForAudioClassification",
        modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
        "a_sound.wav",
    ),
    "text-classification": (
        "AutoModelForSequenceClassification",
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "a text of yours",
    ),
}

PIPELINE = """from transformers import pipeline

classify = pipeline("{task}", model="OWNER/{name}")
print(classify("{example}"))"""
ADAPTER = """from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained("{base}", num_labels={num_labels})
model = PeftModel.from_pretrained(base, "OWNER/{name}")"""


def write_model_card(trainer: Trainer, form: str | None, tasks: Any = None, dataset: Any = None) -> None:
    """Write the card of a trained model over the one that Trainer has written, whose metadata it keeps.

    No token, no user's name and no path of this machine gets into it.

    Args:
        trainer: after training; its folder holds Trainer's `README.md`, and perhaps a picture `features.png`.
        form: of the matching loss, `"auto"` where none was chosen yet; None for a loss of the author's.
        tasks: the task of the Hub; by default that of the model's class.
        dataset: the names of the data sets, as Trainer's `create_model_card` takes them.
    """
    path = Path(str(trainer.args.output_dir), "README.md")
    model: Any = trainer.model
    network = model.get_base_model() if is_peft_available() and isinstance(model, peft.PeftModel) else model
    old = ModelCard.load(path, ignore_metadata_errors=True)
    title = next(iter(re.findall(r"^# (.+)$", old.text, re.MULTILINE)), path.resolve().parent.name)
    name = (trainer.args.hub_model_id or title).rstrip("/").split("/")[-1]
    task = tasks if isinstance(tasks, str) else _task(network)
    given = [dataset] if isinstance(dataset, str) else dataset or []
    datasets = [public_name(item) for item in given if not is_folder(item)]
    log = log_of_saved_model(trainer)
    data = _metadata(old.data, name, task, datasets, last_scores(log))
    matching = matching_arguments(trainer.args)
    packages = ("itra_hf", "transformers", "torch", "datasets")
    card = ModelCard.from_template(
        data,
        str(TEMPLATE),
        name=name,
        heading=as_text(name),
        model=f"A `{type(network).__name__}` of {sum(part.numel() for part in network.parameters()):,} parameters",
        origin=_origin(data.base_model, network),
        data=_data(trainer, datasets or data.datasets or []),
        classes=_classes(network),
        metrics={as_text(metric): f"{value:.4f}" for metric, value in last_scores(log).items()},
        usage=_usage(model, network, task, name, data.base_model),
        library="transformers" if model is network else "peft",
        options={field.name: as_text(getattr(matching, field.name)) for field in fields(MatchingArguments)}
        | {"matching": _form(matching, form)},
        own_loss=form is None,
        compactness=_compactness(log),
        picture=PICTURE if path.with_name(PICTURE).exists() else None,
        hyperparameters=_hyperparameters(trainer),
        history=_history(trainer.state.log_history),
        versions=", ".join(f"{package} {version(package)}" for package in packages),
        arguments={key: repr(value) for key, value in public_arguments(trainer.args).items()},
        version=__version__,
    )
    card.save(path)


def _metadata(data: ModelCardData, name: str, task: str | None, datasets: list[str], scores: dict[str, float]) -> Any:
    """Trainer's metadata without paths, with the tags and the results."""
    if data.base_model is not None and is_local(str(data.base_model)):
        data.base_model = None
    data.datasets = [item for item in data.datasets or [] if item and not is_local(item)] or None
    public = [tag for tag in data.tags or [] if not tag.startswith("base_model:") or not is_local(tag.split(":")[-1])]
    data.tags = list(dict.fromkeys([*public, "generated_from_trainer", "itra"]))
    data.pipeline_tag = data.pipeline_tag or task
    data.model_name = name
    known = datasets or data.datasets or ["unknown"]
    where = ", ".join(known), re.sub(r"[^\w./-]+", "-", (data.datasets or known)[0])
    finite = {metric: value for metric, value in scores.items() if math.isfinite(value)}
    results = [
        EvalResult(
            task_type=task or "other",
            dataset_name=where[0],
            dataset_type=where[1],
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in finite.items()
    ]
    data.eval_results = results or None
    data.metrics = list(finite) or None
    return data


def _classes(network: nn.Module) -> str:
    """The names of the classes, the first twenty of them; empty where they have none."""
    config: Any = network.config
    names = [str(label) for label in (getattr(config, "id2label", None) or {}).values()]
    if len(names) < 2 or names[0] == "LABEL_0":
        return ""
    return ", ".join(map(as_text, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _task(network: nn.Module) -> str | None:
    """The task that a class of models does."""
    for task, (_, mapping, _) in TASKS.items():
        names = [name for value in mapping.values() for name in ([value] if isinstance(value, str) else value)]
        if type(network).__name__ in names:
            return task
    return None


def _origin(base: str | None, network: nn.Module) -> str:
    if base:
        return f"fine-tuned from [{base}](https://huggingface.co/{base})"
    local = getattr(network, "name_or_path", "")
    return "fine-tuned, from a model on the author's disk," if local else "trained from scratch"


def _data(trainer: Trainer, names: list[str]) -> str:
    """The data sets, and the rows of each part."""
    counts = [
        f"{len(rows):,} rows {purpose}"
        for rows, purpose in ((trainer.train_dataset, "to train on"), (trainer.eval_dataset, "to evaluate on"))
        if rows is not None and has_length(rows) and not isinstance(rows, dict)
    ]
    where = ", ".join(map(as_text, names)) or "data that has no name"
    return f"{where} ({', '.join(counts)})" if counts else where


def _form(args: MatchingArguments, form: str | None) -> str:
    """What was matched by, as the table of the options tells it."""
    if form is None:
        return "matching_loss, a function of the author's"
    return f"{form} (auto)" if args.matching == "auto" != form else form


def _hyperparameters(trainer: Trainer) -> dict[str, Any]:
    """Those that Trainer's card names."""
    found: dict[str, Any] = extract_hyperparameters_from_trainer(trainer)
    return found | {"optimizer": getattr(trainer.args.optim, "value", trainer.args.optim)}


def _history(log: list[dict[str, Any]]) -> str:
    """The evaluations of the training as a table; empty where there was but one."""
    rows: dict[int, dict[str, Any]] = {}
    loss: Any = "-"
    for entry in log:
        loss = entry.get("loss", loss)
        if scores := scores_of(entry):
            when = {"step": entry["step"], "epoch": entry.get("epoch", 0.0), "training loss": loss}
            rows[entry["step"]] = when | {f"evaluation {as_text(name)}": value for name, value in scores.items()}
    columns = [row.keys() for row in rows.values()]
    same = [row for row in rows.values() if row.keys() == columns[0]]
    return make_markdown_table(same).strip() if len(same) > 1 else ""


def _compactness(log: list[dict[str, Any]]) -> dict[str, str]:
    """The scatter ratio at its first and its last measurement."""
    measured = [entry for entry in log if "eval_scatter_ratio" in entry]
    if not measured:
        return {}
    moments = [measured[0], measured[-1]] if len(measured) > 1 else measured
    return {
        f"after {entry['step']} steps" if entry["step"] else "before training": f"{entry['eval_scatter_ratio']:.4f}"
        for entry in moments
    }


def _usage(model: Any, network: nn.Module, task: str | None, name: str, base: str | None) -> str | None:
    """How to use the model, where its task is known."""
    if task not in TASKS:
        return None
    if model is network:
        return PIPELINE.format(task=task, name=name, example=TASKS[task][2])
    num_labels = model.config.num_labels
    return ADAPTER.format(auto=TASKS[task][0], base=base or "the base model", num_labels=num_labels, name=name)
