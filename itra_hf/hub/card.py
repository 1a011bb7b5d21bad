"""The model card: what was trained on what, how, how well, and how to use and repeat it."""

import platform
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from torch import nn
from transformers import Trainer
from transformers.modelcard import extract_hyperparameters_from_trainer, make_markdown_table
from transformers.trainer_utils import has_length
from transformers.utils.import_utils import is_peft_available

from itra_hf.config import MatchingArguments, matching_arguments
from itra_hf.hub.metadata import metadata, run_links
from itra_hf.hub.public import as_text, is_folder, public_arguments, public_name
from itra_hf.hub.scores import last_scores, log_of_saved_model, scores_of
from itra_hf.hub.usage import repository_of, task_of, usage
from itra_hf.version import __version__

if is_peft_available():
    import peft

TEMPLATE = Path(__file__).with_name("card_template.md")
PICTURE = "features.png"
PACKAGES = ("itra_hf", "transformers", "torch", "datasets", "tokenizers")


def write_model_card(trainer: Trainer, form: str | None, given: dict[str, Any]) -> None:
    """Replace the card that Trainer has written, and keep its metadata.

    No token and no path of this machine gets into it. A user's name stands only in public addresses.

    Args:
        trainer: after training; its folder holds Trainer's `README.md`, and perhaps a picture `features.png`.
        form: of the matching loss, `"auto"` if none was chosen yet; None for the author's own loss.
        given: the arguments of Trainer's `create_model_card`, by keyword.
    """
    path = Path(str(trainer.args.output_dir), "README.md")
    model: Any = trainer.model
    network = model.get_base_model() if is_peft_available() and isinstance(model, peft.PeftModel) else model
    old = ModelCard.load(path, ignore_metadata_errors=True)
    title = given.get("model_name") or trainer.args.hub_model_id or path.resolve().parent.name
    name = title.rstrip("/").split("/")[-1]
    task = next(iter(_listed(given.get("tasks"))), task_of(network))
    datasets = [public_name(item) for item in _listed(given.get("dataset")) if not is_folder(item)]
    log, tags = log_of_saved_model(trainer), getattr(model, "model_tags", None)
    data = metadata(old.data, name, task, datasets, last_scores(log), tags)
    matching = matching_arguments(trainer.args)
    repository = repository_of(trainer, name)
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
        usage=usage(trainer, model is not network, task, repository, data.base_model),
        repository=repository,
        library="transformers" if model is network else "peft",
        options={field.name: as_text(getattr(matching, field.name)) for field in fields(MatchingArguments)}
        | {"matching": _form(matching, form)},
        own_loss=form is None,
        compactness=_compactness(log),
        picture=PICTURE if path.with_name(PICTURE).exists() else None,
        hyperparameters=_hyperparameters(trainer),
        history=_history(trainer.state.log_history),
        links=run_links(trainer.args.report_to, tags),
        versions={package: version(package) for package in PACKAGES} | {"Python": platform.python_version()},
        arguments={key: repr(value) for key, value in public_arguments(trainer.args).items()},
        version=__version__,
    )
    card.save(path)


def _listed(names: str | list[str] | None) -> list[str]:
    """Names as Trainer's `create_model_card` takes them: one, several or none."""
    return [names] if isinstance(names, str) else list(names or [])


def _classes(network: nn.Module) -> str:
    """The names of the first twenty classes; empty if they have none."""
    config: Any = network.config
    names = [str(label) for label in (getattr(config, "id2label", None) or {}).values()]
    if len(names) < 2 or names[0] == "LABEL_0":
        return ""
    return ", ".join(map(as_text, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _origin(base: str | None, network: nn.Module) -> str:
    if base:
        return f"fine-tuned from [{base}](https://huggingface.co/{base})"
    local = getattr(network, "name_or_path", "")
    return "fine-tuned from a local model" if local else "trained from scratch"


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
    """The form of the matching, for the table of options."""
    if form is None:
        return "matching_loss, a function of the author's"
    return f"{form} (auto)" if args.matching == "auto" != form else form


def _hyperparameters(trainer: Trainer) -> dict[str, Any]:
    """The hyperparameters that Trainer's card names."""
    found: dict[str, Any] = extract_hyperparameters_from_trainer(trainer)
    if 0 < trainer.args.warmup_steps < 1:
        found["lr_scheduler_warmup_steps"] = f"{trainer.args.warmup_steps:g} of all steps"
    return found | {"optimizer": getattr(trainer.args.optim, "value", trainer.args.optim)}


def _history(log: list[dict[str, Any]]) -> str:
    """The evaluations as a table; empty if there was only one."""
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
