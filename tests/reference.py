"""The losses straight from their formulas, in float64, pair by pair. Slow, and told by autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, None] - b[None]).pow(2).sum(-1)


def mean_distance(z: Tensor) -> Tensor:
    d = _distances(z, z)
    return d[~torch.eye(len(z), dtype=torch.bool)].mean()


def _kernel(a: Tensor, b: Tensor, bandwidth: Tensor | float, num: int) -> Tensor:
    d = _distances(a, b)
    qs = range(-(num // 2), num // 2 + 1)
    return torch.stack([torch.exp(-d / (2.0**q * bandwidth)) for q in qs]).mean(0)


def _mmd(kss: Tensor, ktt: Tensor, kst: Tensor, unbiased: bool) -> Tensor:
    n, m = kst.shape
    if not unbiased:
        return kss.mean() + ktt.mean() - 2 * kst.mean()
    ss = (kss.sum() - kss.diagonal().sum()) / (n * (n - 1))
    tt = (ktt.sum() - ktt.diagonal().sum()) / (m * (m - 1))
    return ss + tt - 2 * kst.mean()


def _bandwidth(s: Tensor, t: Tensor, bandwidth: float | None) -> Tensor | float:
    return mean_distance(torch.cat([s, t]).detach()) if bandwidth is None else bandwidth


def marginal(s: Tensor, t: Tensor, *, bandwidth: float | None = None, num: int = 5, unbiased: bool = False) -> Tensor:
    s, t = s.double(), t.double()
    bw = _bandwidth(s, t, bandwidth)
    return _mmd(*(_kernel(a, b, bw, num) for a, b in ((s, s), (t, t), (s, t))), unbiased)


def class_conditional(
    s: Tensor,
    t: Tensor,
    ys: Tensor,
    yt: Tensor,
    *,
    bandwidth: float | None = None,
    num: int = 5,
    unbiased: bool = False,
) -> Tensor:
    s, t = s.double(), t.double()
    bw = float(_bandwidth(s, t, bandwidth))
    least = 2 if unbiased else 1
    terms = [
        marginal(s[ys == c], t[yt == c], bandwidth=bw, num=num, unbiased=unbiased)
        for c in sorted(set(ys.tolist()) & set(yt.tolist()))
        if min(int((ys == c).sum()), int((yt == c).sum())) >= least
    ]
    return torch.stack(terms).mean() if terms else (s.sum() + t.sum()) * 0


def joint(
    s: Tensor,
    t: Tensor,
    ys: Tensor,
    yt: Tensor,
    *,
    kernel: str,
    bandwidth: float | None = None,
    num: int = 5,
    unbiased: bool = False,
) -> Tensor:
    s, t = s.double(), t.double()
    ys, yt = ys.double().reshape(len(ys), -1), yt.double().reshape(len(yt), -1)
    bw = _bandwidth(s, t, bandwidth)
    label_bw = mean_distance(torch.cat([ys, yt]))

    def product(a: Tensor, b: Tensor, ya: Tensor, yb: Tensor) -> Tensor:
        if kernel == "delta":
            label = (ya[:, None] == yb[None]).all(-1).double()
        elif kernel == "linear":
            label = (ya[:, None] * yb[None]).sum(-1)
        else:
            label = torch.exp(-_distances(ya, yb) / label_bw)
        return _kernel(a, b, bw, num) * label

    sides = ((s, s, ys, ys), (t, t, yt, yt), (s, t, ys, yt))
    return _mmd(*(product(*side) for side in sides), unbiased)


def dealt(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of either side where each class's rows are dealt out in turn."""
    rows = [row for row, label in enumerate(labels.tolist()) if label != -100]
    ranks = {row: sum(labels[row].item() == labels[other].item() for other in range(row)) for row in rows}
    return tuple(torch.tensor([row for row in rows if ranks[row] % 2 == side], dtype=torch.long) for side in (0, 1))
