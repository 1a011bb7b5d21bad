"""The pair of mini-batches: the classes of a training set, the sampler that pairs them, and whether a run has pairs."""

from itra_hf.pairing.classes import class_column, first_labels, label_names
from itra_hf.pairing.in_run import Couples, Pairing, collated_labels, not_asked, pair_rows
from itra_hf.pairing.sampler import ClassPairedSampler, split_pair

__all__ = [
    "ClassPairedSampler",
    "Couples",
    "Pairing",
    "class_column",
    "collated_labels",
    "first_labels",
    "label_names",
    "not_asked",
    "pair_rows",
    "split_pair",
]
