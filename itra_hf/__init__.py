"""In-Training Representation Alignment for the Hugging Face Trainer."""

from itra_hf.config import ITRAConfig
from itra_hf.pairing import ClassPairedSampler
from itra_hf.trainer import ITRATrainer
from itra_hf.version import __version__

__all__ = ["ClassPairedSampler", "ITRAConfig", "ITRATrainer", "__version__"]
