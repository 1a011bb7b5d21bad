"""What a push to the Hub may not do: give the token away, or fail unseen."""

import copy
from concurrent.futures import Future
from typing import Any

from transformers import TrainingArguments
from transformers.utils import logging

from itra_hf.config import MatchingArguments

logger = logging.get_logger(__name__)

NOT_LOST = (
    "The trained model is not lost: trainer.save_model() writes it to {folder}, and trainer.push_to_hub() pushes it "
    "once the cause is mended."
)


class _UnsavedToken(str):
    """A token of the Hub that pickles to None, so that nothing that is saved or pushed gives it away."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return type(None), ()


def saved_arguments(args: TrainingArguments) -> TrainingArguments:
    """The arguments as they are saved in `training_args.bin`: without this package, and without the Hub's token.

    Args:
        args: of any class. One with the matching's options becomes the next `TrainingArguments` of its ancestors that
            has not, with the options as plain attributes, so that `torch.load` opens it where this package is not
            installed.

    Returns:
        A copy whose `hub_token` still works, but pickles to None.

    Example:
        >>> import pickle
        >>> from itra_hf.config import ITRAConfig, matching_arguments
        >>> plain = saved_arguments(ITRAConfig("out", matching_weight=0.5, hub_token="secret"))
        >>> again = pickle.loads(pickle.dumps(plain))
        >>> type(again).__name__, again.matching_weight, plain.hub_token, again.hub_token
        ('TrainingArguments', 0.5, 'secret', None)
        >>> matching_arguments(again).matching_weight
        0.5
    """
    saved = copy.copy(args)
    if isinstance(args, MatchingArguments):
        parents: Any = type(args).__mro__
        plain = (kind for kind in parents if issubclass(kind, TrainingArguments))
        saved.__class__ = next(kind for kind in plain if not issubclass(kind, MatchingArguments))
    if args.hub_token is not None:
        saved.hub_token = _UnsavedToken(args.hub_token)
    return saved


def warn_of_failed_pushes(jobs: list[Future[Any]], folder: str | None) -> None:
    """Tell of each push in the background that has failed, and forget it; Trainer drops their errors.

    Args:
        jobs: the pushes that Trainer has started.
        folder: where the model is.
    """
    for job in [job for job in jobs if job.done() and job.exception() is not None]:
        jobs.remove(job)
        error = job.exception()
        cause = f" ({error.__cause__})" if error is not None and error.__cause__ is not None else ""
        not_lost = NOT_LOST.format(folder=folder)
        logger.warning(f"A push to the Hub has failed, and training goes on: {error}{cause}\n{not_lost}")
