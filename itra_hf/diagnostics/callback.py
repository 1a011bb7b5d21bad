"""A Trainer callback that measures what a run does to its features, gradients and steps."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from itra_hf.diagnostics.probe import Probe, Rows
from itra_hf.diagnostics.saved_run import SavedRun
from itra_hf.distributed import sum_over_ranks
from itra_hf.hub.checkpoints import STATE

logger = logging.get_logger(__name__)

MEASURES = ("compactness", "gradient_scatter", "over_adaptation")


class ITRADiagnosticsCallback(TrainerCallback):
    """Measures a run as it trains, logs the measures like any metric, and changes not one bit of the training.

    There is one measurement before the first step and one after the last. Between them there is one every `every`
    steps, or at each evaluation. A run that stops early and loads its best checkpoint has none after the last step.

    `evaluate()` returns the measures too, so that `metric_for_best_model` can name one. Then each evaluation is
    measured, however long this takes. Under `itra_hf.ITRATrainer`, put the callback into `callbacks=[...]`. Another
    Trainer must be named:

        trainer.add_callback(ITRADiagnosticsCallback(trainer=trainer))

    Logged are the following. What is measured on features has the prefix `eval_`, or `train_` without an evaluation
    set.

    - `compactness`: the measures of `itra_hf.diagnostics.compactness`;
    - with `modes`: the measures of `mode_separation`;
    - `gradient_scatter`: the measures of that function, on `num_batches` mini-batches of the training set;
    - `over_adaptation`: the measures of that function, as means over pairs of these mini-batches. Each trial step is
      on the task loss alone, from the present weights and optimizer state. Nothing is logged while the learning rate
      is 0;
    - `diagnostics_share`: the share of the run's time so far that measuring has taken, without the first and the
      last measurement.

    The folder `_diagnostics` of `output_dir` keeps what the report needs; Trainer does not push it to the Hub. The
    run's log is in its `trainer_state.json`. All ranks measure the same rows. If a model's parameters are sharded over
    ranks, only `compactness` can be measured.

    Args:
        measures: of `"compactness"`, `"gradient_scatter"` and `"over_adaptation"`.
        every: steps between measurements; None (default) measures at each evaluation.
        dataset: the rows to measure features on. None is the evaluation set (the first of several), or without one
            the training set.
        modes: the sub-class of every row of that data set. Training does not see it.
        max_rows: features of at most this many rows, drawn once.
        num_batches: mini-batches for the gradients, drawn once.
        max_share: measuring takes at most this share of the run's time. A measurement that would take more is passed
            over. The first and the last are made in any case, and do not count.
        seed: of the draws, which leave the global random state alone.
        trainer: the trainer to measure; `ITRATrainer` fills it in.

    Raises:
        ValueError: for a value outside its range; when training begins, where the trainer is not known, or where rows
            have no classes.

    Example:
        >>> ITRADiagnosticsCallback(("compactness", "gradient_scatter"), every=100).max_share
        0.1
        >>> ITRADiagnosticsCallback(["compact"])
        Traceback (most recent call last):
        ...
        ValueError: measure 'compact' is unknown; choose of compactness, gradient_scatter, over_adaptation
    """

    def __init__(
        self,
        measures: Sequence[str] = ("compactness",),
        *,
        every: int | None = None,
        dataset: Any = None,
        modes: Sequence[Any] | None = None,
        max_rows: int = 1000,
        num_batches: int = 8,
        max_share: float = 0.1,
        seed: int = 0,
        trainer: Trainer | None = None,
    ) -> None:
        for name in measures:
            if name not in MEASURES:
                raise ValueError(f"measure {name!r} is unknown; choose of {', '.join(MEASURES)}")
        if every is not None and every < 1:
            raise ValueError(f"every={every} must be at least 1 step; None measures at each evaluation")
        if max_rows < 4 or num_batches < 2:
            raise ValueError(f"max_rows={max_rows} must be at least 4, and num_batches={num_batches} at least 2")
        if not 0 < max_share <= 1:
            raise ValueError(f"max_share={max_share} must lie above 0 and at most at 1, the whole run")
        self.every, self.max_share, self.trainer = every, max_share, trainer
        self._sample = (tuple(measures), dataset, modes, max_rows, num_batches, seed)
        self._probe: Probe | None = None
        self._step, self._found = -1, dict[str, float]()
        self._features: Rows | None = None
        self._begun, self._spent, self._cost, self._skipped = time.perf_counter(), 0.0, 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure before the first step; a resumed run keeps what was measured then."""
        if self.trainer is None:
            raise ValueError(
                "ITRADiagnosticsCallback does not know its trainer; "
                "trainer.add_callback(ITRADiagnosticsCallback(trainer=trainer)) tells it"
            )
        self._probe, self._step = None, -1
        self._begun, self._spent, self._cost, self._skipped = time.perf_counter(), 0.0, 0.0, 0
        if state.global_step == 0:
            self._measure(state, counts=False)
            self._log(control)
            if state.is_world_process_zero and self._features is not None:
                SavedRun(args.output_dir).save_features("before", *self._features, self.trainer.model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where it is time to, and after the last step."""
        last = state.global_step >= state.max_steps
        due = self.every is not None and state.global_step % self.every == 0
        if last or (due and self._can_afford(args)):
            self._measure(state, counts=not last)
            self._log(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Measure at each evaluation, and put the figures beside its own."""
        if self.trainer is None:
            return
        training = self.trainer.is_in_train
        wanted = self._is_missing(args.metric_for_best_model, metrics or {})
        due = self._step != state.global_step and (wanted or (self.every is None and self._can_afford(args)))
        if due or not training:
            self._measure(state)
            self._log(control)
        if metrics is not None and self._step == state.global_step:
            metrics.update(self._found)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save what the report needs, of the model that training leaves."""
        if self.trainer is None:
            return
        if args.load_best_model_at_end and state.best_model_checkpoint:  # which is loaded by now
            if self._probe and self._features:
                self._features = self._probe.features()
        elif self._step != state.global_step:  # stopped early; the trackers are closed by now
            self._measure(state, counts=False)
            state.log_history.append(self._found | {"epoch": state.epoch, "step": state.global_step})
        if state.is_world_process_zero:
            saved = SavedRun(args.output_dir)
            if self._features is not None:
                saved.save_features("after", *self._features, self.trainer.model)
            saved.save_config(self.trainer, {"diagnostics_share": self._share(), "skipped_measurements": self._skipped})
            state.save_to_json(str(Path(args.output_dir) / STATE))

    def _measure(self, state: Any, counts: bool = True) -> None:
        """Measure, and keep the figures and the features; what `max_share` does not count is taken out of the time."""
        start = time.perf_counter()
        if self._probe is None and self.trainer is not None:
            self._probe = Probe(self.trainer, *self._sample)
        if self._probe is not None:
            self._found, self._features = self._probe.measure()
            self._step = state.global_step
        self._cost = time.perf_counter() - start
        if counts:
            self._spent += self._cost
        else:
            self._begun += self._cost
        if state.global_step > 0 and self.trainer is not None and self.trainer.is_in_train:
            self._found["diagnostics_share"] = self._share()

    def _is_missing(self, metric: str | None, metrics: dict[str, float]) -> bool:
        """Whether the figure that chooses the best checkpoint is no evaluation's own, so that it must be ours."""
        sets = self.trainer.eval_dataset if self.trainer is not None else None
        name = "" if metric is None else metric.removeprefix("eval_")
        of_one_set = isinstance(sets, dict) and name.startswith(tuple(f"{each}_" for each in sets))
        return name != "" and f"eval_{name}" not in metrics and not of_one_set

    def _share(self) -> float:
        return self._spent / (time.perf_counter() - self._begun)

    def _can_afford(self, args: Any) -> bool:
        """Whether one more measurement keeps below the share, on every rank."""
        elapsed = time.perf_counter() - self._begun
        short = self._spent + self._cost > self.max_share * (elapsed + self._cost)
        if not sum_over_ranks(torch.tensor(float(short), device=args.device)):
            return True
        logger.warning_once(
            f"A measurement is passed over: measuring would take more than max_share={self.max_share} of the run's "
            "time. Measure less often, or raise max_share."
        )
        self._skipped += 1
        return False

    def _log(self, control: Any) -> None:
        if self.trainer is not None:
            should_log = control.should_log  # which logging sets to False: the training loss is still to come
            self.trainer.log(dict(self._found))
            control.should_log = should_log
