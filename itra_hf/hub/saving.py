"""Trainer's saving and pushing: checkpoints are whole, nothing private is saved, and a failed push is reported."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, cast

from accelerate.utils import gather_object
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from itra_hf.config import MatchingArguments
from itra_hf.files import flush
from itra_hf.hub.checkpoints import FILES, STATE, fault_of, last_whole_checkpoint, sizes_of

logger = logging.get_logger(__name__)

NOT_LOST = (
    "The trained model is not lost: trainer.save_model() writes it to {folder}, and trainer.push_to_hub() pushes it "
    "once the cause is fixed."
)


class _UnsavedToken(str):
    """A token of the Hub that pickles to None, so that no saved or pushed file holds it."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return type(None), ()


class SavingTrainer(Trainer):
    """Trainer with checkpoints that are known to be whole, pushes without a token, and warnings of failed pushes."""

    _checkpoint: Path | None = None  # that is being saved

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train like `Trainer.train`; `resume_from_checkpoint=True` takes the newest checkpoint that is whole.

        Raises:
            ValueError: if there is none, if ranks find different ones, or if the given one is not whole.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._newest_whole_checkpoint()
        elif resume_from_checkpoint and (fault := fault_of(Path(resume_from_checkpoint))):
            raise ValueError(
                f"Cannot resume from {resume_from_checkpoint}: {fault}. Name another checkpoint, or give True for the "
                f"newest whole one in {self.args.output_dir}"
            )
        if resume_from_checkpoint and self.args.load_best_model_at_end:
            self._check_best_checkpoint(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _newest_whole_checkpoint(self) -> str:
        """The same on all ranks, which may have different disks."""
        found = last_whole_checkpoint(self.args.output_dir)
        names = sorted({Path(path).name if path else "none" for path in gather_object([found])})
        if len(names) > 1:
            raise ValueError(
                f"the ranks find different checkpoints whole: {', '.join(names)}; give resume_from_checkpoint the path "
                "of one that is whole on all of them"
            )
        if found is None:
            raise ValueError(
                f"No valid checkpoint found in output directory ({self.args.output_dir}): none there is whole. Start "
                "again without resume_from_checkpoint"
            )
        return found

    def _check_best_checkpoint(self, checkpoint: Path) -> None:
        """Refuse to go on if the best checkpoint so far cannot be loaded at the end."""
        best = TrainerState.load_from_json(str(checkpoint / STATE)).best_model_checkpoint
        if best and Path(best).is_dir() and (fault := fault_of(Path(best))):
            raise ValueError(
                f"{best} is the best checkpoint so far, and cannot be loaded at the end: {fault}. Resume from one "
                "before it, or set load_best_model_at_end=False"
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save like Trainer; the state is written last, and lists the files that are on the disk by then."""
        self._checkpoint = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        if self.args.should_save:  # a run may overwrite a checkpoint that was whole
            for path in self._checkpoint.glob("*"):
                if path.name.startswith((STATE, "optimizer", "scheduler", "scaler", "rng_state")) and path.is_file():
                    path.unlink()
        self.accelerator.wait_for_everyone()
        self._listed.pop(FILES, None)
        super()._save_checkpoint(model, trial)
        self._checkpoint = None

    @property
    def _listed(self) -> dict[str, Any]:
        return cast(dict[str, Any], self.state.stateful_callbacks)

    def _keep(self) -> None:
        """Write the checkpoint's files through to the disk, and list them in the state."""
        if self._checkpoint is not None:
            self.accelerator.wait_for_everyone()  # another rank's file may have a passing name until it is whole
            flush(self._checkpoint)
            self.accelerator.wait_for_everyone()  # every rank has saved its part before the trainer's state is written
            self._listed[FILES] = {"args": {}, "attributes": {"sizes": sizes_of(self._checkpoint)}}

    def _load_callback_state(self) -> None:
        self._listed.pop(FILES, None)  # which is no callback's
        super()._load_callback_state()

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with self._saved_arguments():
            super()._save(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save like Trainer; a checkpoint of the weights alone is on the disk before its state says so."""
        super().save_model(output_dir, _internal_call)
        if self.args.save_only_model:  # else the random state is saved after all the rest
            self._keep()

    @wraps(Trainer.create_model_card, assigned=())
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Write Trainer's card into the folder; a link to a card elsewhere is replaced."""
        card = Path(str(self.args.output_dir), "README.md")
        if self.is_world_process_zero() and card.is_symlink():
            card.unlink()
        super().create_model_card(*args, **kwargs)

    @wraps(Trainer.push_to_hub, assigned=())
    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]  # the parameters are Trainer's
        """Push like Trainer; an error says that the model is not lost."""
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
        """Warn of each push in the background that has failed, and forget it; Trainer drops their errors."""
        if self.hub_model_id is None or self.push_in_progress is None:
            return
        jobs = self.push_in_progress.jobs
        for job in [job for job in jobs if job.done() and job.exception() is not None]:
            jobs.remove(job)
            error = job.exception()
            cause = f" ({error.__cause__})" if error is not None and error.__cause__ is not None else ""
            not_lost = NOT_LOST.format(folder=self.args.output_dir)
            logger.warning(f"A push to the Hub has failed, and training goes on: {error}{cause}\n{not_lost}")

    @contextmanager
    def _saved_arguments(self) -> Iterator[None]:
        """While Trainer pickles its arguments, they are those of `saved_arguments`."""
        args, self.args = self.args, saved_arguments(self.args)
        try:
            yield
        finally:
            self.args = args

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self._keep()


def saved_arguments(args: TrainingArguments) -> TrainingArguments:
    """A copy of the arguments for `training_args.bin`: without this package, and with a token that pickles to None.

    Arguments with the matching's options get the next class of their ancestors without them, and the options as plain
    attributes. So `torch.load` opens the file where this package is not installed.
    """
    saved = copy.copy(args)
    if isinstance(args, MatchingArguments):
        parents: Any = type(args).__mro__
        plain = (kind for kind in parents if issubclass(kind, TrainingArguments))
        saved.__class__ = next(kind for kind in plain if not issubclass(kind, MatchingArguments))
    if args.hub_token is not None:
        saved.hub_token = _UnsavedToken(args.hub_token)
    return saved
