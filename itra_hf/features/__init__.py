"""The features of a model: the input of its head, or a hidden state, one row per example."""

from itra_hf.features.head import HeadInput, extract_features, head_candidates, linear_layers
from itra_hf.features.hidden_state import HiddenState
from itra_hf.features.reader import FeatureReader, HeadNotFoundError
from itra_hf.features.recorder import Call, Recorder, logits_of
from itra_hf.features.undisturbed import RandomState, kept_buffers, undisturbed
from itra_hf.features.watch import FeatureWatch, Seen

__all__ = [
    "Call",
    "FeatureReader",
    "FeatureWatch",
    "HeadInput",
    "HeadNotFoundError",
    "HiddenState",
    "RandomState",
    "Recorder",
    "Seen",
    "extract_features",
    "head_candidates",
    "kept_buffers",
    "linear_layers",
    "logits_of",
    "undisturbed",
]
