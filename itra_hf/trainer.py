"""`ITRATrainer`: the Hugging Face Trainer with a matching loss between the two halves of every batch."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial, wraps
from inspect import signature
from typing import Any, TypedDict, Unpack, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput

from itra_hf.config import MatchingArguments, matching_arguments
from itra_hf.diagnostics import ITRADiagnosticsCallback
from itra_hf.hub.card import write_model_card
from itra_hf.hub.saving import SavingTrainer
from itra_hf.pairing import Pairing, class_column, collated_labels, label_names, pair_rows
from itra_hf.step import MatchingLoss, Run, check_setup


class _NoOthers(TypedDict):
    """The further keywords that type checkers accept: none, so they report a misspelt one."""


class ITRATrainer(SavingTrainer):
    """`transformers.Trainer` with In-Training Representation Alignment (Li et al., AAAI 2023, arXiv 2211.13332).

    The batch of a step holds two mini-batches s and t. The forms that compare within classes deal the rows of each
    class to s and t in turn. In all other forms s has the rows 0, 2, 4, ... and t the rows 1, 3, 5, ... Then

        loss = task_loss + weight * MMD^2(h_s, h_t)

    Here h is the input of the classifier. By default MMD^2 is computed within each class and averaged. The weight is
    `matching_weight`, reduced by the ramp, by the cap, and for many rows in few epochs. In addition to `loss`, the log
    holds `task_loss`, `matching_loss` (the MMD^2 without its weight) and `matching_weight` (the mean applied weight).
    The attribute `matching_line` says what is matched. If hardly anything was matched, `hardly_matched` gives the
    reason after training; else it is None. Evaluation, saving and everything else is Trainer's.

    It mixes into other trainers by plain inheritance, this class first: `class MyTrainer(ITRATrainer, Seq2SeqTrainer)`
    trains a sequence-to-sequence classifier, or any model whose hidden state `feature_layer` names.

    The parameters are those of Trainer, in the same order, and `matching_loss`. Further keywords go to the class that
    this one is mixed with.

    Args:
        args: an `ITRAConfig`; plain `TrainingArguments` mean its defaults.
        matching_loss: `(source, target, source_labels, target_labels) -> scalar tensor`, used in place of the form
            that `matching` names. Source and target are float tensors `[rows, d]`; the labels are as the batch holds
            them, or None.

    Raises:
        ValueError: at construction, if the requested form is not possible, if a device gets fewer than two rows, or
            under `nn.DataParallel`. If labels or head are known only in the first step, the error comes there.

    Example:
        >>> import tempfile
        >>> from itra_hf import ITRAConfig, ITRATrainer
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> model = BertForSequenceClassification(BertConfig(**sizes))
        >>> rows = [{"input_ids": [row % 9, 1], "labels": row % 2} for row in range(16)]
        >>> args = ITRAConfig(tempfile.mkdtemp(), max_steps=2, logging_steps=1, save_strategy="no", disable_tqdm=True)
        >>> trainer = ITRATrainer(model, args, train_dataset=rows)
        >>> trainer.train().global_step  # doctest: +ELLIPSIS
        {'loss': ..., 'task_loss': ..., 'matching_loss': ...}
        2
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., Any] | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        matching_loss: MatchingLoss | None = None,
        **others: Unpack[_NoOthers],
    ) -> None:
        options = {name: value for name, value in locals().items() if name in signature(SavingTrainer).parameters}
        if optimizers == (None, None):
            del options["optimizers"]
        # A class that this one is mixed with may know fewer of Trainer's keywords.
        super().__init__(**{name: value for name, value in options.items() if value is not None}, **others)
        self.matching_loss = matching_loss
        self.matching_form: str | None = None  # that training took, once it has begun
        self.matching_line: str | None = None  # that tells what it matches, on the main process
        self.hardly_matched: str | None = None  # the reason, where the last run was hardly matched; there, too
        self.cannot_match = False  # the last run, for the reason in a warning
        self.row_order: Pairing | None = None  # of the training data loader, under pairing="class"
        self._run: Run | None = None
        if self.matching_is_on:
            check_setup(self, self.args.per_device_train_batch_size, training=False)

    def add_callback(self, callback: Any) -> None:
        """Add a callback as Trainer does. Trainer's constructor also calls this, after it has added the user's."""
        super().add_callback(callback)
        for each in self.callback_handler.callbacks:
            if isinstance(each, ITRADiagnosticsCallback):
                each.trainer = self

    @property
    def matching_args(self) -> MatchingArguments:
        """The matching's options: the trainer's arguments if they hold these options, else the defaults."""
        return matching_arguments(self.args)

    @property
    def matching_is_on(self) -> bool:
        """Whether training matches features, because it was asked for and this model can."""
        args = self.matching_args
        return args.matching != "none" and args.matching_weight > 0 and not self.cannot_match

    def get_train_labels(self, train_dataset: Any) -> Tensor | None:
        """The class of every training row, `[n]` integers, for `pairing="class"`; None pairs rows at random.

        It finds the labels of a `datasets.Dataset`, a list of examples, a `TensorDataset`, a data set with its labels
        in `targets` or `labels`, and a `Subset` or `ConcatDataset` of these. Override this for another data set that
        knows its labels without loading every example.
        """
        names, labels_of = label_names(self.label_names), partial(collated_labels, self, train_dataset)
        return class_column(train_dataset, cast(nn.Module, self.model), names, labels_of)

    @wraps(Trainer._inner_training_loop, assigned=())
    def _inner_training_loop(self, batch_size: int | None = None, *args: Any, **kwargs: Any) -> TrainOutput:  # type: ignore[override]
        """Train as Trainer does; `auto_find_batch_size` calls this again if a batch was too large for memory."""
        self.cannot_match = False
        self.matching_form = self.matching_line = self.hardly_matched = None
        if self.matching_is_on:
            check_setup(self, batch_size or self.args.per_device_train_batch_size, training=True)
        try:
            return super()._inner_training_loop(batch_size, *args, **kwargs)
        finally:
            if self._run is not None:
                self._run.watch.close()
            self._run = None

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Trainer's micro-batches of the next optimizer step."""
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._run = self._run or Run(self)
        self._run.begin_step(batches, self.matching_is_on)
        return batches, num_items_in_batch

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Trainer's step; its backward pass adds the matching's gradient to the task's, and the loss includes both."""
        if self._run is None or not self.matching_is_on:
            return super().training_step(model, inputs, num_items_in_batch)
        return self._run.training_step(super().training_step, model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Trainer's loss; in a training step the features are matched in its backward pass."""
        if self._run is None or not (self._run.is_at_work and self.matching_is_on):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)
        return self._run.compute_loss(super().compute_loss, model, inputs, return_outputs, num_items_in_batch)

    @wraps(Trainer._maybe_log_save_evaluate, assigned=())
    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Trainer's logging of the training loss, with the means added; every rank calls this."""
        logs = self.control.should_log and self.state.global_step > self._globalstep_last_logged
        with self._run.logging_means() if self._run is not None and logs else nullcontext():
            super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does; its own log of the training loss holds the means of the parts, too."""
        if self._run is not None:
            self._run.log(logs)
        super().log(logs, start_time)

    @wraps(Trainer.create_model_card, assigned=())
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Write a model card; with the matching off it is Trainer's."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero() and self.matching_is_on:
            given = signature(super().create_model_card).bind(*args, **kwargs).arguments
            form = None if self.matching_loss is not None else self.matching_form or self.matching_args.matching
            write_model_card(self, form, given)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        parent, pairs = super()._get_train_sampler, self.matching_args.pairing == "class"
        self.row_order = pair_rows(self, train_dataset, parent) if pairs else None
        return (self.row_order and self.row_order.sampler) or parent(train_dataset)
