"""The lines of a model card that load the model and use it."""

from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from torch import nn
from transformers import Trainer
from transformers.modelcard import TASK_MAPPING

# By the task on the Hub: the Auto class, and an input.
TASKS = {
    "image-classification": ("AutoModelForImageClassification", "an_image.png"),
    "audio-classification": ("AutoModelForAudioClassification", "a_sound.wav"),
    "text-classification": ("AutoModelForSequenceClassification", "a text of yours"),
}

PIPELINE = """from transformers import pipeline

classify = pipeline("{task}", model="{repository}")
print(classify("{example}"{options}))"""
ADAPTER = """from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained("{base}", num_labels={num_labels})
model = PeftModel.from_pretrained(base, "{repository}")"""


def task_of(network: nn.Module) -> str | None:
    """The task of a class of models, under the name in Trainer's card."""
    mappings: dict[str, Any] = TASK_MAPPING
    for task, mapping in mappings.items():
        if any(type(network).__name__ in ([kind] if isinstance(kind, str) else kind) for kind in mapping.values()):
            return task
    return None


def repository_of(trainer: Trainer, name: str) -> str:
    """The model's repository on the Hub; `OWNER` and `NAME` stand for unknown or invalid parts."""
    known = trainer.hub_model_id or trainer.args.hub_model_id or name
    repository = known if "/" in known else f"OWNER/{known}"
    try:
        validate_repo_id(repository)
    except HFValidationError:
        return "OWNER/NAME"
    return repository


def usage(trainer: Trainer, is_adapter: bool, task: str | None, repository: str, base: str | None) -> str | None:
    """How to use the model, where its task is known."""
    if task not in TASKS:
        return None
    auto, example = TASKS[task]
    if is_adapter:
        num_labels = trainer.model.config.num_labels  # type: ignore[union-attr]
        return ADAPTER.format(auto=auto, base=base or "the base model", num_labels=num_labels, repository=repository)
    truncation = getattr(getattr(trainer.processing_class, "backend_tokenizer", None), "truncation", None)
    options = f", truncation=True, max_length={truncation['max_length']}" if truncation else ""  # as it was last called
    return PIPELINE.format(task=task, repository=repository, example=example, options=options)
