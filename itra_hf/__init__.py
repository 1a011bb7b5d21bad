"""In-Training Representation Alignment for the Hugging Face Trainer."""

from importlib.metadata import version

from itra_hf.config import ITRAConfig
from itra_hf.pairing import ClassPairedSampler
from itra_hf.trainer import ITRATrainer

__version__ = version("itra_hf")

__all__ = ["ClassPairedSampler", "ITRAConfig", "ITRATrainer", "__version__"]
