"""The metadata of a model card: Trainer's without paths, and the results of the saved model."""

import math
import re
import sys
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers.modelcard import TASK_TAG_TO_NAME_MAPPING

from itra_hf.hub.public import is_folder, is_local, public_name

# The fields of a result that name the task and the data.
PLACE = ("task_type", "task_name", "dataset_name", "dataset_type", "dataset_config", "dataset_split", "dataset_args")
AVERAGED = r"(?:(macro|micro|weighted)_)?(f1|precision|recall)(?:_(macro|micro|weighted))?"
PUBLIC_TRACKERS = r"https://(wandb\.ai|www\.comet\.com|huggingface\.co/spaces)/[\w./~%-]+"


def metadata(
    data: ModelCardData, name: str, task: str | None, datasets: list[str], scores: dict[str, float], model_tags: Any
) -> Any:
    """Trainer's metadata without paths, with the tags and the results."""
    if data.base_model is not None and is_local(str(data.base_model)):
        data.base_model = None
    data.datasets = [item for item in data.datasets or [] if item and not is_local(item)] or None
    tags = [*(data.tags or []), "generated_from_trainer", "itra", *(model_tags or [])]
    data.tags = [tag for tag in dict.fromkeys(tags) if tag[:11] != "base_model:" or not is_local(tag.split(":")[-1])]
    data.pipeline_tag = data.pipeline_tag or task
    data.model_name = name
    known = datasets or data.datasets or ["unknown"]
    type_ = re.sub(r"[^\w./-]+", "-", (data.datasets or known)[0])
    place = {"task_type": task or "other", "task_name": TASK_TAG_TO_NAME_MAPPING.get(task or "")}
    place |= {"dataset_name": ", ".join(known), "dataset_type": type_}
    metrics = [_metric(metric, value) for metric, value in scores.items() if math.isfinite(value)]
    places = _public_places(data.eval_results or []) or [place]
    data.eval_results = [EvalResult(**place, **metric) for place in places for metric in metrics] or None
    data.metrics = list(dict.fromkeys(metric["metric_type"] for metric in metrics)) or None
    return data


def _public_places(results: list[EvalResult]) -> list[dict[str, Any]]:
    """The tasks and data sets in Trainer's card, without paths."""
    places: list[dict[str, Any]] = []
    for result in results:
        place = {name: getattr(result, name) for name in PLACE if getattr(result, name) not in (None, "None")}
        names = [str(value) for name, value in place.items() if name[:7] == "dataset" and name != "dataset_split"]
        if place not in places and not any(is_folder(each) or public_name(each) != each for each in names):
            places.append(place)
    return places


def _metric(name: str, value: float) -> dict[str, Any]:
    """A score under the Hub's name, such as f1 for macro_f1, and under the name in Trainer's card."""
    averaged = re.fullmatch(AVERAGED, name)
    before, kind, after = averaged.groups() if averaged else (None, name, None)
    metric = {"metric_type": kind, "metric_name": " ".join(part.capitalize() for part in name.split("_"))}
    average = before or after
    return metric | {"metric_value": value} | ({"metric_args": {"average": average}} if average else {})


def run_links(report_to: Any, model_tags: Any) -> dict[str, str]:
    """The public addresses of the run, by the tracker that it reports to."""
    wandb, comet = sys.modules.get("wandb"), sys.modules.get("comet_ml")
    found: dict[str, Any] = {}
    if wandb is not None and "wandb" in report_to:
        found["Weights & Biases"] = getattr(getattr(wandb, "run", None), "url", None)
    if comet is not None and "comet_ml" in report_to:
        found["Comet"] = getattr(comet.get_running_experiment(), "url", None)
    for tag in model_tags or []:
        if tag.startswith("trackio:"):  # of transformers' callback
            found["Trackio"] = tag.removeprefix("trackio:")
    return {tracker: url for tracker, url in found.items() if re.fullmatch(PUBLIC_TRACKERS, str(url))}
