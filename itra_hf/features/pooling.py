"""From tokens to one row per example."""

import torch
from torch import Tensor
from torch.nn import functional


def pooled(full: Tensor, pooling: str, mask: Tensor | None) -> Tensor:
    """One row per example, `[rows, d]`: as it is, or the `"first"`, `"last"` or `"mean"` of the attended tokens.

    For a map `[rows, d, height, width]`, `"places"` is the mean over its positions.
    """
    if pooling == "places":
        return full.mean((2, 3))
    if full.ndim == 2:
        return full
    tokens = full.flatten(1, -2)
    return masked_mean(tokens, mask) if pooling == "mean" else _end_token(tokens, mask, last=pooling == "last")


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the attended tokens of `[rows, tokens, d]`."""
    weights = _attended(tokens, mask)[..., None]
    return (tokens * weights).sum(1) / weights.sum(1)


def picked(tokens: Tensor, output: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
    """From `[rows, tokens, d]` the token whose head output became the logits; if several, the last attended one."""
    distance = (output - logits[:, None]).abs().amax(-1)
    matches = (distance == distance.amin(1, keepdim=True)) * (1 + _attended(output, mask))
    return _rows_at(tokens, (matches * matches.shape[1] + _positions(output)).argmax(1))


def _end_token(tokens: Tensor, mask: Tensor | None, last: bool) -> Tensor:
    """The first or the last attended token of each row."""
    positions = _positions(tokens)
    score = _attended(tokens, mask) * (tokens.shape[1] + (positions if last else -positions))
    return _rows_at(tokens, score.argmax(1))


def _attended(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The attention mask for `[rows, tokens, d]`, as `[rows, tokens]` integers.

    Tokens that the model put before the text (a prompt) count as attended. A speech model has fewer tokens than the
    mask has places: there a token is attended if any of its places is.
    """
    if mask is None or mask.ndim != 2:
        return torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    if mask.shape[1] > tokens.shape[1]:
        return functional.adaptive_max_pool1d(mask.float(), tokens.shape[1]).long()
    return functional.pad(mask.long(), (tokens.shape[1] - mask.shape[1], 0), value=1)


def _rows_at(tokens: Tensor, positions: Tensor) -> Tensor:
    return tokens[torch.arange(len(tokens), device=tokens.device), positions]


def _positions(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device)
