"""Time and memory of the matching losses: python benchmarks/losses.py [--quick] [--out FOLDER] [--device cpu|cuda]

Ours meets another loss in pairs, one right after the other, so that both find the machine alike. The order of the
pairs, and within a pair, is shuffled, since what ran before leaves the caches full or empty. A pair gives one ratio,
and the tables hold medians of ratios. Every time is forward and backward: on a CPU the CPU time of the process, in one
thread, on a GPU the time between two CUDA events. A peer that is not installed is reported as such.
Before all, a large block is given back, as happens in training: from then on the C library keeps what is freed, and no
loss pays for fresh memory pages in each step.
"""

import argparse
import itertools
import json
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor
from torch.nn.functional import one_hot

from itra_hf.losses import class_conditional_mmd, joint_mmd, marginal_mmd

Run = Callable[[], Any]
Loss = Callable[..., Tensor]
DIM, CLASSES, MISSING = 768, 10, "not installed"


def classes(n: int) -> Tensor:
    return torch.randint(CLASSES, (n,))


FORMS: dict[str, tuple[Loss, Callable[[int], Tensor]]] = {  # our loss, and its labels
    "marginal": (lambda source, target, *_: marginal_mmd(source, target), classes),
    "class-conditional": (class_conditional_mmd, classes),
    "joint, class labels": (joint_mmd, classes),
    "joint, multi-label": (joint_mmd, lambda n: (torch.rand(n, CLASSES) < 0.3).float()),
    "joint, numbers": (joint_mmd, torch.randn),
}
BY_HAND_MARK, MEMORY_MARK, PRODUCTS_MARK = 0.6, 3.5, {"cpu": 1.6, "cuda": 1.5}
INTRO = """# Performance of the losses

Time and memory of the matching losses alone, without a model. `python benchmarks/losses.py` measures your machine.

| term | meaning |
|---|---|
| time | one forward and backward pass over float32 features of shape `[n, 768]` on each side |
| on a CPU | CPU time of one thread |
| on a GPU | time between two CUDA events |
| ratio | median over pairs of runs: our loss, and the other loss right before or after it |
| bold | the ratio misses its mark |
"""
NO_GPU = "Not measured on a GPU yet; `python benchmarks/losses.py --device cuda` does it.\n"


def by_hand(form: str, source: Tensor, target: Tensor, ys: Tensor, yt: Tensor) -> Tensor:
    """The loss as one writes it first: one masked N x N pass under autograd."""
    z, y = torch.cat([source, target]), torch.cat([ys, yt])
    squares = z.square().sum(1)
    distances = (squares[:, None] + squares - 2 * z @ z.T).clamp(min=0)
    bandwidth = distances.detach().sum() / (len(z) * (len(z) - 1))
    kernel = sum(torch.exp(-distances / (2.0**q * bandwidth)) for q in range(-2, 3)) / 5
    if form == "class-conditional":
        members, others = one_hot(ys, CLASSES).float(), one_hot(yt, CLASSES).float()
        first, second = members.sum(0), others.sum(0)
        has_both = (first > 0) & (second > 0)
        w = torch.cat([members / first.clamp(min=1), -others / second.clamp(min=1)]) * has_both
        return (kernel * (w @ w.T)).sum() / has_both.sum()
    w = torch.cat([torch.full_like(squares[: len(ys)], 1 / len(ys)), torch.full_like(squares[len(ys) :], -1 / len(yt))])
    weights = torch.outer(w, w)
    if form == "joint, class labels":
        weights = weights * (y[:, None] == y)
    elif form == "joint, multi-label":
        weights = weights * (y @ y.T)
    elif form == "joint, numbers":
        apart = (y[:, None] - y).square()
        weights = weights * torch.exp(-apart / (apart.sum() / (len(y) * (len(y) - 1))))
    return (kernel * weights).sum()


def stepped(loss: Loss, label: Callable[[int], Tensor] | None, n: int, device: str) -> Run:
    """Forward and backward of a loss of features, and of labels if it takes some."""
    torch.manual_seed(n)
    source, target = (torch.randn(n, DIM).to(device).requires_grad_() for _ in range(2))
    labels = [label(n).to(device) for _ in range(2)] if label else []

    def run() -> None:
        loss(source, target, *labels).backward()
        source.grad = target.grad = None

    return run


def two_products(n: int, device: str) -> Run:
    """Two dense matrix products of the shape of a loss: the Gram matrix, and a matrix times the features."""
    z = torch.randn(2 * n, DIM).to(device)
    return lambda: torch.mm(torch.mm(z, z.T), z)


def peer(name: str, n: int, device: str) -> Run | None:
    """The marginal loss of another library: pytorch-adapt has five bandwidths, geomloss one."""
    try:
        if name == "geomloss":
            from geomloss import SamplesLoss

            return stepped(SamplesLoss("gaussian", blur=DIM**0.5, backend="tensorized"), None, n, device)
        from pytorch_adapt.layers import MMDLoss
    except ImportError:
        return None
    scales = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25], device=device)
    return stepped(MMDLoss(kernel_scales=scales, mmd_type="quadratic"), None, n, device)


def milliseconds(run: Run, repeats: int, device: str) -> float:
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats
    begin = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - begin) * 1e3 / repeats


