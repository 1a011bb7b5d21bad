"""An epoch's order of ClassPairedSampler against torch.randperm, in one process and one thread, interleaved.

Then the labels of a shuffled `datasets.Dataset`, read as ITRATrainer reads them before the first epoch.

    python benchmarks/sampler.py

Prints the table and writes it to docs/performance-sampler.md. Times are CPU time of the process; memory is how far the
resident memory of a forked process rises at its highest, beside the bytes of an int64 array of all rows.
"""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from machine import machine

from itra_hf import ClassPairedSampler
from itra_hf.pairing import class_column

ROUNDS = 7
SETTINGS = ((100_000, 10), (1_000_000, 100), (10_000_000, 1_000), (10_000_000, 100_000))


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def peak_bytes(function: Callable[[], object]) -> int:
    """The most memory that a call takes."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def call() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    kilobytes = receiver.recv()
    process.join()
    return int(kilobytes * 1024)


def measure(rows: int, classes: int) -> str:
    """A row of the table."""
    sampler = ClassPairedSampler(torch.randint(classes, (rows,)))
    times = [(seconds(lambda: torch.randperm(rows)), seconds(sampler.order)) for _ in range(ROUNDS)]
    plain, paired = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(ours / theirs for theirs, ours in times)
    memory = (
        f"{peak_bytes(sampler.order) / (8 * rows):.2f}" if rows >= 10_000_000 else ""
    )  # below, a process's other pages count
    return f"| {rows:,} | {classes:,} | {plain:.4f} s | {paired:.4f} s | {ratio:.2f} | {memory} |"


def read_labels(rows: int, kind: type) -> str:
    """A row of the table of labels."""
    labels = [kind(label) for label in torch.randint(100, (rows,)).tolist()]
    dataset = Dataset.from_dict({"label": labels}).shuffle(seed=0)

    def read() -> object:
        return class_column(dataset, torch.nn.Identity(), ["label"], lambda rows: None)

    seconds(read)  # the first call imports what reading needs
    time = statistics.median(seconds(read) for _ in range(ROUNDS))
    return f"| {rows:,} | {kind.__name__} | {time:.3f} s | {peak_bytes(read) / 1e6:.0f} MB |"


def main() -> None:
    torch.set_num_threads(1)
    lines = ["| rows | classes | torch.randperm | ClassPairedSampler | ratio | peak memory, int64 arrays |"]
    lines.append("|---|---|---|---|---|---|")
    lines += [measure(*setting) for setting in SETTINGS]
    text = "What `ClassPairedSampler` costs: the time to make the order of one epoch, against `torch.randperm`.\n\n"
    text += f"Medians of {ROUNDS} rounds, torch {torch.__version__}, one thread of {machine()}. "
    text += "`python benchmarks/sampler.py`\n\n"
    text += "\n".join(lines)
    text += (
        "\n\n## The labels of a shuffled datasets.Dataset\n\n| rows | label | time | peak memory |\n|---|---|---|---|\n"
    )
    text += "\n".join(read_labels(1_000_000, kind) for kind in (int, str))
    print(text)
    page = Path(__file__).parent.parent / "docs" / "performance-sampler.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(f"# The order of an epoch\n\n{text}\n")


if __name__ == "__main__":
    main()
