"""Which checkpoint was written to its end, and what the arguments are that are saved with it."""

import copy
import json
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.utils import logging

from itra_hf.config import MatchingArguments

logger = logging.get_logger(__name__)

STATE = "trainer_state.json"


def last_whole_checkpoint(output_dir: str | None) -> str | None:
    """The newest checkpoint of a run that was written to its end; None without one.

    Trainer writes `trainer_state.json` last. So a folder where it is missing or breaks off is what a crash in the
    middle of saving has left; it is passed over with a warning.

    Args:
        output_dir: the run's, with its folders `checkpoint-<step>`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in (5, 10):
        ...     (folder / f"checkpoint-{step}").mkdir()
        >>> _ = (folder / "checkpoint-5" / STATE).write_text("{}")
        >>> Path(last_whole_checkpoint(str(folder))).name
        'checkpoint-5'
    """
    found = Path(output_dir or ".").glob("checkpoint-*")
    steps = {int(number): path for path in found if (number := path.name.split("-", 1)[1]).isdecimal()}
    for step in sorted(steps, reverse=True):
        if _is_whole(steps[step]):
            return str(steps[step])
        logger.warning(
            f"{steps[step]} was not written to its end: its {STATE} is missing or breaks off. It is passed over for "
            "an earlier checkpoint; delete it, or let the resumed run write it anew."
        )
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


class _UnsavedToken(str):
    """A token of the Hub that pickles to None, so that nothing that is saved or pushed gives it away."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return type(None), ()


def saved_arguments(args: TrainingArguments) -> TrainingArguments:
    """The arguments as they are saved in `training_args.bin`: without this package, and without the Hub's token.

    Args:
        args: of any class. One with the matching's options becomes the next class of transformers, with the options as
            plain attributes, so that `torch.load` opens it where this package is not installed.

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
        saved.__class__ = next(kind for kind in parents if not issubclass(kind, MatchingArguments))
    if args.hub_token is not None:
        saved.hub_token = _UnsavedToken(args.hub_token)
    return saved
