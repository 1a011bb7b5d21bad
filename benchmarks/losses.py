"""Time and memory of the matching losses against their peers: python benchmarks/losses.py [--quick]

One process, one thread. In each round every contender meets ours in a pair, one right after the other, so
that both find the machine alike; the order of pairs and within a pair is shuffled, since what ran before
leaves the caches full or empty. A pair gives one ratio of process CPU times, and the tables hold medians
over the rounds. Every time is forward and backward. A peer that is not installed is reported as such.
Before all, a large block is given back, as happens in training: from then on the C library keeps what is
freed, and no contender pays for fresh memory pages in each step.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor

from itra_hf.losses import class_conditional_mmd, joint_mmd, marginal_mmd

Run = Callable[[], Any]
DIM = 768
MISSING = "not installed"


def features(n: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(n)
    return [torch.randn(n, DIM, generator=g).requires_grad_() for _ in range(2)]


def stepped(loss: Callable[[Tensor, Tensor], Tensor], n: int) -> Run:
    source, target = features(n)

    def run() -> None:
        loss(source, target).backward()
        source.grad = target.grad = None

    return run


def roof(n: int) -> Run:
    """Two dense GEMMs of the shape of a loss: the Gram matrix, and a matrix times the features."""
    z = torch.cat(features(n)).detach()
    return lambda: torch.mm(torch.mm(z, z.T), z)


def adapt(n: int, bandwidths: int) -> Run | None:
    try:
        from pytorch_adapt.layers import MMDLoss
    except ImportError:
        return None
    scales = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25]) if bandwidths == 5 else 1.0
    return stepped(MMDLoss(kernel_scales=scales, mmd_type="quadratic"), n)


def geomloss(n: int) -> Run | None:
    try:
        from geomloss import SamplesLoss
    except ImportError:
        return None
    return stepped(SamplesLoss("gaussian", blur=DIM**0.5, backend="tensorized"), n)


def class_loop(source: Tensor, target: Tensor, ys: Tensor, yt: Tensor) -> Tensor:
    """The class-conditional loss as one writes it first: a loop over classes with cdist."""
    z = torch.cat([source, target]).detach()
    bandwidth = 2 * (z - z.mean(0)).square().sum() / (len(z) - 1)
    terms = []
    for c in sorted(set(ys.tolist()) & set(yt.tolist())):
        s, t = source[ys == c], target[yt == c]
        d = torch.cdist(torch.cat([s, t]), torch.cat([s, t])).square()
        k = sum(torch.exp(-d / (2.0**q * bandwidth)) for q in range(-2, 3)) / 5
        n = len(s)
        terms.append(k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean())
    return torch.stack(terms).mean()


def class_runs(n: int, classes: int) -> dict[str, Run | None]:
    g = torch.Generator().manual_seed(classes)
    ys, yt = (torch.randint(0, classes, (n,), generator=g) for _ in range(2))
    return {
        "class_conditional": stepped(lambda s, t: class_conditional_mmd(s, t, ys, yt), n),
        "loop over classes": stepped(lambda s, t: class_loop(s, t, ys, yt), n),
        "joint": stepped(lambda s, t: joint_mmd(s, t, ys, yt), n),
    }


def marginal_runs(n: int) -> dict[str, Run | None]:
    return {
        "marginal": stepped(marginal_mmd, n),
        "roof": roof(n),
        "one bandwidth": stepped(lambda s, t: marginal_mmd(s, t, num_bandwidths=1), n),
        "pytorch-adapt, 5 bandwidths": adapt(n, 5),
        "pytorch-adapt, 1 bandwidth": adapt(n, 1),
        "geomloss, 1 bandwidth": geomloss(n),
    }


def cpu_time(run: Run, repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - start) / repeats


def compare(runs: dict[str, Run | None], rounds: int, repeats: int) -> dict[str, Any]:
    """Return {name: milliseconds and ratio to the first name, medians over rounds}."""
    ready = {name: run for name, run in runs.items() if run}
    ours, *others = ready
    times: dict[str, list[float]] = {name: [] for name in ready}
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for run in ready.values():
        cpu_time(run, 1)
    order = random.Random(0)  # noqa: S311
    for _ in range(rounds):
        for other in order.sample(others, len(others)):
            pair = {name: cpu_time(ready[name], repeats) for name in order.sample([ours, other], 2)}
            ratios[other].append(pair[other] / pair[ours])
            for name, seconds in pair.items():
                times[name].append(seconds)
    out: dict[str, Any] = dict.fromkeys(runs, MISSING)
    for name, t in times.items():
        ratio = statistics.median(ratios[name]) if name in ratios else 1.0
        out[name] = {"ms": statistics.median(t) * 1e3, "ratio": ratio, "rounds": rounds}
    return out


def peak_bytes(run: Run) -> int:
    """Return the most that torch's allocator held at once above the start, during `run`."""
    run()
    with torch.profiler.profile(profile_memory=True) as prof:
        run()
    events = prof.profiler.kineto_results.events()
    moves = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, size in moves:
        held += size
        peak = max(peak, held)
    return peak


