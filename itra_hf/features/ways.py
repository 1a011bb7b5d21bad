"""The ways from the outputs of a head to the logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from itra_hf.features.pooling import masked_mean


def poolings(output: Tensor, logits: Tensor, mask: Tensor | None) -> list[str]:
    """The ways from a head's output to the logits, of those that `HeadInput` names."""
    if output.ndim < 2 or len(output) != len(logits) or output.shape[-1] != logits.shape[-1]:
        return []
    output, logits = output.nan_to_num(), logits.nan_to_num()  # a row of NaN hides no head
    if output.ndim == 2:
        return ["row"] if torch.equal(output.to(logits.dtype), logits) else []
    output = output.flatten(1, -2)
    is_picked = (output.to(logits.dtype) == logits[:, None]).all(-1).any(1).all()
    is_mean = _close(masked_mean(output, mask), logits)
    return ["picked"] * bool(is_picked) + ["mean"] * is_mean


def is_mean(outputs: Sequence[Tensor], logits: Tensor) -> bool:
    """Whether the logits are the mean of several outputs of a head, or of two heads."""
    same_shape = all(output.shape == logits.shape for output in outputs)
    return same_shape and _close(torch.stack(tuple(outputs)).mean(0), logits)


def _close(average: Tensor, logits: Tensor) -> bool:
    """Whether an average is the logits, up to the rounding of its precision."""
    tolerance = 16 * torch.finfo(average.dtype).eps * float(logits.abs().max())
    return torch.allclose(average.to(logits.dtype), logits, rtol=0.0, atol=tolerance)
