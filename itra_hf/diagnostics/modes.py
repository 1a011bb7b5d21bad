"""Whether sub-classes that training never saw stay apart in the features."""

import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn.functional import one_hot

from itra_hf.diagnostics.scatter import Features, Labels, checked_classes, rounding_noise


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
        The three measures. Accuracy and separation are NaN if all rows lie at one point, or if a feature is not finite.

    Raises:
        ValueError: if shapes don't fit, if modes are not classes, or if no class has two modes.

    Example:
        >>> features = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0], [9.1]])
        >>> mode_separation(features, ["cat", "cat", "dog", "dog", "car", "car"], [0, 0, 0, 0, 1, 1], neighbours=1)
        {'mode_accuracy': 1.0, 'mode_chance': 0.6666666666666666, 'mode_separation': 1.0}
    """
    if neighbours < 1:
        raise ValueError(f"neighbours={neighbours} must be at least 1")
    given = torch.as_tensor(features).detach().cpu()
    rows = given.double()
    mode = checked_classes(rows, modes)[1]
    members = torch.zeros(len(rows), dtype=torch.long) if classes is None else checked_classes(rows, classes)[1]
    inside = [members == member for member in members.unique()]
    commonest = [int(torch.bincount(mode[each]).max()) for each in inside]
    if all(count == int(each.sum()) for count, each in zip(commonest, inside, strict=True)):
        raise ValueError(f"no class of these {len(rows)} rows has two modes; there is nothing to tell apart")
    accuracy, chance = float("nan"), sum(commonest) / len(rows)
    scatter = float((rows - rows.mean(0)).square().sum() / len(rows))
    if scatter > rounding_noise(given):  # not if a feature is not finite
        accuracy = sum(_right_guesses(rows[each], mode[each], neighbours) for each in inside) / len(rows)
    return {"mode_accuracy": accuracy, "mode_chance": chance, "mode_separation": (accuracy - chance) / (1 - chance)}


def _right_guesses(rows: Tensor, mode: Tensor, neighbours: int) -> int:
    """How many rows' nearest others vote for their mode; of modes with equal votes the first is taken."""
    if len(rows) == 1:  # its mode is known by its class
        return 1
    nearest = NearestNeighbors(n_neighbors=min(neighbours, len(rows) - 1)).fit(rows - rows.mean(0))
    votes = one_hot(mode[torch.as_tensor(nearest.kneighbors(return_distance=False))]).sum(1)
    return int((votes.argmax(1) == mode).sum())