def peak_over_features(run: Run | None, n: int) -> float | str:
    return peak_bytes(run) / (2 * n * DIM * 4) if run else MISSING


def effort(n: int) -> tuple[int, int]:
    """Return (rounds, repeats in a round)."""
    return {16: (41, 20), 64: (41, 10), 256: (41, 2), 1024: (21, 1)}.get(n, (11, 1))


def cell(value: Any, form: str = "{:.2f}") -> str:
    return value if isinstance(value, str) else form.format(value)


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def section(results: dict[str, dict[str, Any]], key: str, first: str) -> str:
    """A row for each size: our milliseconds, then the others' time over ours."""
    names = list(next(iter(results.values())))
    rows = []
    for size, row in results.items():
        others = [r if isinstance(r, str) else r["ratio"] for r in list(row.values())[1:]]
        rows.append([size, cell(row[names[0]]["ms"]), *(cell(v) + " x" * (v != MISSING) for v in others)])
    return f"{first}\n\n" + table([key, f"{names[0]}, ms", *names[1:]], rows)


def page(machines: dict[str, dict[str, Any]]) -> str:
    """The last measurement of every machine that `performance-losses.json` holds."""
    intro = (
        "# Performance of the losses\n\nForward and backward, float32, features `[n, 768]` on each side, process CPU "
        "time, one thread, medians over rounds, in each of which ours ran just before or after the other. The roof is "
        "two dense matrix products of the same shape. A figure above 1 x means that the other takes longer than ours. "
        "Which is faster, matrix products or what is done to each element, depends on the processor; so each machine "
        "that was measured has its tables.\n"
    )
    return "\n".join([intro, *map(tables_of, machines.values())])


def tables_of(raw: dict[str, Any]) -> str:
    memory = {size: list(row.items()) for size, row in raw["memory"].items()}
    names = [name for name, _ in next(iter(memory.values()))]
    rows = [[size, *(cell(v) for _, v in row)] for size, row in memory.items()]
    return "\n".join(
        [
            f"## {raw['machine']}\n",
            f"torch {raw['torch']}, Python {raw['python']}; `{raw['command']}` at commit {raw['commit']}.\n",
            section(raw["marginal"], "n", "### Marginal\n\nTime of the others over ours."),
            section(
                raw["classes"],
                "classes",
                f"### Class-conditional, n = {raw['class_n']}\n\nTime of the others over ours.",
            ),
            "### Peak memory\n\nMost memory held during a step, over the bytes of the features of both sides.\n",
            table(["n", *names], rows),
        ]
    )


def commit() -> str:
    """The code's commit, with a + where files were changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def measure(quick: bool) -> dict[str, Any]:
    sizes = [16, 64, 256] if quick else [16, 64, 256, 1024, 4096]
    class_n, counts = (256, [2, 10, 77]) if quick else (1024, [2, 10, 77, 1000])
    raw: dict[str, Any] = {
        "machine": machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "command": "python benchmarks/losses.py" + " --quick" * quick,
        "class_n": class_n,
        "marginal": {},
        "classes": {},
        "memory": {},
    }
    for n in sizes:
        raw["marginal"][str(n)] = compare(marginal_runs(n), *effort(n))
        print(n, raw["marginal"][str(n)], flush=True)
    for classes in counts:
        raw["classes"][str(classes)] = compare(class_runs(class_n, classes), *effort(class_n))
        print(classes, raw["classes"][str(classes)], flush=True)
    for n in sizes[2:]:
        runs = marginal_runs(n) | class_runs(n, 10)
        raw["memory"][str(n)] = {name: peak_over_features(run, n) for name, run in runs.items()}
    return raw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes only; prints the page")
    parser.add_argument("--out", type=Path, help="folder to write to (docs; --quick: none)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.ones(30 * 2**18)  # freed at once; 30 MB, just below the C library's limit
    raw = measure(args.quick)
    print(tables_of(raw))
    out = args.out or (None if args.quick else Path(__file__).parent.parent / "docs")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        file = out / "performance-losses.json"
        machines = json.loads(file.read_text()) if file.exists() else {}
        machines[raw["machine"]] = raw
        file.write_text(json.dumps(machines, indent=1) + "\n")
        (out / "performance-losses.md").write_text(page(machines))


if __name__ == "__main__":
    main()
