"""The features of a model: the input of its head, or a hidden state, one row per example."""

from itra_hf.features.head import HeadInput
from itra_hf.features.hidden_state import HiddenState
from itra_hf.features.layers import head_candidates, module_named
from itra_hf.features.reader import AmbiguousHeadError, FeatureReader, HeadNotFoundError
from itra_hf.features.search import extract_features, find_head, refuse_multiple_choice
from itra_hf.features.undisturbed import RandomState, kept_buffers, kept_random_state, undisturbed
from itra_hf.features.watch import FeatureWatch, Seen, find_features, hidden_state_index

__all__ = [
    "AmbiguousHeadError",
    "FeatureReader",
    "FeatureWatch",
    "HeadInput",
    "HeadNotFoundError",
    "HiddenState",
    "RandomState",
    "Seen",
    "extract_features",
    "find_features",
    "find_head",
    "head_candidates",
    "hidden_state_index",
    "kept_buffers",
    "kept_random_state",
    "module_named",
    "refuse_multiple_choice",
    "undisturbed",
]
