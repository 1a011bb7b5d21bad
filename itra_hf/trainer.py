"""`ITRATrainer`: the Hugging Face Trainer with a matching loss between the two halves of every batch."""

import os
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from itra_hf.config import MatchingArguments
from itra_hf.distributed import gather_rows, sum_over_ranks
from itra_hf.features import HeadInput, HeadNotFoundError, head_candidates
from itra_hf.gradients import feature_gradients
from itra_hf.guards import CollapseWatch, capped_weight, ramp, squared_norm
from itra_hf.labels import class_column, label_kind
from itra_hf.matching import MatchingLoss, check_setup, choose_matching_loss
from itra_hf.model_card import add_itra_section
from itra_hf.pairing import ClassPairedSampler, split_pair

logger = logging.get_logger(__name__)


class ITRATrainer(Trainer):
    """`transformers.Trainer` with In-Training Representation Alignment (Li et al., AAAI 2023, arXiv 2211.13332).

    In every step the rows 0, 2, 4, ... of the batch and its rows 1, 3, 5, ... are two mini-batches s and t, and

        loss = task_loss + weight * MMD^2(h_s, h_t)

    where h is the input of the classifier and the weight is `matching_weight` after the ramp and the cap. The log
    holds `task_loss`, `matching_loss` (the MMD^2 without its weight) and `matching_weight` (the mean weight that was
    applied) beside `loss`. Evaluation, saving and everything else is Trainer's.

    Args:
        args: an `ITRAConfig`; plain `TrainingArguments` mean its defaults.
        matching_loss: `(source, target, source_labels, target_labels) -> scalar tensor`, used in place of the form
            that `matching` names. Source and target are float tensors `[rows, d]`; the labels are as the batch holds
            them, or None.

        The other parameters are Trainer's, in its order.

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
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Any = None,
        compute_loss_func: Any = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: Any = (None, None),
        optimizer_cls_and_kwargs: Any = None,
        preprocess_logits_for_metrics: Any = None,
        matching_loss: MatchingLoss | None = None,
    ) -> None:
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            model_init,
            compute_loss_func,
            compute_metrics,
            callbacks,
            optimizers,
            optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics,
        )
        self.matching_loss = matching_loss
        self._run: _Run | None = None
        self._matching_is_off = not self.matching_args.matching_is_on
        if not self._matching_is_off:
            check_setup(self, self.matching_args, self._network)
            if not head_candidates(self._network):
                self._refuse(f"{type(self.model).__name__} has no linear classification head")

    @property
    def matching_args(self) -> MatchingArguments:
        """The matching's options: the trainer's arguments if they hold them, the defaults if not."""
        return self.args if isinstance(self.args, MatchingArguments) else MatchingArguments()

    @property
    def _network(self) -> nn.Module:
        return cast(nn.Module, self.model)

    def get_train_labels(self, train_dataset: Any) -> Tensor | None:
        """The class of every training row, `[n]` integers, for `pairing="class"`; None pairs rows at random.

        The labels of a `datasets.Dataset` and of a list of examples are found. Override this for a dataset that can
        tell its labels without loading every example.
        """
        return class_column(train_dataset, self._network)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does; the hook on the head is gone afterwards, also after an exception."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._run is not None:
                self._run.head_input.detach()
                self._run = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Trainer's loss; in training with the weighted matching loss beside it."""
        labels = inputs.get(self.label_names[0]) if self.label_names else None
        run = self._matching_run(inputs, labels) if self.is_in_train and model.training else None
        if run is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        mask = inputs.get("attention_mask")
        run.head_input.clear()
        task_loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        rows = run.head_input.rows(outputs, mask)
        matching_loss = self._match(run, rows, labels)

        # The mean over the step's micro-batches, which Trainer takes itself unless the task's loss is a mean already.
        micro_batches = self.current_gradient_accumulation_steps
        is_mean = self._task_loss_is_mean(num_items_in_batch)
        share = matching_loss / micro_batches if is_mean else matching_loss
        weight = self._weight(run, task_loss, share, rows, outputs, labels)
        loss = task_loss + weight * share
        run.note(task_loss if is_mean else task_loss / micro_batches, matching_loss, weight, 1 / micro_batches)
        run.watch.update(rows)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does; the training loss with its parts beside it."""
        if self._run is not None and "loss" in logs:
            logs.update(self._run.means())
            if not self._run.warned and self._run.watch.collapsed():
                self._run.warned = True
                logger.warning(
                    f"The features have collapsed at step {self.state.global_step}: nearly nothing is left of the "
                    "distances between them. Lower matching_weight, or keep matching_warmup_ratio and "
                    "matching_max_grad_ratio at their defaults."
                )
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write Trainer's model card, with a section on the matching."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero() and not self._matching_is_off:
            add_itra_section(os.path.join(str(self.args.output_dir), "README.md"), self.matching_args)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        train_dataset = self.train_dataset if train_dataset is None else train_dataset
        by_class = self.matching_args.pairing == "class" and self.args.train_sampling_strategy == "random"
        labels = self.get_train_labels(self.train_dataset) if by_class and not self._matching_is_off else None
        if labels is None:
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sampler = ClassPairedSampler(labels, seed=seed)
        self.remove_callback(_SetSamplerEpoch)
        self.add_callback(_SetSamplerEpoch(sampler))
        return sampler

    def _matching_run(self, inputs: Mapping[str, Any], labels: Tensor | None) -> "_Run | None":
        """What this run matches with, None if it does not; the first call finds the head and chooses the loss."""
        if self._run is None and not self._matching_is_off:
            kind = None if labels is None else label_kind(labels, self._network)
            matching_loss = self.matching_loss or choose_matching_loss(self.matching_args, kind)
            if matching_loss is None:
                self._refuse("The batch holds no labels")
                return None
            try:
                head_input = HeadInput.find(self._network, inputs)
            except HeadNotFoundError as error:
                self._refuse(str(error))
                return None
            head_input.attach()
            self._run = _Run(head_input, matching_loss, self.args.device)
        return self._run

    def _refuse(self, reason: str) -> None:
        """No matching for this model: an error where one was asked for, else one warning."""
        if self.matching_args.matching != "auto" or self.matching_loss is not None:
            raise HeadNotFoundError(f"{reason}; take matching='none', or a model with a classification head")
        logger.warning(f"{reason}; training goes on without matching, as under Trainer.")
        self._matching_is_off = True

    def _match(self, run: "_Run", rows: Tensor, labels: Tensor | None) -> Tensor:
        """The matching loss of the batch, or of the batches of all ranks."""
        pair = [*split_pair(rows), *((None, None) if labels is None else split_pair(labels))]
        if self.matching_args.gather_features:
            pair = [None if part is None else gather_rows(part) for part in pair]
        loss = run.matching_loss(*pair)
        if loss.ndim != 0:
            raise ValueError(f"matching_loss must return a scalar tensor, but its shape is {tuple(loss.shape)}")
        return loss

    def _weight(
        self, run: "_Run", task_loss: Tensor, matching_loss: Tensor, rows: Tensor, outputs: Any, labels: Tensor | None
    ) -> Tensor:
        """The weight of this step: `matching_weight` after the ramp and the cap, a scalar."""
        args = self.matching_args
        weight = args.matching_weight * ramp(self.state.global_step, self.state.max_steps, args.matching_warmup_ratio)
        if weight == 0 or args.matching_max_grad_ratio is None:
            return torch.tensor(weight, device=rows.device)
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.scale(torch.ones((), device=rows.device))
        gradients = feature_gradients(
            task_loss, matching_loss, run.head_input, rows, outputs, labels, self._network, scale
        )
        norms = torch.stack([squared_norm(gradient).to(rows.device) for gradient in gradients])
        return capped_weight(weight, sum_over_ranks(norms), args.matching_max_grad_ratio)

    def _task_loss_is_mean(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Trainer's own rule for whether the task loss is already a mean over the step's micro-batches."""
        declared = getattr(self, "loss_is_scaled_for_ga", None)  # since transformers 5.23
        if declared is not None:
            return bool(declared)
        return (self.model_accepts_loss_kwargs and num_items_in_batch is not None) or bool(self.compute_loss_func)


