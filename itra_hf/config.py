"""The options of ITRA, in addition to those of `transformers.TrainingArguments`."""

import warnings
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

from transformers import TrainingArguments

from itra_hf.features import hidden_state_index
from itra_hf.losses import Form

if TYPE_CHECKING:
    Layer = int | str
else:
    Layer = str  # HfArgumentParser would read every union of the two as `int`


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class MatchingArguments:
    """The options of the matching, without `TrainingArguments`, so that its subclasses can take them too.

    `ITRAConfig` documents the fields. To mix them into other training arguments, put this class first:

        >>> from dataclasses import dataclass
        >>> from transformers import Seq2SeqTrainingArguments
        >>> @dataclass
        ... class MyConfig(MatchingArguments, Seq2SeqTrainingArguments):
        ...     def __post_init__(self):
        ...         Seq2SeqTrainingArguments.__post_init__(self)
        ...         MatchingArguments.__post_init__(self)
        >>> MyConfig(output_dir="out", matching_weight=0.5).matching_weight
        0.5
    """

    matching: Literal["auto", "class_conditional", "marginal", "joint", "none"] = field(
        default="auto",
        metadata=_help("What is matched between the two halves of a batch; 'auto' decides by the labels."),
    )
    matching_weight: float = field(
        default=1.0, metadata=_help("Factor of the matching loss in the total loss; 0 switches it off.")
    )
    matching_full_weight_rows: int = field(
        default=250,
        metadata=_help("N: above N x epochs training rows the weight is multiplied by N x epochs / rows."),
    )
    matching_warmup_ratio: float = field(
        default=0.3, metadata=_help("Share of the training steps over which the weight rises from 0, linearly.")
    )
    matching_max_grad_ratio: float | None = field(
        default=1.0,
        metadata=_help(
            "Cap on the norm of the matching's feature gradient, relative to the task's, once the task is learned; "
            "'inf' switches it off."
        ),
    )
    pairing: Literal["class", "random"] = field(
        default="class",
        metadata=_help("'class' gives both halves of a batch the same classes; 'random' keeps Trainer's order."),
    )
    feature_layer: Layer = field(
        default="head",
        metadata=_help(
            "'head', the classifier's input; the name of a module, for its input; or a hidden state's index."
        ),
    )
    feature_pooling: Literal["mean", "first", "last", "auto"] = field(
        default="mean", metadata=_help("How the tokens of a hidden state become one row per example.")
    )
    gather_features: bool = field(
        default=True, metadata=_help("Match the features of all ranks together, not of each rank alone.")
    )
    matching_scope: Literal["micro_batch", "optimizer_step"] = field(
        default="micro_batch",
        metadata=_help("Match within each micro-batch, or across all that an optimizer step accumulates."),
    )
    num_bandwidths: int = field(default=5, metadata=_help("Number of Gaussian kernels in the mixture; odd."))
    bandwidth: float | None = field(
        default=None,
        metadata=_help("Kernel bandwidth in squared feature units; by default the mean squared distance."),
    )

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(MatchingArguments).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {known}")
        if self.feature_pooling == "auto":
            warnings.warn(
                "feature_pooling='auto' is deprecated and means 'mean'; write 'mean'", FutureWarning, stacklevel=3
            )
            self.feature_pooling = "mean"
        layer = self.feature_layer
        is_name = isinstance(layer, str) and layer.strip(". ") != "" and not layer.startswith("-")
        if hidden_state_index(str(layer)) is None and not is_name:
            raise ValueError(
                f"feature_layer={self.feature_layer!r} must be 'head', the name of a module such as 'classifier', or "
                "the index of a hidden state such as -1"
            )
        if self.matching_max_grad_ratio == float("inf"):  # a command line has no None
            self.matching_max_grad_ratio = None
        self._check_numbers()

    def _check_numbers(self) -> None:
        if not 0 <= self.matching_weight < float("inf"):
            raise ValueError(
                f"matching_weight={self.matching_weight} must be finite and at least 0; 0 switches the matching off"
            )
        if not (self.matching_full_weight_rows or 0) >= 1:  # None and nan, too
            raise ValueError(
                f"matching_full_weight_rows={self.matching_full_weight_rows} must be at least 1; set it to the "
                "number of your training rows to keep the whole weight"
            )
        if not 0 <= self.matching_warmup_ratio <= 1:
            raise ValueError(
                f"matching_warmup_ratio={self.matching_warmup_ratio} must lie between 0 (no ramp) and 1 (all steps)"
            )
        if self.matching_max_grad_ratio is not None and not self.matching_max_grad_ratio > 0:
            raise ValueError(
                f"matching_max_grad_ratio={self.matching_max_grad_ratio} must be positive; None switches the cap off"
            )
        Form(bandwidth=self.bandwidth, num_bandwidths=self.num_bandwidths)


