"""From tokens to one row per example."""

import torch
from torch import Tensor
from torch.nn import functional


def attended(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The attention mask for `[rows, tokens, d]`, as `[rows, tokens]` integers.

    Tokens that the model put before the text (a prompt) count as attended. Where there are fewer tokens than the mask
    has places, as in a speech model, a token is attended if any of its places is.
    """
    if mask is None or mask.ndim != 2:
        return torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    if mask.shape[1] > tokens.shape[1]:
        return functional.adaptive_max_pool1d(mask.float(), tokens.shape[1]).long()
    return functional.pad(mask.long(), (tokens.shape[1] - mask.shape[1], 0), value=1)


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over the attended tokens of `[rows, tokens, d]`."""
    weights = attended(tokens, mask)[..., None]
    return (tokens * weights).sum(1) / weights.sum(1)


def rows_at(tokens: Tensor, positions: Tensor) -> Tensor:
    """One token of each row of `[rows, tokens, d]`, at `[rows]` positions."""
    return tokens[torch.arange(len(tokens), device=tokens.device), positions]


def end_token(state: Tensor, mask: Tensor | None, last: bool) -> Tensor:
    """The first or the last attended token of `[rows, tokens, d]`."""
    tokens = state.shape[1]
    positions = torch.arange(tokens, device=state.device)
    score = attended(state, mask) * (tokens + (positions if last else -positions))
    return rows_at(state, score.argmax(1))


def picked_position(output: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
    """The token whose head output became the logits, `[rows]`; of several the last one that is attended.

    Args:
        output: of the head, `[rows, tokens, labels]`.
        logits: `[rows, labels]`.
        mask: `[rows, tokens]`.
    """
    distance = (output - logits[:, None]).abs().amax(-1)
    matches = (distance == distance.amin(1, keepdim=True)) * (1 + attended(output, mask))
    tokens = matches.shape[1]
    return (matches * tokens + torch.arange(tokens, device=matches.device)).argmax(1)
