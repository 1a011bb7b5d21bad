"""`ITRATrainer`: the Hugging Face Trainer with a matching loss between the two halves of every batch."""

from collections.abc import Callable, Mapping, Sized
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import EvalPrediction, TrainerCallback, TrainingArguments
from transformers.trainer_utils import has_length
from transformers.utils import logging
from transformers.utils.hub import PushToHubMixin

from itra_hf.config import MatchingArguments, matching_arguments
from itra_hf.diagnostics import ITRADiagnosticsCallback
from itra_hf.features import HeadInput, HeadNotFoundError, head_candidates
from itra_hf.grad_cache import CachedStep, cache_gradients
from itra_hf.gradients import cap_measures
from itra_hf.guards import ramp
from itra_hf.hidden_state import HiddenState
from itra_hf.labels import class_column, label_kind, label_name
from itra_hf.matching import Matching, MatchingLoss, agree_on_kind, choose_form, choose_matching_loss
from itra_hf.model_card import write_model_card
from itra_hf.reader import FeatureReader, given_to
from itra_hf.run_setup import check_rows, check_setup, matching_share
from itra_hf.sampling import SetSamplerEpoch, class_pairs
from itra_hf.saving import SavingTrainer

logger = logging.get_logger(__name__)

OTHER_FEATURES = "a model with a classification head, or a hidden state (feature_layer) and matching='marginal'"


