"""Which checkpoint was written to its end."""

import json
from pathlib import Path

from transformers.utils import logging

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
