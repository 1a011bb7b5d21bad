"""Features of all ranks, with the gradient of one process that holds the global batch."""

from typing import Any

import torch
from torch import Tensor, distributed


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks in rank order, of which this rank's carry gradient.

    A loss of the gathered rows is the same on every rank. Its gradient at this rank's rows is multiplied by the
    number of ranks, which the mean over ranks that DDP and FSDP take undoes. So the parameters get the gradient that
    one process with all rows would give them, and the backward pass does not communicate.

    Args:
        rows: `[n, ...]`; `n` may differ between ranks, the other dimensions may not.

    Returns:
        `[sum of n, ...]`; `rows` itself where there is only one process.

    Example:
        >>> gather_rows(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    gathered: Tensor = _GatherRows.apply(rows, [int(count) for count in counts])
    return gathered


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, without gradient; the tensor itself where there is only one process."""
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        values = values.detach().clone()
        distributed.all_reduce(values)
    return values


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        rank = distributed.get_rank()
        ctx.start, ctx.stop = sum(counts[:rank]), sum(counts[: rank + 1])
        ctx.world_size = len(counts)
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.start : ctx.stop] * ctx.world_size, None
