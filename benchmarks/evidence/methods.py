"""The methods: which trainer, with which options, and which of them is tuned over which grid."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rivals import CentreLossTrainer, FloodingTrainer, ITRAMixupTrainer, MixupTrainer, RDropTrainer, SupConTrainer
from tasks import Task
from torch import Tensor
from torch.nn import functional
from transformers import Trainer

from itra_hf import ITRATrainer
from itra_hf.config import MatchingArguments

WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0)
BASELINE = {"learning_rate": (1e-3, 3e-3, 1e-2, 2e-2, 4e-2), "weight_decay": (0.01, 0.3, 1.0)}  # of the small CNN
FULL_BASELINE = {"learning_rate": (1e-3, 3e-3, 1e-2, 2e-2), "weight_decay": (0.01, 0.3)}  # of it on all data
RESNET_BASELINE = {"learning_rate": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), "weight_decay": (0.01, 0.3)}
VIT_BASELINE = {"learning_rate": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), "weight_decay": (0.01, 0.3)}
TEXT_BASELINE = {"learning_rate": (3e-4, 1e-3, 3e-3), "weight_decay": (0.01,)}  # of an encoder's last layers
FULL_TEXT_BASELINE = {"learning_rate": (1e-4, 3e-4, 1e-3, 3e-3), "weight_decay": (0.01,)}  # of them on all data
WHOLE_TEXT_BASELINE = {"learning_rate": (3e-4, 1e-3), "weight_decay": (0.01,)}  # of a whole encoder
LOW_TEXT_BASELINE = {"learning_rate": (3e-5, 1e-4, 3e-4), "weight_decay": (0.01,)}  # of it on all data, or of BERT
LORA_BASELINE = {"learning_rate": (3e-3, 1e-2), "weight_decay": (0.01,)}
MORE_RATES = {  # learning rates that were added where the last of the grid was best
    "fashion_mnist-300/cnn": (8e-2,),
    "fashion_mnist-1000/resnet": (1e-1,),
    "fashion_mnist-1000/vit": (3e-2,),
    "sst2-200/minilm-last2": (1e-2,),
    "sst2-1000/minilm-last2": (1e-2,),
    "banking77-5shot/minilm": (3e-3,),
    "sst2-200/minilm": (3e-5, 1e-4),
    "sst2-1000/minilm": (3e-5, 1e-4),
    "banking77-5shot/minilm-lora": (3e-2,),
    "banking77-10shot/minilm": (3e-3,),
    "banking77-10shot/minilm-lora": (3e-2,),
    "sst2-200/minilm-lora": (3e-4, 1e-3, 3e-2),
    "sst2-1000/minilm-lora": (1e-3,),
    "sst2-all/minilm": (3e-6, 1e-5),
    "sst2-all/minilm-lora": (3e-4, 1e-3),
    "banking77-all/minilm": (1e-3,),
    "banking77-all/minilm-lora": (1e-3,),
}
GPU_BASELINE = {  # by network
    "resnet18": {"learning_rate": (2e-2, 5e-2, 1e-1), "weight_decay": (5e-4,)},
    "minilm-bf16": {"learning_rate": (1e-4, 3e-4, 1e-3), "weight_decay": (0.01,)},
}
# The rivals' knobs on tasks for a GPU, where the learning rate alone is tuned: usual values.
USUAL = {
    "label_smoothing": {"label_smoothing_factor": 0.1},
    "mixup": {"strength": 0.2},
    "centre_loss": {"strength": 0.01},
    "dropout": {"dropout": 0.3},
}
# Options that are not TrainingArguments: dropout before the head, the strength of a rival, the task loss of the even
# rows alone, the processes that share each batch, the unbiased estimator.
OWN_OPTIONS = ("dropout", "strength", "one_half", "ranks", "unbiased")


@dataclass(frozen=True)
class Method:
    """A trainer and its options.

    Args:
        trainer: the class.
        options: of the trainer's arguments, or of `OWN_OPTIONS`.
        knob: the option that is tuned.
        grid: the values that it is chosen from.
        like: methods whose tuned knobs are taken over.
    """

    trainer: type[Trainer] = Trainer
    options: dict[str, Any] = field(default_factory=dict)
    knob: str | None = None
    grid: tuple[float, ...] = ()
    like: tuple[str, ...] = ()


def _tuned_itra(form: str) -> Method:
    return Method(ITRATrainer, {"matching": form}, "matching_weight", WEIGHTS)


METHODS = {
    "trainer": Method(),
    "half_batch": Method(),
    "itra": Method(ITRATrainer),  # the defaults; auto is class_conditional here
    "itra_marginal": Method(ITRATrainer, {"matching": "marginal"}),
    "itra_joint": Method(ITRATrainer, {"matching": "joint"}),
    "itra_tuned": _tuned_itra("class_conditional"),
    "itra_marginal_tuned": _tuned_itra("marginal"),
    "itra_joint_tuned": _tuned_itra("joint"),
    "label_smoothing": Method(Trainer, {}, "label_smoothing_factor", (0.05, 0.1, 0.2, 0.3)),
    "dropout": Method(Trainer, {}, "dropout", (0.1, 0.3, 0.5, 0.7)),
    "r_drop": Method(RDropTrainer, {}, "strength", (0.1, 0.3, 1.0, 3.0, 10.0), like=("dropout",)),
    "centre_loss": Method(CentreLossTrainer, {}, "strength", (0.001, 0.01, 0.1, 1.0)),
    "supcon": Method(SupConTrainer, {}, "strength", (0.1, 0.3, 0.5, 0.9)),
    "mixup": Method(MixupTrainer, {}, "strength", (0.1, 0.2, 0.4, 1.0)),
    "flooding": Method(FloodingTrainer, {}, "strength", (0.02, 0.05, 0.1, 0.2)),
    "itra+label_smoothing": Method(ITRATrainer, like=("label_smoothing",)),
    "itra+dropout": Method(ITRATrainer, like=("dropout",)),
    "itra+mixup": Method(ITRAMixupTrainer, like=("mixup",)),
}


def one_half_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """The task loss of rows 0, 2, 4, ..., one mini-batch of the pair."""
    return functional.cross_entropy(outputs["logits"][0::2], labels[0::2])


def find_method(name: str) -> tuple[Method, dict[str, Any]]:
    """A method by its name, and the options after a colon: `itra:matching_weight=3,pairing="random"`."""
    base, _, text = name.partition(":")
    if base not in METHODS:
        raise ValueError(f"no method {base!r}; there are {', '.join(METHODS)}")
    pairs = [pair.split("=", 1) for pair in text.split(",")] if text else []
    return METHODS[base], {key: _value(value) for key, value in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def settings(task: Task, name: str, tuned: dict[str, dict[str, float]], overrides: dict[str, Any]) -> dict[str, Any]:
    """Every setting of a run that its task, method and seed do not say yet; all of ITRA's are spelt out.

    Args:
        tuned: of this task: for each method the tuned values.
        overrides: taken last.

    Raises:
        ValueError: if a knob of the method has not been tuned for this task.
    """
    method, own = find_method(name)
    result = {**task.arguments(), **method.options, **tuned.get("trainer", {})}
    names = (*method.like, name.partition(":")[0])
    chosen = USUAL if task.for_gpu else tuned
    for other in names:
        result |= chosen.get(other, {})
    if name == "half_batch":
        result["per_device_train_batch_size"] //= 2
    result |= own | overrides
    if missing := [other for other in names if METHODS[other].knob and METHODS[other].knob not in result]:
        raise ValueError(f"{', '.join(missing)} has no value yet for {task.name}; run it with --tune first")
    if issubclass(method.trainer, ITRATrainer):
        fields = asdict(MatchingArguments())
        result = fields | result
    return dict(sorted(result.items()))