def compare(pairs: dict[str, tuple[Run, Run | None]], n: int, device: str) -> dict[str, Any]:
    """For each pair of ours and another: our milliseconds, and ours over the other's; medians over rounds."""
    rounds, repeats = {64: (41, 10), 128: (31, 5), 256: (31, 2), 1024: (13, 1), 4096: (5, 1)}.get(n, (41, 20))
    seen: dict[str, list[list[float]]] = {name: [] for name, (_, other) in pairs.items() if other}
    order = random.Random(0)  # noqa: S311
    for i in range(rounds + 1):
        for name in order.sample([*seen], len(seen)):
            took = [0.0, 0.0]
            for which in order.sample((0, 1), 2):
                took[which] = milliseconds(pairs[name][which], repeats if i else 1, device)
            if i:  # the first round warms up
                seen[name].append(took)
    found: dict[str, Any] = dict.fromkeys(pairs, MISSING)
    for name, times in seen.items():
        ratio = statistics.median(mine / other for mine, other in times)
        found[name] = {"ms": statistics.median(mine for mine, _ in times), "ratio": ratio}
        print(f"n = {n}, {name}: ratio {ratio:.3f}", flush=True)
    return found


def peak_bytes(run: Run, device: str) -> int:
    """The most that torch's allocator held at once above the start, during `run`."""
    run()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as prof:
        run()
    events = prof.profiler.kineto_results.events()
    moves = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in moves))


def measure(device: str, quick: bool) -> dict[str, Any]:
    small = (8, 16, 32) if quick else (8, 16, 32, 64, 128, 256)
    large = (16, 64, 1024) if quick else (16, 64, 256, 1024, 4096)

    hand, rest = {}, {}
    for n in small:
        pairs = {
            form: (stepped(loss, label, n, device), stepped(partial(by_hand, form), label, n, device))
            for form, (loss, label) in FORMS.items()
        }
        hand[str(n)] = compare(pairs, n, device)
    for n in large:
        pairs = {
            f"{form} / two products": (stepped(*FORMS[form], n, device), two_products(n, device))
            for form in ("marginal", "class-conditional") * (n >= 1024)
        }
        one_bandwidth = partial(marginal_mmd, num_bandwidths=1)
        pairs["pytorch-adapt / ours"] = stepped(marginal_mmd, None, n, device), peer("pytorch-adapt", n, device)
        pairs["geomloss / ours, one bandwidth"] = stepped(one_bandwidth, None, n, device), peer("geomloss", n, device)
        rest[str(n)] = compare(pairs, n, device)
    n = large[-1]
    memory = {form: peak_bytes(stepped(*FORMS[form], n, device), device) / (2 * n * DIM * 4) for form in FORMS}
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else machine(),
        "device": device,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),  # noqa: S603
        "command": f"python benchmarks/losses.py{' --device cuda' * (device == 'cuda')}{' --quick' * quick}",
        "by_hand": hand,
        "large": rest,
        "memory": {"n": n, "peak": memory},
    }


def bold(ratio: float, mark: float) -> str:
    return f"**{ratio:.2f}**" if round(ratio, 2) > mark else f"{ratio:.2f}"


def cell(found: Any, mark: float, name: str = "") -> str:
    """Our milliseconds, and ours over the other's, or the other's over ours where the name says so."""
    if not isinstance(found, dict):
        return found
    ratio = f"{1 / found['ratio']:.2f} x" if "/ ours" in name else bold(found["ratio"], mark)
    return f"{found['ms']:.2f} ms, {ratio}"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---:"] * len(head), *rows])


def tables(raw: dict[str, Any]) -> str:
    mark, memory, names = PRODUCTS_MARK[raw["device"]], raw["memory"], [*raw["large"][max(raw["large"], key=int)]]
    hand = [[n, *(cell(row[form], BY_HAND_MARK) for form in FORMS)] for n, row in raw["by_hand"].items()]
    large = [[n, *(cell(row.get(name, ""), mark, name) for name in names)] for n, row in raw["large"].items()]
    return f"""## {raw["machine"]}

torch {raw["torch"]}, Python {raw["python"]}; `{raw["command"]}` at commit {raw["commit"]}.

### Against the loss written by hand

Our time, and the ratio ours / by hand. "By hand" is one masked N x N pass under autograd. The mark is {BY_HAND_MARK}.

{table(["n", *FORMS], hand)}

### Large batches and peers

Our time, and a ratio. "Two products" are dense matrix products of the same shape; the mark is {mark}. A peer computes
the marginal loss: pytorch-adapt with five bandwidths, geomloss with one. Above 1 x, the peer takes longer.

{table(["n", *names], large)}

### Peak memory

Peak over the bytes of the features, at n = {memory["n"]}. The mark is {MEMORY_MARK}.

{table([*FORMS], [[bold(memory["peak"][form], MEMORY_MARK) for form in FORMS]])}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes only; prints the tables")
    parser.add_argument("--out", type=Path, help="folder to write to (docs; --quick: none)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.ones(30 * 2**18)  # freed at once; 30 MB, just below the C library's limit
    raw = measure(args.device, args.quick)
    print(tables(raw))
    out = args.out or (None if args.quick else Path(__file__).parent.parent / "docs")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        file = out / "performance-losses.json"
        before = json.loads(file.read_text()) if file.exists() else {}
        machines = {name: old for name, old in before.items() if old.keys() >= raw.keys()} | {raw["machine"]: raw}
        file.write_text(json.dumps(machines, indent=1) + "\n")
        no_gpu = [] if any(one["device"] == "cuda" for one in machines.values()) else [NO_GPU]
        page = "\n".join([INTRO, *no_gpu, *map(tables, machines.values())])
        (out / "performance-losses.md").write_text(page)


if __name__ == "__main__":
    main()
