"""In-Training Representation Alignment for the Hugging Face Trainer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from itra_hf.version import __version__

if TYPE_CHECKING:
    from itra_hf.config import ITRAConfig
    from itra_hf.pairing import ClassPairedSampler
    from itra_hf.trainer import ITRATrainer

__all__ = ["ClassPairedSampler", "ITRAConfig", "ITRATrainer", "__version__"]

PLACES = {"ClassPairedSampler": "itra_hf.pairing", "ITRAConfig": "itra_hf.config", "ITRATrainer": "itra_hf.trainer"}
ROOMS = (
    "command",
    "config",
    "diagnostics",
    "distributed",
    "features",
    "files",
    "hub",
    "labels",
    "losses",
    "pairing",
    "report",
    "step",
    "trainer",
)


def __getattr__(name: str) -> Any:
    """Import a public name, or a room, when it is asked for: `itra-hf --help` need not wait for Trainer."""
    if name in PLACES:
        return getattr(import_module(PLACES[name]), name)
    if name in ROOMS:
        return import_module(f"itra_hf.{name}")
    raise AttributeError(f"module 'itra_hf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *PLACES, *ROOMS])