@dataclass
class ITRAConfig(MatchingArguments, TrainingArguments):
    """`transformers.TrainingArguments` with the options of In-Training Representation Alignment.

    Every default of `TrainingArguments` stays as it is; this class only adds the fields below.

    What is matched:
        matching: `"auto"` (default) takes `"class_conditional"` for single-label classification, and `"joint"` for
            multi-label classification and regression. Under `"auto"`, a model without a classification head trains as
            under `Trainer`, with one warning. `"class_conditional"`, `"marginal"` and `"joint"` ask for that form, and
            raise an error if it is not possible. `"none"` is Trainer, bit for bit.
        matching_weight: factor of the matching loss, default 1.0. 0 is Trainer, bit for bit.
        matching_full_weight_rows: default 250. Above `250 x epochs` training rows, the weight is multiplied by
            `250 x epochs / rows`. A run of less than one epoch, or on a dataset without length (streaming), counts as
            one epoch over the rows of all its steps. To switch this off, set the option to the number of training rows.
        pairing: `"class"` (default) deals each class's rows out two by two. So both halves of a batch hold the same
            classes. These couples are spread evenly over the epoch. If the first batches hold few such couples, a
            warning gives the reason. `"random"` leaves the order to Trainer.
        feature_layer: `"head"` (default) is the input of the classifier, which is found in the first step. The name of
            a module, such as `"classifier"`, takes the input of that linear layer, 1 x 1 convolution or other module.
            For a module that is called `head`, write `".head"`. An index takes that hidden state: 0 is the embeddings,
            -1 the last.
        feature_pooling: how the tokens of a hidden state become one row per example: `"mean"` (default), `"first"` or
            `"last"` of the attended tokens. The head's input needs no pooling. `"auto"` means `"mean"`, with a warning;
            the next release will not take it.
        gather_features: match the features of all ranks (default), or of each rank alone.
        matching_scope: under gradient accumulation, match within each `"micro_batch"` (default), or across the whole
            `"optimizer_step"` as one batch. `"optimizer_step"` takes a third to a half more time, and the memory of one
            micro-batch.

    Guards against collapse:
        matching_warmup_ratio: share of the steps over which the weight rises from 0, default 0.3, from 0 to 1.
        matching_max_grad_ratio: cap on the matching's gradient at the features, as a share of the task's, default 1.0.
            The cap is tighter while the model learns, in proportion to how far the odds of the right class exceed those
            of a guess. It is fully open at odds 41 times those of a guess. This means a probability of 82 % for the
            right one of ten classes, or 98 % of two. If the labels are not classes, the cap is a quarter of the full
            cap. `None` (on a command line: `inf`) switches the cap off.

    The kernel:
        num_bandwidths: number of Gaussians in the mixture, odd, at most 15, default 5.
        bandwidth: kernel bandwidth in squared feature units; `None` (default) takes the mean squared distance.

    Raises:
        ValueError: for a value outside its range; the message names the value and the way out.

    Example:
        >>> ITRAConfig(output_dir="out", matching_weight=0.5).matching
        'auto'
        >>> ITRAConfig(output_dir="out", matching="clas")
        Traceback (most recent call last):
        ...
        ValueError: matching='clas' is unknown; choose one of auto, class_conditional, marginal, joint, none
    """

    def __post_init__(self) -> None:
        TrainingArguments.__post_init__(self)
        MatchingArguments.__post_init__(self)


def matching_arguments(args: TrainingArguments) -> MatchingArguments:
    """The matching's options in these arguments (also if read from `training_args.bin`), or the defaults."""
    if isinstance(args, MatchingArguments):
        if args.feature_pooling == "auto":  # of an older `training_args.bin`, which nothing has checked
            MatchingArguments.__post_init__(args)
        return args
    names = {option.name for option in fields(MatchingArguments)}
    return MatchingArguments(**{name: value for name, value in vars(args).items() if name in names})
