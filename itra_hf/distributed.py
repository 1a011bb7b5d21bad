"""Features of all ranks, with the gradient of one process that holds the global batch."""

from typing import Any, cast

import torch
from torch import Tensor, distributed

Batch = tuple[Tensor, Tensor | None]


class RanksDisagreeError(RuntimeError):
    """The ranks' batches do not go together; raised on every rank, so that none waits for another."""


def is_distributed() -> bool:
    """Whether there are several processes."""
    return distributed.is_initialized() and distributed.get_world_size() > 1


def gather_batches(rows: Tensor, labels: Tensor | None) -> list[Batch]:
    """The rows and labels of every rank, in rank order; this rank's rows carry gradient.

    A loss of the gathered rows is the same on every rank. Its gradient at this rank's rows is multiplied by the
    number of ranks, which the mean over ranks that DDP and FSDP take undoes. So the parameters get the gradient that
    one process with all rows would give them, and the backward pass does not communicate. The forward pass
    does twice: a few numbers that tell the sizes, and the rows with their labels.

    Args:
        rows: `[n, ...]`; `n` may differ between ranks, the other dimensions may not.
        labels: `[n, ...]`, or None on all ranks.

    Returns:
        A pair (rows, labels) for each rank; the arguments themselves where there is only one process.

    Raises:
        RanksDisagreeError: on all ranks, where their rows or labels differ in kind.

    Example:
        >>> [(rows, labels)] = gather_batches(torch.ones(2, 3), torch.tensor([0, 1]))
        >>> rows.shape, labels
        (torch.Size([2, 3]), tensor([0, 1]))
    """
    if not is_distributed():
        return [(rows, labels)]
    parts = [_as_bytes(part) for part in (rows, labels) if part is not None]
    sizes = [len(rows), *(part.shape[1] for part in parts), *([-1] if labels is None else [])]
    all_sizes = gather_numbers(sizes, rows.device)
    if len({tuple(widths) for _, *widths in all_sizes}) > 1:
        listed = ", ".join(f"rank {rank}: {a} and {b}" for rank, (_, a, b) in enumerate(all_sizes))
        raise RanksDisagreeError(
            "the ranks' batches do not go together; bytes by row of features and of labels (-1: no labels) are "
            f"{listed}. Give every rank rows of the same kind, or set gather_features=False"
        )
    counts = [count for count, *_ in all_sizes]
    payload = torch.cat(parts, 1)
    padded = payload.new_zeros(max(counts), payload.shape[1])
    padded[: len(payload)] = payload
    gathered = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(gathered, padded)
    batches = [_from_bytes(part[:count], rows, labels) for part, count in zip(gathered, counts, strict=True)]
    batches[distributed.get_rank()] = (_TimesRanks.apply(rows), labels)
    return batches


def gather_numbers(numbers: list[int], device: torch.device) -> list[list[int]]:
    """The numbers of every rank, in rank order; as many on each."""
    if not is_distributed():
        return [numbers]
    mine = torch.tensor(numbers, device=device)
    gathered = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, mine)
    return [theirs.tolist() for theirs in gathered]


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, without gradient; the tensor itself where there is only one process."""
    if is_distributed():
        values = values.detach().clone()
        distributed.all_reduce(values)
    return values


def _as_bytes(part: Tensor) -> Tensor:
    """Any tensor with rows as bytes, `[n, bytes]`."""
    return part.detach().reshape(len(part), part.shape[1:].numel()).contiguous().view(torch.uint8)


def _from_bytes(part: Tensor, rows: Tensor, labels: Tensor | None) -> Batch:
    """A rank's rows and labels again, which are of the kind of these."""
    likes = [like for like in (rows, labels) if like is not None]
    widths = [like.shape[1:].numel() * like.element_size() for like in likes]
    tensors: list[Tensor | None] = [
        data.contiguous().view(like.dtype).reshape(len(part), *like.shape[1:])
        for data, like in zip(part.split(widths, 1), likes, strict=True)
    ]
    return cast(Tensor, tensors[0]), [*tensors, None][1]


class _TimesRanks(torch.autograd.Function):
    """The identity, whose gradient is multiplied by the number of ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * distributed.get_world_size()
