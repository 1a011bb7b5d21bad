"""A step of ITRATrainer against a step of Trainer on a GPU; `step.py --device cuda` runs this.

The models are of a real size and have random weights, since a step's time does not depend on them. Trainer and
ITRATrainer train in turn. The time is wall time: the host waits for the GPU before and after a run of steps.
"""

import statistics
import tempfile
import time
import warnings
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, Trainer, TrainerCallback

from itra_hf import ITRAConfig, ITRATrainer

DEVICE, CLASSES = "cuda", 8
WARM_UP, STEPS, PAIRS = 10, 30, 9
PROFILED, WATCHED = 5, 10
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
SIZES: dict[str, tuple[dict[str, int], int, int, float]] = {  # configuration, rows, tokens, mark
    "BERT-base": ({}, 32, 128, 1.02),
    "MiniLM size": (MINILM, 32, 64, 1.04),
}
WHAT = """Wall time of ITRATrainer over that of Trainer, in bfloat16. The mark is the highest ratio we want. Launches
are the CUDA kernels that a step starts. Waits count how often the host waits for the GPU in ten steps without
logging."""
NO_GPU = "Not measured on a GPU yet; `python benchmarks/step.py --device cuda` does it."


class Clock(TrainerCallback):
    """Takes the wall time of a step, over some steps after the first ones."""

    def on_step_begin(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            torch.cuda.synchronize()
            self._start = time.perf_counter()
        elif state.global_step == WARM_UP + STEPS:
            torch.cuda.synchronize()
            self.milliseconds = (time.perf_counter() - self._start) * 1e3 / STEPS


class Count(TrainerCallback):
    """Counts the launches of a step, and then the waits for the GPU in some more steps."""

    def on_step_begin(self, args: Any, state: Any, *_: Any, **kwargs: Any) -> None:
        step = state.global_step - WARM_UP
        if step == 0:
            self._profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self._profile.start()
        elif step == PROFILED:
            torch.cuda.synchronize()
            self._profile.stop()
            events = self._profile.key_averages()
            self.launches = sum(event.count for event in events if "LaunchKernel" in event.key) / PROFILED
            self._catcher = warnings.catch_warnings(record=True)
            self._caught = self._catcher.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        elif step == PROFILED + WATCHED:
            torch.cuda.set_sync_debug_mode("default")
            self._catcher.__exit__(None, None, None)
            self.waits = sum("called a synchronizing" in str(warning.message) for warning in self._caught)


def texts(rows: int, tokens: int, steps: int) -> list[dict[str, Any]]:
    """Random tokens for some steps."""
    ids: Tensor = torch.randint(1000, 30000, (rows * steps, tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(tokens, dtype=torch.long)
    return [{"input_ids": row, "attention_mask": mask, "labels": i % CLASSES} for i, row in enumerate(ids)]


def train(cls: type[Trainer], model: torch.nn.Module, rows: int, data: Any, steps: int, callback: Any) -> Any:
    """Train for some steps, and return the callback."""
    with tempfile.TemporaryDirectory() as folder:
        args = ITRAConfig(
            folder,
            per_device_train_batch_size=rows,
            max_steps=steps,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            bf16=True,
            matching_warmup_ratio=0.0,
        )
        trainer = cls(model, args, train_dataset=data, callbacks=[callback])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return callback


def compare(name: str) -> str:
    """A row of the table."""
    sizes, rows, tokens, mark = SIZES[name]
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = BertForSequenceClassification(BertConfig(num_labels=CLASSES, **sizes))
    steps, both = WARM_UP + STEPS + 1, (Trainer, ITRATrainer)
    data = texts(rows, tokens, steps)
    pairs: list[dict[type[Trainer], float]] = []
    for i in range(PAIRS):
        order = both if i % 2 else both[::-1]
        pairs.append({cls: train(cls, model, rows, data, steps, Clock()).milliseconds for cls in order})
    low, ratio, high = statistics.quantiles((pair[ITRATrainer] / pair[Trainer] for pair in pairs), n=4)
    times = [f"{statistics.median(pair[cls] for pair in pairs):.2f}" for cls in both]
    counts = [train(cls, model, rows, data, WARM_UP + PROFILED + WATCHED + 1, Count()) for cls in both]
    launches, waits = (" and ".join(f"{getattr(c, key):,.0f}" for c in counts) for key in ("launches", "waits"))
    ratios = f"{ratio:.3f} ({low:.3f} to {high:.3f}) | {mark}"
    row = f"| {name}, {rows} rows of {tokens} tokens | {' | '.join(times)} | {ratios} | {launches} | {waits} |"
    print(row, flush=True)
    return row


def table() -> str:
    """The table of this GPU."""
    setting = f"Medians of {PAIRS} pairs of runs of {STEPS} steps"
    return "\n".join(
        [
            f"{setting}, torch {torch.__version__}, transformers {transformers.__version__}.\n",
            "| | Trainer, ms per step | ITRATrainer | ratio (quartiles) | mark | launches of both | waits of both |",
            "|---|---|---|---|---|---|---|",
            *map(compare, SIZES),
        ]
    )


def section(text: str, measured: dict[str, str]) -> str:
    """The page's section of GPUs, with newly measured tables by the name of the card."""
    cards = dict(card.strip().split("\n\n", 1) for card in text.split("\n\n### ")[1:]) | measured
    return "\n\n### ".join([f"On a GPU\n\n{WHAT if cards else NO_GPU}", *map("\n\n".join, cards.items())])
