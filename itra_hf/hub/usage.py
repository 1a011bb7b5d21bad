"""The lines of a model card that load the model and use it."""

from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from torch import nn
from transformers import Trainer
from transformers.models.auto import modeling_auto

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

classify = pipeline("{task}", model="{repository}")
print(classify("{example}"{options}))"""
ADAPTER = """from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained("{base}", num_labels={num_labels})
model = PeftModel.from_pretrained(base, "{repository}")"""


def task_of(network: nn.Module) -> str | None:
    """The task that a class of models does."""
    for task, (_, mapping, _) in TASKS.items():
        names = [name for value in mapping.values() for name in ([value] if isinstance(value, str) else value)]
        if type(network).__name__ in names:
            return task
    return None


def repository_of(trainer: Trainer, name: str) -> str:
    """The model's repository on the Hub, with `OWNER` and `NAME` for what is not known or no repository's name."""
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
    auto, _, example = TASKS[task]
    if is_adapter:
        num_labels = trainer.model.config.num_labels  # type: ignore[union-attr]
        return ADAPTER.format(auto=auto, base=base or "the base model", num_labels=num_labels, repository=repository)
    truncation = getattr(getattr(trainer.processing_class, "backend_tokenizer", None), "truncation", None)
    options = f", truncation=True, max_length={truncation['max_length']}" if truncation else ""  # as it was last called
    return PIPELINE.format(task=task, repository=repository, example=example, options=options)
