"""Features of all ranks, with the gradient of one process that holds the global batch."""

from typing import cast

import torch
from torch import Tensor, distributed
from torch.nn import functional

Batch = tuple[Tensor, Tensor | None]
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


class RanksDisagreeError(RuntimeError):
    """The ranks' batches do not go together; raised on every rank, so that none waits for another."""


def is_distributed() -> bool:
    """Whether there are several processes."""
    return distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """Which of several processes this is; 0 of one."""
    return distributed.get_rank() if is_distributed() else 0


class BatchGatherer:
    """Gathers the rows and labels of all ranks, step after step, in one collective each.

    A loss of the gathered rows is the same on every rank. So is its gradient, of which each rank takes the part at its
    own rows: the backward pass does not communicate.

    Every rank sends its sizes, and its rows in a space that was large enough on all ranks so far. Where they outgrow
    it somewhere, as in the first step, all ranks see that in the sizes and send once more.

    Args:
        device: of the rows.

    Example:
        >>> [(rows, labels)] = BatchGatherer().gather(torch.ones(2, 3), torch.tensor([0, 1]))
        >>> rows.shape, labels
        (torch.Size([2, 3]), tensor([0, 1]))
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device
        self._space = 0  # bytes, the same on all ranks

    def gather(self, rows: Tensor | None, labels: Tensor | None) -> list[Batch]:
        """The rows and labels of every rank, in rank order, without gradient.

        Args:
            rows: `[n, ...]`; `n` may differ between ranks, the other dimensions may not. None: this rank has none.
            labels: `[n, ...]`, or None on all ranks.

        Returns:
            A pair (rows, labels) for each rank, none where one of the ranks has no rows; the arguments themselves
            where there is only one process.

        Raises:
            RanksDisagreeError: on all ranks, where their rows or labels differ in kind.
        """
        if not is_distributed():
            return [] if rows is None else [(rows, labels)]
        sizes, payload, width = [-1] * 5, torch.empty(0, dtype=torch.uint8, device=self.device), 0
        if rows is not None:
            sizes = [len(rows), *_kind(rows), *((-1, -1) if labels is None else _kind(labels))]
            data = torch.cat([_as_bytes(part) for part in (rows, labels) if part is not None], 1)
            payload, width = data.flatten(), data.shape[1]
        all_sizes, bodies = self._exchange(sizes, payload)
        counts = [count for count, *_ in all_sizes]
        if rows is None or min(counts) < 0:
            return []
        _check_kinds([kinds for _, *kinds in all_sizes])
        if max(counts) * width > self._space:
            self._space = max(counts) * width
            return self.gather(rows, labels)
        parts = [body[: count * width].view(count, width) for body, count in zip(bodies, counts, strict=True)]
        return [_from_bytes(part, rows, labels) for part in parts]

    def _exchange(self, sizes: list[int], payload: Tensor) -> tuple[list[list[int]], list[Tensor]]:
        """The sizes of every rank, and its payload where there was space for it on all of them."""
        header = torch.tensor(sizes, device=payload.device).view(torch.uint8)
        sent = payload if len(payload) <= self._space else payload[:0]
        message = functional.pad(torch.cat([header, sent]), (0, self._space - len(sent)))
        gathered = _all_gather(message)
        headers = torch.stack([part[: len(header)] for part in gathered])
        return headers.view(torch.int64).tolist(), [part[len(header) :] for part in gathered]


def gather_numbers(numbers: list[int], device: torch.device) -> list[list[int]]:
    """The numbers of every rank, in rank order; as many on each."""
    if not is_distributed():
        return [numbers]
    return [theirs.tolist() for theirs in _all_gather(torch.tensor(numbers, device=device))]


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, without gradient; the tensor itself where there is only one process."""
    if is_distributed():
        values = values.detach().clone()
        distributed.all_reduce(values)
    return values


def _all_gather(mine: Tensor) -> list[Tensor]:
    gathered = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, mine)
    return gathered


def _kind(part: Tensor) -> tuple[int, int]:
    """The width and the dtype of rows or labels."""
    return part.shape[1:].numel(), DTYPES.index(part.dtype)


def _check_kinds(kinds: list[list[int]]) -> None:
    """Raise, on every rank, where the rows or labels of the ranks differ in width or dtype."""
    if len({tuple(kind) for kind in kinds}) > 1:
        named = [
            [f"{size} {DTYPES[code]}" if size >= 0 else "none" for size, code in (kind[:2], kind[2:])] for kind in kinds
        ]
        listed = "; ".join(f"rank {number}: {rows} and {labels}" for number, (rows, labels) in enumerate(named))
        raise RanksDisagreeError(
            f"the ranks' batches do not go together; features and labels of a row are {listed}. "
            "Give every rank rows of the same kind, or set gather_features=False"
        )


def _as_bytes(part: Tensor) -> Tensor:
    """Any tensor with rows as bytes, `[n, bytes]`."""
    return part.detach().reshape(len(part), part.shape[1:].numel()).contiguous().view(torch.uint8)


def _from_bytes(part: Tensor, rows: Tensor, labels: Tensor | None) -> Batch:
    """A rank's rows and labels again, which are of the kind of these."""
    likes = [like for like in (rows, labels) if like is not None]
    widths = [like.shape[1:].numel() * like.element_size() for like in likes]
    tensors: list[Tensor | None] = [
        data.clone(memory_format=torch.contiguous_format).view(like.dtype).reshape(len(part), *like.shape[1:])
        for data, like in zip(part.split(widths, 1), likes, strict=True)
    ]
    return cast(Tensor, tensors[0]), [*tensors, None][1]
