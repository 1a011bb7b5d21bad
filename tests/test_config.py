"""What the options promise: defaults, checks, and the command line."""

import pickle
from typing import get_args, get_type_hints

import pytest
from transformers import HfArgumentParser, TrainingArguments

from itra_hf import ITRAConfig
from itra_hf.config import MatchingArguments, matching_arguments
from itra_hf.losses import LOSSES


def test_adds_its_fields_and_leaves_the_others_at_trainers_defaults(tmp_path):
    ours, theirs = ITRAConfig(str(tmp_path)), TrainingArguments(str(tmp_path))
    different = {key for key, value in theirs.to_dict().items() if ours.to_dict()[key] != value}
    assert different <= {"logging_dir"}
    assert set(ours.to_dict()) - set(theirs.to_dict()) == set(MatchingArguments.__dataclass_fields__)


def test_defaults_are_the_designs():
    args = MatchingArguments()
    assert (args.matching, args.matching_weight, args.matching_warmup_ratio) == ("auto", 1.0, 0.3)
    assert args.matching_full_weight_rows == 250
    assert (args.matching_max_grad_ratio, args.pairing, args.gather_features) == (1.0, "class", True)
    assert (args.num_bandwidths, args.bandwidth) == (5, None)


def test_every_loss_has_a_form():
    assert set(get_args(get_type_hints(MatchingArguments)["matching"])) == {"auto", "none", *LOSSES}


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("matching", "clas", "class_conditional"),
        ("matching_weight", -0.1, "0 switches"),
        ("matching_weight", float("nan"), "0 switches"),
        ("matching_weight", float("inf"), "finite"),
        ("matching_full_weight_rows", 0, "the number of your training rows"),
        ("matching_full_weight_rows", None, "the number of your training rows"),
        ("matching_full_weight_rows", float("nan"), "the number of your training rows"),
        ("matching_warmup_ratio", 1.5, "between 0"),
        ("matching_warmup_ratio", -0.5, "between 0"),
        ("matching_max_grad_ratio", 0.0, "None switches"),
        ("matching_max_grad_ratio", -1.0, "None switches"),
        ("matching_max_grad_ratio", float("nan"), "None switches"),
        ("pairing", "label", "random"),
        ("matching_scope", "epoch", "optimizer_step"),
        ("feature_layer", 1.5, "-1"),
        ("feature_layer", "-x", "'classifier'"),
        ("feature_layer", "", "'head'"),
        ("feature_pooling", "max", "mean"),
        ("num_bandwidths", 4, "odd"),
        ("num_bandwidths", 0, "odd"),
        ("bandwidth", 0.0, "mean rule"),
        ("bandwidth", float("inf"), "mean rule"),
    ],
)
def test_a_value_outside_its_range_is_named_with_the_way_out(name, value, way_out):
    with pytest.raises(ValueError, match=f"{name}=") as error:
        ITRAConfig("out", **{name: value})
    assert str(value) in str(error.value)
    assert way_out in str(error.value)


def test_the_old_name_of_the_mean_is_taken_with_a_warning():
    with pytest.warns(FutureWarning, match="feature_pooling='auto' is deprecated and means 'mean'; write 'mean'"):
        args = ITRAConfig("out", feature_pooling="auto")
    assert args.feature_pooling == MatchingArguments().feature_pooling == "mean"


def test_the_old_name_of_the_mean_in_arguments_that_were_pickled():
    args = ITRAConfig("out")
    args.feature_pooling = "auto"  # unpickling checks nothing
    with pytest.warns(FutureWarning, match="feature_pooling='auto' is deprecated"):
        assert matching_arguments(args).feature_pooling == "mean"


def test_reads_from_a_command_line(tmp_path):
    parser = HfArgumentParser(ITRAConfig)
    flags = ["--output_dir", str(tmp_path), "--matching", "joint", "--matching_max_grad_ratio", "inf"]
    (args,) = parser.parse_args_into_dataclasses([*flags, "--gather_features", "false", "--bandwidth", "2.5"])
    assert (args.matching, args.matching_max_grad_ratio, args.gather_features) == ("joint", None, False)
    assert (args.bandwidth, args.feature_layer) == (2.5, "head")
    for layer in ("-1", ".head"):
        assert parser.parse_args_into_dataclasses([*flags, "--feature_layer", layer])[0].feature_layer == layer
    own = HfArgumentParser(MatchingArguments)  # alone: a help string of transformers 5.2 itself holds a bare %
    assert "--matching_warmup_ratio" in own.format_help()


def test_survives_pickling_and_goes_into_json(tmp_path):
    args = ITRAConfig(str(tmp_path), matching_weight=0.25)
    assert pickle.loads(pickle.dumps(args)).matching_weight == 0.25  # noqa: S301
    assert '"matching_weight": 0.25' in args.to_json_string()
