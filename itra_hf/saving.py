"""Trainer's saving, such that nothing is lost and nothing given away."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from itra_hf.checkpoints import STATE, last_whole_checkpoint
from itra_hf.pushing import NOT_LOST, saved_arguments, warn_of_failed_pushes


class SavingTrainer(Trainer):
    """Trainer whose checkpoints are known to be whole, and whose pushes hold no token and do not fail unseen.

    It knows nothing of matching: `ITRATrainer` adds that.
    """

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train as `Trainer.train` does; `resume_from_checkpoint=True` takes the newest checkpoint written to its end.

        Raises:
            ValueError: where there is none.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"No valid checkpoint found in output directory ({self.args.output_dir}): none there was written "
                    "to its end. Start again without resume_from_checkpoint"
                )
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as Trainer does, in such an order that a checkpoint with `trainer_state.json` is whole."""
        if self.args.should_save:  # a run may write a checkpoint anew, over one that was whole
            folder = f"checkpoint-{self.state.global_step}"
            Path(self._get_output_dir(trial=trial), folder, STATE).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with self._saved_arguments():
            super()._save(*args, **kwargs)

    @wraps(Trainer.push_to_hub, assigned=())
    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # the parameters are Trainer's
        """Push as Trainer does; an error tells that the model is not lost."""
        try:
            return super().push_to_hub(*args, **kwargs)
        except Exception as error:
            error.add_note(NOT_LOST.format(folder=self.args.output_dir))
            raise

    def _push_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._warn_of_failed_pushes()
        with self._saved_arguments():
            super()._push_from_checkpoint(*args, **kwargs)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._warn_of_failed_pushes()

    def _warn_of_failed_pushes(self) -> None:
        if self.hub_model_id is not None and self.push_in_progress is not None:
            warn_of_failed_pushes(self.push_in_progress.jobs, self.args.output_dir)

    @contextmanager
    def _saved_arguments(self) -> Iterator[None]:
        """While Trainer pickles its arguments, these are such as open without this package and hold no token."""
        args, self.args = self.args, saved_arguments(self.args)
        try:
            yield
        finally:
            self.args = args

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # every rank has saved its part before the trainer's state is written
