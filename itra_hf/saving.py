"""Trainer's saving, such that nothing is lost and nothing given away."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, cast

from accelerate.utils import gather_object
from torch import nn
from transformers import Trainer
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

from itra_hf.checkpoints import FILES, STATE, fault_of, last_whole_checkpoint, sizes_of
from itra_hf.files import flush
from itra_hf.pushing import NOT_LOST, saved_arguments, warn_of_failed_pushes


class SavingTrainer(Trainer):
    """Trainer whose checkpoints are known to be whole, and whose pushes hold no token and do not fail unseen.

    It knows nothing of matching: `ITRATrainer` adds that.
    """

    _checkpoint: Path | None = None  # that is being saved

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train as `Trainer.train` does; `resume_from_checkpoint=True` takes the newest checkpoint that is whole.

        Raises:
            ValueError: where there is none, where ranks find different ones, or where the one given is not whole.
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
        """The same on all ranks, which may have disks of their own."""
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
        """Refuse to train on towards a best checkpoint that cannot be loaded in the end."""
        best = TrainerState.load_from_json(str(checkpoint / STATE)).best_model_checkpoint
        if best and Path(best).is_dir() and (fault := fault_of(Path(best))):
            raise ValueError(
                f"{best} is the best checkpoint so far, and cannot be loaded at the end: {fault}. Resume from one "
                "before it, or set load_best_model_at_end=False"
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save as Trainer does; the state is written last, and lists the files that are on the disk by then."""
        self._checkpoint = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        if self.args.should_save:  # a run may write a checkpoint anew, over one that was whole
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
        """Have the checkpoint's files on the disk, and list them in the state."""
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
        """Save as Trainer does; a checkpoint of the weights alone is on the disk before its state says so."""
        super().save_model(output_dir, _internal_call)
        if self.args.save_only_model:  # else the random state is saved after all the rest
            self._keep()

    @wraps(Trainer.create_model_card, assigned=())
    def create_model_card(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Write Trainer's card into the folder, also where a link leads outside."""
        card = Path(str(self.args.output_dir), "README.md")
        if self.is_world_process_zero() and card.is_symlink():
            card.unlink()
        super().create_model_card(*args, **kwargs)

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
        self._keep()
