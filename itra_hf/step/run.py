"""The matching of one training run: what each training step does in addition to Trainer's own."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.other import is_compiled_module
from torch import Tensor
from transformers.utils import logging

from itra_hf.config import matching_arguments
from itra_hf.distributed import RanksDisagreeError, is_distributed
from itra_hf.features import AmbiguousHeadError, FeatureWatch, HeadNotFoundError, Seen
from itra_hf.pairing import not_asked
from itra_hf.step.cached import CachedStep
from itra_hf.step.matching import Matching
from itra_hf.step.setup import asked_weight, in_one_line, is_asked, micro_batches_and_divisor, raise_or_go_without

logger = logging.get_logger(__name__)

PATIENCE = 5  # steps in which several layers may explain the logits


class Run:
    """Matches the training steps of one run of an ITRATrainer; it begins and ends with the run."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.args = trainer, matching_arguments(trainer.args)
        self.model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        self.matching = Matching(trainer, self.model)
        self.watch = FeatureWatch(self.model, str(self.args.feature_layer), self.args.feature_pooling)
        self._to_log: dict[str, float] | None = None  # the means, while Trainer logs its training loss
        self.step: CachedStep | None = None  # the optimizer step that is matched as a whole
        self._was_on, self._in_training_step, self._has_seen = False, False, False
        self._warned, self._warned_of_collapse, self._has_checked = False, False, False
        self._open: AmbiguousHeadError | None = None  # which layer makes the logits

    @contextmanager
    def logging_means(self) -> Iterator[None]:
        """Within this context Trainer logs its training loss, on every rank; new means begin after it."""
        self._to_log = self.matching.tally.means()
        yield
        self._to_log = None
        self.matching.tally.begin_means()

    def log(self, logs: dict[str, float]) -> None:
        """Put the means into Trainer's own log of the training loss; warn where the features have collapsed."""
        if self._to_log is not None and "loss" in logs:
            logs.update(self._to_log)
            self._to_log = None
        is_due = not self._warned_of_collapse and {"loss", "train_loss"} & set(logs)
        if is_due and self.matching.collapse.collapsed():
            self._warned_of_collapse = True
            logger.warning(
                f"The features have collapsed at step {self.trainer.state.global_step}: nearly nothing is left of the "
                "distances between them. Lower matching_weight, or keep matching_warmup_ratio and "
                "matching_max_grad_ratio at their defaults."
            )
        if "train_loss" in logs:
            self._end()

    def _end(self) -> None:
        """Say what the run did not do; as Trainer logs its mean loss, training is over."""
        self._refuse_unseen()
        if not self.matching.has_begun:
            if self._open is not None:
                raise_or_go_without(self.trainer, self._open)
            return
        self._tell(at_end=True)
        reason = self.matching.tally.hardly()
        if reason is not None and self.trainer.is_world_process_zero():
            self.trainer.hardly_matched = reason
            logger.warning(f"The matching hardly took place: {reason}")

    def _tell(self, at_end: bool = False) -> None:
        """Say once what is matched, and once that the rows are not paired as they should be."""
        couples, trainer = self.matching.couples, self.trainer
        trainer.matching_form = self.matching.form
        if not trainer.is_world_process_zero():
            return
        if trainer.matching_line is None and self.matching.has_begun and self.watch.reader is not None:
            trainer.matching_line = in_one_line(trainer, self.matching, self.watch.reader)
            logger.info(trainer.matching_line)
        if not self._has_checked and (couples.are_seen or at_end):
            self._has_checked = True
            missing = couples.missing(trainer.row_order or not_asked(trainer))
            if missing is not None and self.args.pairing == "class":
                logger.warning(f"pairing='class' is not in effect: {missing}")

    def begin_step(self, micro_batches: Sequence[Any], is_on: bool) -> None:
        """Begin an optimizer step of these micro-batches, which is matched or not."""
        self._refuse_unseen()
        self._was_on = is_on
        self.step = None
        if is_on and self.args.matching_scope == "optimizer_step" and len(micro_batches) > 1:
            scaler = self.trainer.accelerator.scaler
            scale = 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.trainer.args.device))
            self.step = CachedStep(self.matching, micro_batches, asked_weight(self.trainer), scale)

    def _refuse_unseen(self) -> None:
        """Refuse the matching where the first step has shown nothing."""
        if self._was_on and not self._has_seen and self._open is None:
            raise_or_go_without(
                self.trainer,
                "no features were seen in the first step; they are read where super().compute_loss, within "
                "super().training_step, calls the model with gradient",
            )

    def training_step(
        self, training_step: Callable[..., Tensor], model: torch.nn.Module, inputs: Any, num_items_in_batch: Any
    ) -> Tensor:
        """The loss of Trainer's training step and the matching, whose gradients join in its backward pass."""
        self._in_training_step = True
        self.matching.meetings.clear()  # a step that was broken off leaves some
        try:
            if self.step is not None:
                if self.step.is_new:
                    self.step.is_new = False
                    self._first_pass(self.step, model, num_items_in_batch)
                self.step.restore()
            loss = training_step(model, inputs, num_items_in_batch)
        finally:
            self._in_training_step = False
        share = 1 / self.trainer.current_gradient_accumulation_steps
        loss = self.matching.finish(loss, share, asked_weight(self.trainer))
        self._tell()
        return loss

    @property
    def is_at_work(self) -> bool:
        """Whether a loss that is computed now is one of a training step; others are Trainer's alone."""
        return self._in_training_step and (self._collects or torch.is_grad_enabled())

    def compute_loss(
        self,
        compute_loss: Callable[..., Any],
        model: torch.nn.Module,
        inputs: Any,
        return_outputs: bool,
        num_items_in_batch: Any,
    ) -> Any:
        """What `compute_loss` returns, such that the backward pass of its loss matches the features."""
        self.matching.note_labels(inputs)
        compiled = is_compiled_module(model)
        self.watch.patient = self.trainer.state.global_step < PATIENCE
        if compiled and self.watch.reader is None:
            self._find_in_compiled(compute_loss, model, inputs, num_items_in_batch)
            if self.watch.reader is None:  # refused
                return compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        with self.watch.watching(model if compiled else self.model, graph_only=not self._collects):
            result = compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
            loss = self._matched(result[0] if return_outputs else result, num_items_in_batch)
        return (loss, *result[1:]) if return_outputs else loss

    @property
    def _collects(self) -> bool:
        return self.step is not None and self.step.collects

    def _matched(self, loss: Tensor, num_items_in_batch: Any) -> Tensor:
        """The task loss of a micro-batch, through which the matching's gradient joins the task's."""
        micro_batches, divisor = micro_batches_and_divisor(self.trainer, num_items_in_batch)
        try:
            seen = self._seen()
            if self.step is not None:
                return self.step.take(loss, seen, micro_batches / divisor)
            if seen is not None:
                return self.matching.match(loss, seen, divisor, asked_weight(self.trainer))
            self.matching.skip()
        except RanksDisagreeError as error:  # on every rank
            self._give_up(error)
        except HeadNotFoundError as error:
            self.matching.skip()
            self._give_up(error)
        return loss

    def _seen(self) -> Seen | None:
        """What the forward pass has shown; where labels do not serve, that is reported before missing features."""
        self._has_seen = self._has_seen or self.watch.inputs is not None
        try:
            return self.watch.seen()
        except HeadNotFoundError:
            self.matching.begin(self.matching.labels_of(self.watch.inputs), self.watch.width, False)
            raise

    def _first_pass(self, step: CachedStep, model: torch.nn.Module, num_items_in_batch: Any) -> None:
        """The features of a whole optimizer step, for `matching_scope="optimizer_step"`."""
        trainer = self.trainer
        model.train()
        trainer.optimizer.train()  # as Trainer's step does; some optimizers have other weights in evaluation

        if trainer.is_deepspeed_enabled:  # its engine takes any gradient that passes its outputs for the step's own
            model = self.model

        def forward(micro_batch: Any) -> None:
            with trainer.compute_loss_context_manager():
                inputs = trainer._prepare_inputs(copy.deepcopy(micro_batch))  # which may be edited there
                trainer.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)

        if self.watch.reader is None:
            self._find(lambda: forward(step.micro_batches[0]))
        if self.watch.reader is not None:
            with self._or_else_unmatched():
                step.first_pass(self.watch.reader, forward)

    def _find_in_compiled(self, compute_loss: Callable[..., Any], model: Any, inputs: Any, num_items: Any) -> None:
        """Find the features in the model before it is compiled, and put the hooks on."""
        if getattr(model.dynamo_ctx, "fullgraph", False):
            raise_or_go_without(
                self.trainer, "torch.compile(fullgraph=True) admits no break at the features; take fullgraph=False"
            )
            return
        self._find(lambda: compute_loss(self.model, copy.deepcopy(inputs), num_items_in_batch=num_items))
        self.watch.keep_hooks()

    def _find(self, forward: Callable[[], Any]) -> None:
        """Find the features by an extra forward pass, which is no part of the training step."""
        self._in_training_step = False
        with self._or_else_unmatched():
            self.watch.find(forward)
        self._in_training_step = True

    @contextmanager
    def _or_else_unmatched(self) -> Iterator[None]:
        """An extra forward pass; where it fails under `"auto"`, Trainer's own tells whether the batch is bad."""
        try:
            yield
        except (HeadNotFoundError, RanksDisagreeError) as error:
            self._give_up(error)
        except Exception as error:
            if is_asked(self.trainer) or is_distributed() or isinstance(error, torch.OutOfMemoryError):
                raise
            self._give_up(AmbiguousHeadError(f"an extra forward pass without gradient failed ({error})"))

    def _give_up(self, error: HeadNotFoundError | RanksDisagreeError) -> None:
        """Refuse the matching; a batch among others that can be matched is passed over, with one warning."""
        self._open = error if isinstance(error, AmbiguousHeadError) else None
        if self._open is not None and self.trainer.state.global_step < PATIENCE:
            return  # weights that begin as zeros, or as copies, differ after a few steps
        if self.matching.has_begun and not is_asked(self.trainer):
            if not self._warned:
                logger.warning(f"{error}; such batches are trained without matching.")
            self._warned = True
            return
        raise_or_go_without(self.trainer, error, asked=self.watch.reader is None and self.args.feature_layer != "head")
