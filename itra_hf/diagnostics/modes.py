"""Whether the sub-classes that training never saw stay apart in the features."""

import torch
from torch import Tensor

from itra_hf.diagnostics.scatter import Features, Labels, checked_classes, rounding_noise, rounding_unit

ROWS_AT_ONCE = 512


def mode_separation(
    features: Features, modes: Labels, classes: Labels | None = None, *, neighbours: int = 10
) -> dict[str, float]:
    """How well sub-classes (modes) that the training never saw can be told apart by their nearest neighbours.

    Each row's mode is predicted as the most common one among its `neighbours` nearest other rows. If classes are given,
    these are rows of its own class. Then

        mode_accuracy   = share of right guesses                            (leave-one-out kNN)
        mode_chance     = share of right guesses of each class's commonest mode
        mode_separation = (mode_accuracy - mode_chance) / (1 - mode_chance)

    so that 1 is perfectly apart, and 0 no better than without features. For instance, the classes are "animal" and
    "vehicle", and the modes are cat, dog, car and ship. A loss that pulls each class to one point loses the modes. A
    loss that pulls near neighbours together keeps them.

    Args:
        features: `[n, d]`.
        modes: `[n]`, integers, booleans or strings.
        classes: `[n]`, what was trained on; without them all rows are neighbours of all.
        neighbours: rows that vote; of classes with fewer others, all of these.

    Returns:
        The three measures. All rows at one point have no neighbours: then accuracy and separation are NaN, as they are
        where a feature is not finite.

    Raises:
        ValueError: if shapes don't fit, if modes are not classes, or if no class has two modes: then there is nothing
            to tell apart.

    Example:
        >>> features = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]])
        >>> mode_separation(features, ["cat", "cat", "dog", "dog", "car", "car"], [0, 0, 0, 0, 1, 1], neighbours=1)
        {'mode_accuracy': 1.0, 'mode_chance': 0.6666666666666666, 'mode_separation': 1.0}
    """
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours} must be at least 1")
    given = torch.as_tensor(features).detach().cpu()
    rows = given.double()
    names, mode = checked_classes(rows, modes)
    members = torch.zeros(len(rows), dtype=torch.long) if classes is None else checked_classes(rows, classes)[1]
    right, by_chance, telling = 0, 0, False
    for member in members.unique():
        inside = members == member
        counts = torch.bincount(mode[inside], minlength=len(names))
        telling = telling or int((counts > 0).sum()) > 1
        by_chance += int(counts.max())
        right += _right_guesses(rows[inside], mode[inside], len(names), neighbours)
    if not telling:
        raise ValueError(f"no class of these {len(rows)} rows has two modes; there is nothing to tell apart")
    accuracy, chance = right / len(rows), by_chance / len(rows)
    scatter, square = (float(part.square().sum() / len(rows)) for part in (rows - rows.mean(0), rows))
    if not scatter > rounding_noise(rounding_unit(given), square):  # also where a feature is not finite
        accuracy = float("nan")
    return {"mode_accuracy": accuracy, "mode_chance": chance, "mode_separation": (accuracy - chance) / (1 - chance)}


def _right_guesses(rows: Tensor, mode: Tensor, number: int, neighbours: int) -> int:
    """How many rows' nearest others vote for their mode; of modes with equal votes the first is taken."""
    rows = rows - rows.mean(0)
    nearest = min(neighbours, len(rows) - 1)
    if nearest == 0:  # the only row of its class, whose mode is known by the class
        return len(rows)
    right = 0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = torch.arange(start, min(start + ROWS_AT_ONCE, len(rows)))
        distances = torch.cdist(rows[part], rows)
        distances[torch.arange(len(part)), part] = float("inf")
        voters = mode[distances.topk(nearest, largest=False).indices]
        votes = torch.nn.functional.one_hot(voters, number).sum(1)
        right += int((votes.argmax(1) == mode[part]).sum())
    return right
