"""Which checkpoint is whole, and what is broken in the others."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import logging

logger = logging.get_logger(__name__)

STATE = "trainer_state.json"
FILES = "ITRACheckpointFiles"  # under this name the state lists the files
TEXTS = (".json", ".jsonl", ".md", ".txt", ".jinja")
OWN = ("model", "pytorch_model", "adapter_model", "optimizer", "scheduler", "scaler", "rng_state")


def last_whole_checkpoint(output_dir: str | None) -> str | None:
    """The newest checkpoint in a run's `output_dir` without a missing, empty or cut-off file; None without one.

    A warning names each checkpoint that is passed over, such as one that a crash interrupted.
    """
    found = Path(output_dir or ".").glob("checkpoint-*")
    steps = {int(number): path for path in found if (number := path.name.split("-", 1)[1]).isdecimal()}
    for step in sorted(steps, reverse=True):
        fault = fault_of(steps[step])
        if fault is None:
            return str(steps[step])
        logger.warning(
            f"{steps[step]} is passed over for an earlier checkpoint: {fault}. Delete it, or let the resumed run write "
            "it anew."
        )
    return None


def fault_of(checkpoint: Path) -> str | None:
    """The first fault of a checkpoint, such as "optimizer.pt is missing"; None if it is whole.

    The state of an `ITRATrainer` lists the checkpoint's files and their sizes. Trainer's state lists nothing, so only
    the end of each file of weights or states is checked.
    """
    try:
        state = dict(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return f"{STATE} is missing or cut off"
    sizes = (state.get("stateful_callbacks") or {}).get(FILES, {}).get("attributes", {}).get("sizes", {})
    for name, size in sizes.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if (checkpoint / name).stat().st_size != size:
            return f"{name} has {(checkpoint / name).stat().st_size:,} bytes of {size:,}"
    broken = (path for path in sorted(checkpoint.glob("*")) if _is_cut_off(path))
    return next((f"{path.name} is empty or cut off" for path in broken), None)


def sizes_of(checkpoint: Path) -> dict[str, int]:
    """The sizes of a checkpoint's files by name, without texts, which people and callbacks change."""
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    kept = (path for path in files if path.suffix not in TEXTS or path.name.endswith(".index.json"))
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in kept}


def _is_cut_off(path: Path) -> bool:
    """Whether the end of a file is missing; only Trainer's own files are checked."""
    if not path.is_file() or not path.name.startswith(OWN):
        return False
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return False
    except SafetensorError:
        return True
    return path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path)