class ITRATrainer(SavingTrainer):
    """`transformers.Trainer` with In-Training Representation Alignment (Li et al., AAAI 2023, arXiv 2211.13332).

    In every step the rows 0, 2, 4, ... of the batch and its rows 1, 3, 5, ... are two mini-batches s and t, and

        loss = task_loss + weight * MMD^2(h_s, h_t)

    where h is the input of the classifier, the MMD^2 by default the mean of those within each class, and the weight
    `matching_weight`, or less for many rows in few epochs, after the ramp and the cap. The log holds `task_loss`,
    `matching_loss` (the MMD^2 without its weight) and `matching_weight` (the mean weight that was applied) beside
    `loss`. Evaluation, saving and everything else is Trainer's.

    It mixes into other trainers by plain inheritance, this class first: `class MyTrainer(ITRATrainer, Seq2SeqTrainer)`
    trains a sequence-to-sequence classifier, or any model whose hidden state `feature_layer` names.

    The parameters are Trainer's, in its order, and `matching_loss`; further keywords go to the class it is mixed with.

    Args:
        args: an `ITRAConfig`; plain `TrainingArguments` mean its defaults.
        matching_loss: `(source, target, source_labels, target_labels) -> scalar tensor`, used in place of the form
            that `matching` names. Source and target are float tensors `[rows, d]`; the labels are as the batch holds
            them, or None.

    Raises:
        ValueError: at construction where the form that was asked for cannot be had, where a device holds fewer than
            two rows, or under `nn.DataParallel`; in the first step where only then labels or head are known.

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
        **others: Any,
    ) -> None:
        # Seq2SeqTrainer, which may come next, does not know this one; hence the names, too.
        optimizer: dict[str, Any] = {"optimizer_cls_and_kwargs": optimizer_cls_and_kwargs}
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            **({} if optimizer_cls_and_kwargs is None else optimizer),
            **others,
        )
        self.matching_loss = matching_loss
        self.matching_form: str | None = None  # that training took, once it has begun
        self._matching: Matching | None = None
        self._cannot_match = False
        self._micro_batches: list[Any] = []
        self._cached_step: CachedStep | None = None
        self._micro_batch = 0
        self._check_setup(self.args.per_device_train_batch_size)

    def add_callback(self, callback: Any) -> None:
        """Add a callback as Trainer does; its constructor, too, comes by here once it has taken the user's."""
        super().add_callback(callback)
        for each in self.callback_handler.callbacks:
            if isinstance(each, ITRADiagnosticsCallback):
                each.trainer = self

    @property
    def matching_args(self) -> MatchingArguments:
        """The matching's options, which are the trainer's arguments if they hold them, the defaults if not."""
        return matching_arguments(self.args)

    @property
    def matching_is_on(self) -> bool:
        """Whether training matches features, because it was asked for and this model can."""
        args = self.matching_args
        return args.matching != "none" and args.matching_weight > 0 and not self._cannot_match

    @property
    def _network(self) -> nn.Module:
        return cast(nn.Module, self.model)

    def get_train_labels(self, train_dataset: Any) -> Tensor | None:
        """The class of every training row, `[n]` integers, for `pairing="class"`; None pairs rows at random.

        The labels of a `datasets.Dataset` and of a list of examples are found. Override this for a dataset that can
        tell its labels without loading every example.
        """
        return class_column(train_dataset, self._network)

    def _inner_training_loop(self, batch_size: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as Trainer does; the hook on the head is gone afterwards, also after an exception.

        A batch that does not fit the memory begins it anew under `auto_find_batch_size`, with another size.
        """
        rows = batch_size or self.args.per_device_train_batch_size
        if self.model_init is not None:  # it may have made another model, a search other arguments
            self._cannot_match = False
            self._check_setup(rows)
        elif self.matching_is_on:
            check_rows(self, rows)
        self._micro_batches = []
        try:
            return super()._inner_training_loop(batch_size, *args, **kwargs)
        finally:
            if self._matching is not None:
                self._matching.features.detach()
                self._matching = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's micro-batches of the next optimizer step, kept for `matching_scope="optimizer_step"`."""
        if self._micro_batches and self._matching is None and self.matching_is_on:
            self._refuse("no features were seen in the first step", "call super().compute_loss in your compute_loss")
        self._micro_batches, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        self._cached_step, self._micro_batch = None, 0
        return self._micro_batches, num_items_in_batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Trainer's loss; in training with the weighted matching loss beside it."""
        matching = self._begin_matching(inputs) if self.is_in_train and model.training else None
        if matching is None:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        whole_step = self.matching_args.matching_scope == "optimizer_step" and len(self._micro_batches) > 1
        match = self._match_optimizer_step if whole_step else self._match_micro_batch
        loss, outputs = match(matching, model, inputs, num_items_in_batch)
        matching.features.clear()  # a copy of the model, as an average of weights takes one, can hold no graph
        return (loss, outputs) if return_outputs else loss

    def _match_micro_batch(
        self, matching: Matching, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Any]:
        """The task loss of a micro-batch and its weighted matching loss."""
        micro_batches, divisor = self._micro_batches_and_divisor(num_items_in_batch)
        task_loss, outputs, rows, labels = self._forward(matching, model, inputs, num_items_in_batch)
        matching_loss = matching.match(rows, labels)
        weighed = (task_loss, matching_loss / divisor, matching.features, rows, outputs, labels, self._network)
        weight = matching.weight(self._ramped_weight(), lambda: cap_measures(*weighed, self._loss_scale()), rows)
        matching.note(task_loss * divisor / micro_batches, matching_loss, weight, 1 / micro_batches)
        return task_loss + weight * matching_loss / divisor, outputs

    def _match_optimizer_step(
        self, matching: Matching, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Any]:
        """The task loss of a micro-batch and its part in the weighted matching loss of the whole optimizer step."""
        micro_batches, divisor = self._micro_batches_and_divisor(num_items_in_batch)
        if self._cached_step is None:

            def forward(micro_batch: Any) -> tuple[Tensor, Any, Tensor, Tensor | None]:
                prepared = dict(self._prepare_inputs(micro_batch))
                task_loss, *others = self._forward(matching, model, prepared, num_items_in_batch)
                return task_loss * divisor / micro_batches, *others

            ramped, scale = self._ramped_weight(), self._loss_scale()
            self._cached_step = cache_gradients(matching, self._micro_batches, forward, ramped, scale)
        step = self._cached_step
        if self._micro_batch == len(step.gradients):
            raise ValueError(
                "matching_scope='optimizer_step' takes one loss of each micro-batch, but training_step asks for more; "
                "take matching_scope='micro_batch'"
            )
        step.random_states[self._micro_batch].restore(self.args.device)
        task_loss, outputs, rows, _ = self._forward(matching, model, inputs, num_items_in_batch)
        part = micro_batches * step.surrogate(self._micro_batch, rows) + step.weight * step.matching_loss
        self._micro_batch += 1
        matching.note(task_loss * divisor / micro_batches, step.matching_loss, step.weight, 1 / micro_batches)
        return task_loss + part / divisor, outputs

    def _forward(
        self, matching: Matching, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None
    ) -> tuple[Tensor, Any, Tensor, Tensor | None]:
        """Trainer's task loss, the model's outputs, the features `[rows, d]` and the labels."""
        labels, mask = self._labels(inputs), inputs.get("attention_mask")
        matching.features.clear()
        task_loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        return task_loss, outputs, matching.features.rows(outputs, mask), labels

    def _micro_batches_and_divisor(self, num_items_in_batch: Tensor | int | None) -> tuple[int, int]:
        """The micro-batches of this optimizer step, and by how many of them the matching loss is still to be divided.

        Trainer divides the loss by them, unless by its own rule the task loss is a mean over the step already.
        """
        micro_batches = self.current_gradient_accumulation_steps
        is_mean = getattr(self, "loss_is_scaled_for_ga", None)  # since transformers 5.23
        if is_mean is None:
            counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            is_mean = counted or self.compute_loss_func is not None
        return micro_batches, micro_batches if is_mean else 1

    def _ramped_weight(self) -> float:
        args, state = self.matching_args, self.state
        ramped = ramp(state.global_step, state.max_steps, args.matching_warmup_ratio)
        return args.matching_weight * matching_share(self) * ramped

    def _loss_scale(self) -> Tensor | float:
        """What the gradient scaler multiplies the loss with."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.args.device))

    def _labels(self, inputs: Mapping[str, Any]) -> Tensor | None:
        return inputs.get(label_name(self.label_names))

    def _begin_matching(self, inputs: Mapping[str, Any]) -> Matching | None:
        """What this run matches with, None if it does not; the first call finds the head and chooses the loss."""
        if self._matching is None and self.matching_is_on:
            labels = self._labels(inputs)
            kind = None if labels is None else label_kind(labels, self._network)
            agree_on_kind(kind, self.args.device)
            loss = self.matching_loss or choose_matching_loss(self.matching_args, kind)
            try:
                if loss is None:
                    raise HeadNotFoundError("the batch holds no label for each row")
                features = self._find_features(inputs)
            except HeadNotFoundError as error:
                self._refuse(str(error), asked=loss is not None and self.matching_args.feature_layer != "head")
                return None
            self.matching_form = choose_form(self.matching_args, kind)
            features.attach()
            features.outputs_are_closed = self.is_deepspeed_enabled
            self._matching = Matching(self.matching_args, loss, features, self._network, self.args.device)
        return self._matching

    def _find_features(self, inputs: Mapping[str, Any]) -> FeatureReader:
        args, compute_loss = self.matching_args, super().compute_loss
        # Trainer may keep the labels back; a class in between may rename or take out more.
        given = given_to(self._network, lambda: compute_loss(self._network, dict(inputs), return_outputs=True))
        inputs = given or inputs
        if args.feature_layer == "head":
            return HeadInput.find(self._network, inputs)
        return HiddenState.find(self._network, inputs, int(args.feature_layer), args.feature_pooling)

    def _check_setup(self, rows: int) -> None:
        """Refuse at once what cannot be matched in batches of so many rows."""
        if not self.matching_is_on:
            return
        of_library = isinstance(self.model, PushToHubMixin)  # of transformers or peft: its config speaks of its head
        if of_library and self.matching_args.feature_layer == "head" and not head_candidates(self._network):
            name, config = type(self.model).__name__, cast(Any, self.model).config
            self._refuse(f"{name} has no linear classification head (config.num_labels={config.num_labels})")
        if self.matching_is_on:
            check_setup(self, self._network, rows, self.matching_loss is not None)

    def _refuse(self, reason: str, way_out: str = OTHER_FEATURES, asked: bool = False) -> None:
        """No matching for this model: an error where one was asked for, else one warning."""
        if asked or self.matching_args.matching != "auto" or self.matching_loss is not None:
            raise HeadNotFoundError(f"{reason}; take matching='none', or {way_out}")
        is_paired = any(isinstance(callback, SetSamplerEpoch) for callback in self.callback_handler.callbacks)
        but = " but for the order of the rows, which are paired already (matching='none' has Trainer's)"
        logger.warning(f"{reason}; training goes on without matching, as under Trainer{but if is_paired else ''}.")
        self._cannot_match = True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does; the training loss with its parts beside it."""
        if self._matching is not None:
            if "loss" in logs:
                logs.update(self._matching.means())
            if {"loss", "train_loss"} & set(logs) and self._matching.collapsed():
                logger.warning(
                    f"The features have collapsed at step {self.state.global_step}: nearly nothing is left of the "
                    "distances between them. Lower matching_weight, or keep matching_warmup_ratio and "
                    "matching_max_grad_ratio at their defaults."
                )
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write a model card; with the matching off it is Trainer's."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero() and self.matching_is_on:
            given = signature(super().create_model_card).bind(*args, **kwargs).arguments
            form = None if self.matching_loss is not None else self.matching_form or self.matching_args.matching
            write_model_card(self, form, given.get("tasks"), given.get("dataset"))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset, others = self.train_dataset, super()._get_train_sampler
        if has_length(train_dataset) and not (has_length(dataset) and len(dataset) == len(train_dataset)):
            dataset = train_dataset  # else the whole one: Trainer gives it without the columns that no model takes
        by_class = self.matching_is_on and self.matching_args.pairing == "class"
        labels = self.get_train_labels(dataset) if by_class else None
        sampler = None if labels is None else class_pairs(self, labels, len(cast(Sized, dataset)), others)
        if sampler is None:
            return others(train_dataset)
        self.remove_callback(SetSamplerEpoch)
        self.add_callback(SetSamplerEpoch(sampler))
        return sampler
