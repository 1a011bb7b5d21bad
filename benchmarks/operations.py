"""How many operations a step of ITRATrainer adds to one of Trainer, which stand for kernel launches on a GPU.

They are counted as torch dispatches them, in one eager step of a tiny BERT with 8 classes. Left out are views and what
gives no tensor, for these launch nothing. The numbers are the same on every machine.
"""

import tempfile
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, Trainer

from itra_hf import ITRAConfig, ITRATrainer

CLASSES, WARM_UP = 8, 2
SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "32 rows": (32, {}),
    "128 rows": (128, {}),
    "1,024 rows": (1024, {}),
    "32 rows, without the cap": (32, {"matching_max_grad_ratio": None}),
    "32 rows, marginal": (32, {"matching": "marginal"}),
    '32 rows, `matching="none"`': (32, {"matching": "none"}),
}
MARKS = (75, 75, 120, 55, 65, 0)  # of the settings, in their order


class Operations(TorchDispatchMode):
    """Counts the operations within its context by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation, unless it is a view or gives no tensor."""
        result = function(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        name = function._schema.name
        if isinstance(first, torch.Tensor) and not function.is_view and name != "aten::_unsafe_view":
            self.counts[name] += 1
        return result


def counted(cls: type[Trainer], rows: int, **options: Any) -> Counter[str]:
    """The operations of one training step, the third of a run."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=32, num_labels=CLASSES))
    data = [{"input_ids": [1 + row % 49, 2, 3], "labels": row % CLASSES} for row in range(rows * (WARM_UP + 1))]
    found: list[Counter[str]] = []

    class Counting(cls):  # type: ignore[misc, valid-type]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            with Operations() as operations:
                loss = super().training_step(*args, **kwargs)
            found.append(operations.counts)
            return loss

    with tempfile.TemporaryDirectory() as folder:
        quiet = {
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "log_level": "error",
        }
        steps = {"max_steps": WARM_UP + 1, "per_device_train_batch_size": rows, "logging_steps": 500}
        args = ITRAConfig(folder, matching_warmup_ratio=0.0, **quiet, **steps, **options)
        trainer = Counting(model, args, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return found[WARM_UP]


def added(rows: int, **options: Any) -> int:
    """By how many operations a step of ITRATrainer exceeds one of Trainer."""
    return counted(ITRATrainer, rows, **options).total() - counted(Trainer, rows).total()


def table() -> str:
    """The table of operations that a step adds."""
    lines = ["| | operations added to a step | mark |", "|---|---|---|"]
    for (name, (rows, options)), mark in zip(SETTINGS.items(), MARKS, strict=True):
        lines.append(f"| {name} | {added(rows, **options)} | {mark} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
