"""The means that are logged, and how much of the matching that was asked for took place in a run."""

import torch
from torch import Tensor

from itra_hf.distributed import sum_over_ranks
from itra_hf.step.guards import on_device

LOGGED = ("task_loss", "matching_loss", "matching_weight")
LITTLE = 0.05  # share of the asked weight below which the matching hardly took place


class Tally:
    """Adds up what a run's micro-batches lost and which weight they had; values stay on the device until they are read.

    Example:
        >>> tally = Tally(torch.device("cpu"))
        >>> for _ in range(10):
        ...     tally.add(share=1.0)
        ...     tally.note(torch.tensor(2.0), torch.tensor(0.5), weight=0.01, share=1.0, asked=0.5)
        >>> tally.reached = True
        >>> tally.means()["task_loss"], tally.hardly()[:41]
        (2.0, 'its mean weight was 2 % of the asked one.')
    """

    def __init__(self, device: torch.device) -> None:
        self.rows = 0  # that were matched since the last micro-batch was added
        self.reached = False  # the features, by the backward pass of any step
        self._device = device
        self._steps = self._one_row = 0.0
        self._noted: list[tuple[Tensor, Tensor, Tensor | float, float, float]] = []  # what is in no sum yet
        self._sums, self._of_run = torch.zeros(2, 5, device=device)
        self._has_means = False

    def add(self, share: float) -> None:
        """Count a micro-batch with its share of an optimizer step."""
        self._steps += share
        self._one_row += share * (self.rows == 1)
        self.rows = 0

    def note(self, task_loss: Tensor, value: Tensor, weight: Tensor | float, share: float, asked: float) -> None:
        """Note the losses and the weight of a matched micro-batch, with its share of an optimizer step."""
        self._noted.append((task_loss, value, weight, share, asked))
        self._has_means = True
        if len(self._noted) > 100:
            self._add_up()

    def means(self) -> dict[str, float]:
        """The means since `begin_means`, over ranks and over the optimizer steps that had anything to match."""
        if not self._has_means:  # on no rank
            return {}
        self._add_up()
        *sums, _, steps = sum_over_ranks(self._sums).tolist()
        return {name: total / steps for name, total in zip(LOGGED, sums, strict=True)} if steps else {}

    def begin_means(self) -> None:
        """Begin new means."""
        self._of_run += self._sums
        self._sums.zero_()
        self._has_means = False

    def hardly(self) -> str | None:
        """Why the matching hardly took place since the run began; None where it did."""
        self._add_up()
        _, _, weight, asked, steps = (self._of_run + self._sums).tolist()
        return self.reason(weight, asked, steps)

    def reason(self, weight: float, asked: float, matched: float) -> str | None:
        """The same for the sums of the applied and the asked weights over so many steps that were matched."""
        if matched < 0.5 * self._steps:
            reason = "most batches were passed over, or had no two rows of one class"
            if self._one_row > 0.5 * self._steps:
                reason = "most batches held one row"
            return f"{1 - matched / self._steps:.0%} of the steps had nothing to match ({reason})."
        if not self.reached and self._steps:
            return "no gradient reached the features, which are frozen or detached."
        if weight < LITTLE * asked:
            return (
                f"its mean weight was {100 * weight / asked:.2g} % of the asked one. The cap (matching_max_grad_ratio) "
                "held it down, as it does until the task is learned and where the task's gradient is tiny."
            )
        return None

    def _add_up(self) -> None:
        """Add what was noted to the sums; a matching loss of 0 had nothing to match (one row, no class in common)."""
        if self._noted:
            task_losses, values, weights, shares, asked = zip(*self._noted, strict=True)
            share, wanted = on_device((shares, asked), self._device)
            pairs = zip(weights, values, strict=True)
            applied = [each if isinstance(each, Tensor) else value.new_full((), each) for each, value in pairs]
            parts = [torch.stack(part).float() for part in (list(values), applied)]
            task = torch.stack(task_losses).float() / share  # the task loss of a micro-batch holds its share already
            entries = torch.stack([task, *parts, wanted, torch.ones_like(share)])
            self._sums += (entries * share).masked_fill(parts[0] == 0, 0.0).sum(1)
            self._noted.clear()
