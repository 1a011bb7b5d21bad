"""Matching losses to be tried against the class-conditional one: a contrast between classes, another kernel scale."""

import torch
from torch import Tensor
from torch.nn import functional

from itra_hf.losses import class_conditional_mmd


def kernel(z: Tensor) -> Tensor:
    """`[n, n]`, five Gaussians with the package's mean rule; no gradient passes through the bandwidth."""
    squares = (z[:, None] - z).square().sum(-1)
    bandwidth = squares.detach().sum() / (len(z) * (len(z) - 1))
    return torch.stack([torch.exp(-squares / (2.0**q * bandwidth)) for q in range(-2, 3)]).mean(0)


def contrastive_discrepancy(
    source: Tensor, target: Tensor, source_labels: Tensor, target_labels: Tensor, contrast: float
) -> Tensor:
    """`mean_c D(c, c) - contrast * mean_(c != c') D(c, c')` over the classes c of both sides.

    `D(c, c')` is the squared MMD between the source's rows of class c and the target's rows of class c', biased. With
    a contrast of 0 this is the class-conditional loss, with 1 the contrastive domain discrepancy (Kang et al., CVPR
    2019), both sides labelled.
    """
    known = source_labels.unique()
    known = known[torch.isin(known, target_labels)]
    if len(known) == 0:
        return (source.sum() + target.sum()) * 0.0
    shares = [
        functional.normalize((known[:, None] == labels).float(), p=1.0) for labels in (source_labels, target_labels)
    ]
    k, n = kernel(torch.cat([source, target]).float()), len(source)
    own = [
        torch.einsum("ci,ij,cj->c", share, block, share)
        for share, block in zip(shares, (k[:n, :n], k[n:, n:]), strict=True)
    ]
    across = own[0][:, None] + own[1] - 2 * shares[0] @ k[:n, n:] @ shares[1].T
    same, classes = across.diagonal().sum(), len(known)
    others = (across.sum() - same) / max(classes * (classes - 1), 1)
    return same / classes - contrast * others


def rescaled_discrepancy(
    source: Tensor, target: Tensor, source_labels: Tensor, target_labels: Tensor, scale: float
) -> Tensor:
    """The class-conditional loss with a bandwidth of `scale` times the mean rule's."""
    with torch.no_grad():
        mean_square = 2 * torch.cat([source, target]).float().var(0).sum()  # over all pairs of different rows
    return class_conditional_mmd(source, target, source_labels, target_labels, bandwidth=float(scale * mean_square))
