"""How much of the matching that was asked for took place in a run, and why it was little."""

LITTLE = 0.05  # share of the asked weight below which the matching hardly took place


class Tally:
    """Counts the steps of a run; what lies on the device is added at its end.

    Example:
        >>> tally = Tally()
        >>> for _ in range(10):
        ...     tally.add(share=1.0)
        >>> tally.reached = True
        >>> tally.reason(weight=5.0, asked=5.0, matched=10.0)
        >>> tally.reason(weight=0.1, asked=5.0, matched=10.0)[:41]
        'its mean weight was 2 % of the asked one.'
    """

    def __init__(self) -> None:
        self.rows = 0  # that were matched since the last micro-batch was added
        self.reached = False  # the features, by the backward pass of any step
        self._steps = self._one_row = 0.0

    def add(self, share: float) -> None:
        """Count a micro-batch with its share of an optimizer step."""
        self._steps += share
        self._one_row += share * (self.rows == 1)
        self.rows = 0

    def reason(self, weight: float, asked: float, matched: float) -> str | None:
        """Why the matching of the run hardly took place; None where it did.

        Args:
            weight: the sum of the applied weights over the steps that had anything to match.
            asked: the sum of those that were asked for, over the same steps.
            matched: how many these were.
        """
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