class _Run:
    """What one call of `train` holds: the head's input, the loss, the sums to be logged."""

    def __init__(self, head_input: HeadInput, matching_loss: MatchingLoss, device: torch.device) -> None:
        self.head_input = head_input
        self.matching_loss = matching_loss
        self.watch = CollapseWatch()
        self.warned = False
        self._sums = torch.zeros(3, device=device)
        self._steps = 0.0

    def note(self, task_loss: Tensor, matching_loss: Tensor, weight: Tensor, share: float) -> None:
        """Add a micro-batch, which is this share of an optimizer step."""
        self._sums += torch.stack([task_loss.detach(), matching_loss.detach() * share, weight * share])
        self._steps += share

    def means(self) -> dict[str, float]:
        """The means over optimizer steps and ranks since the last call."""
        sums = sum_over_ranks(torch.cat([self._sums, self._sums.new_tensor([self._steps])])).tolist()
        self._sums.zero_()
        self._steps = 0.0
        names = ("task_loss", "matching_loss", "matching_weight")
        return {name: total / sums[-1] for name, total in zip(names, sums, strict=False)}


class _SetSamplerEpoch(TrainerCallback):
    """Tells the sampler which epoch begins, also where a resumed data loader hides it."""

    def __init__(self, sampler: ClassPairedSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(int((state.epoch or 0) + 1e-6))
