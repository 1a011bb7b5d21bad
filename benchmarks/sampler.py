"""An epoch's order of ClassPairedSampler against torch.randperm, in one process and one thread, interleaved.

    python benchmarks/sampler.py

Prints the table and writes it to docs/performance-sampler.md. Times are CPU time of the process.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from itra_hf import ClassPairedSampler

ROUNDS = 7
SETTINGS = ((100_000, 10), (1_000_000, 100), (10_000_000, 1_000), (10_000_000, 100_000))


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(rows: int, classes: int) -> str:
    """A row of the table."""
    sampler = ClassPairedSampler(torch.randint(classes, (rows,)))
    times = [(seconds(lambda: torch.randperm(rows)), seconds(sampler.order)) for _ in range(ROUNDS)]
    plain, paired = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(ours / theirs for theirs, ours in times)
    return f"| {rows:,} | {classes:,} | {plain:.4f} s | {paired:.4f} s | {ratio:.2f} |"


def main() -> None:
    torch.set_num_threads(1)
    lines = ["| rows | classes | torch.randperm | ClassPairedSampler | ratio |", "|---|---|---|---|---|"]
    lines += [measure(*setting) for setting in SETTINGS]
    text = f"Medians of {ROUNDS} rounds, torch {torch.__version__}, one thread. `python benchmarks/sampler.py`\n\n"
    text += "\n".join(lines)
    print(text)
    page = Path(__file__).parent.parent / "docs" / "performance-sampler.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(f"# The order of an epoch\n\n{text}\n")


if __name__ == "__main__":
    main()
