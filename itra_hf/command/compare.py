"""Trainer against ITRATrainer on a user's own model and data: both on every seed, and what it says."""

import copy
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed
from transformers.utils import logging

from itra_hf.command.differences import SIDES, judge, paired_differences
from itra_hf.command.kept_runs import RUNS, SettingsError, drop_ends, finished_runs, keep_settings
from itra_hf.command.tasks import Task
from itra_hf.config import ITRAConfig
from itra_hf.diagnostics import ITRADiagnosticsCallback
from itra_hf.files import write_anew
from itra_hf.hub.checkpoints import last_whole_checkpoint
from itra_hf.hub.public import public_arguments, public_name
from itra_hf.hub.scores import is_score
from itra_hf.trainer import ITRATrainer

TRAINERS: dict[str, type[Trainer]] = dict(zip(SIDES, (Trainer, ITRATrainer), strict=True))
RESULT = "comparison.json"
FALLING = ("loss", "mse", "scatter_ratio")  # the scores of which less is better


def compare(
    task: Task, args: ITRAConfig, seeds: list[int], measures: Sequence[str] = ("compactness",)
) -> dict[str, Any]:
    """Train with both trainers on each seed, and compare them.

    A seed decides the weights that are new, the order of the rows and the dropout; the data are the same in all runs.
    A run that has finished is kept in `runs.jsonl`, so that the same call after a crash goes on where it stopped: with
    the next run, or within one where the arguments save checkpoints. All that decides a run is kept in `settings.json`
    before the first begins, so that runs of different settings are never mixed.

    Args:
        task: the data and the model.
        args: of every run; its folder takes `runs.jsonl`, `settings.json`, `comparison.json` and a folder for each run.
        seeds: one pair of runs each.
        measures: what `ITRADiagnosticsCallback` measures, for the report; nothing of numbers, nor where the rows to
            evaluate on hold one class alone or no two rows of one.

    Returns:
        What `comparison.json` holds, such as the runs, the paired differences of every score with their 95 % confidence
        interval (Student's t over seeds), the verdict on `metric_for_best_model` (by default accuracy, else the loss),
        and a sentence that says it.

    Raises:
        SettingsError: where the folder holds a comparison of other settings, or the matching is switched off.
    """
    if args.matching == "none" or args.matching_weight == 0:
        raise SettingsError(
            f"matching={args.matching!r} with matching_weight={args.matching_weight} is Trainer itself, and there is "
            "nothing to compare; take another matching, or a weight above 0"
        )
    folder = Path(str(args.output_dir))
    settings = {"model": public_name(task.model_name), "dataset": public_name(task.dataset_name)}
    settings |= {"rows": len(task.train)} | public_arguments(args)
    runs = finished_runs(folder)
    with _quiet():
        keep_settings(folder, task, args, bool(runs))
    planned = [(seed, name) for seed in seeds for name in TRAINERS]
    hidden = args.disable_tqdm or args.process_index > 0
    with _quiet(), tqdm(total=len(planned), disable=hidden, unit="step") as bar:
        progress = _Progress(bar, len(planned))
        for seed, name in planned:
            if (seed, name) in runs:
                progress.skip(runs[seed, name]["steps"])
                continue
            bar.set_description(f"seed {seed}, {name}")
            runs[seed, name] = _run(task, args, name, seed, folder, progress, measures)
            if args.process_index == 0:
                write_anew(folder / RUNS, "".join(json.dumps(run) + "\n" for run in runs.values()))
                done = [runs[key] for key in planned if key in runs]
                write_anew(folder / RESULT, json.dumps(summarise(task, args, settings, done), indent=2))
                for checkpoint in (folder / runs[seed, name]["folder"]).glob("checkpoint-*"):
                    shutil.rmtree(checkpoint)
    result = summarise(task, args, settings, [runs[key] for key in planned])
    if args.process_index == 0:
        write_anew(folder / RESULT, json.dumps(result, indent=2))
    return result


def _run(
    task: Task, args: ITRAConfig, name: str, seed: int, folder: Path, progress: "_Progress", measures: Sequence[str]
) -> dict[str, Any]:
    """Train once, evaluate, and return a line of `runs.jsonl`."""
    own = copy.copy(args)
    own.seed, own.output_dir = seed, str(folder / f"{name}-seed-{seed}")
    own.push_to_hub, own.disable_tqdm, own.report_to, own.log_level = False, True, [], "error"
    set_seed(seed)
    trainer = task.trainer(TRAINERS[name], own, [progress])
    trainer.remove_callback(PrinterCallback)
    if task.has_scatter:
        trainer.add_callback(ITRADiagnosticsCallback(measures, trainer=trainer))
    with own.main_process_first(desc="finding where the run stopped"):
        drop_ends(own.output_dir)
    trained = trainer.train(resume_from_checkpoint=last_whole_checkpoint(own.output_dir))
    scores = trainer.evaluate()
    trainer.save_state()
    return {
        "seed": seed,
        "trainer": name,
        "metrics": {
            key.removeprefix("eval_"): _finite(value)
            for key, value in scores.items()
            if is_score(key) or key == "eval_scatter_ratio"
        },
        "seconds": trained.metrics["train_runtime"],
        "steps": trained.global_step,
        "folder": Path(own.output_dir).name,
        "matched": trainer.matching_line if isinstance(trainer, ITRATrainer) else None,
        "hardly": trainer.hardly_matched if isinstance(trainer, ITRATrainer) else None,
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def summarise(task: Task, args: ITRAConfig, settings: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of `comparison.json`."""
    metric = _metric(args, runs)
    greater = metric not in FALLING  # `greater_is_better` is True by default for all but losses
    differences = paired_differences(runs)
    verdict, sentence = judge(metric, greater, differences.get(metric))
    return {
        "task": f"{task.kind}-classification",
        "model": settings["model"],
        "dataset": settings["dataset"],
        "metric": metric,
        "greater_is_better": greater,
        "settings": settings,
        "runs": runs,
        "differences": differences,
        "verdict": verdict,
        "sentence": sentence,
        "matched": next((run["matched"] for run in runs if run.get("matched")), None),
        "warnings": [
            f"Seed {run['seed']}: the matching hardly took place: {run['hardly']}" for run in runs if run.get("hardly")
        ],
    }


def _metric(args: ITRAConfig, runs: list[dict[str, Any]]) -> str:
    """The score that decides."""
    known = runs[0]["metrics"]
    wanted = (args.metric_for_best_model or ("accuracy" if "accuracy" in known else "loss")).removeprefix("eval_")
    if wanted not in known:
        raise SettingsError(f"metric_for_best_model={wanted!r} is unknown; choose one of {', '.join(known)}")
    return wanted


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no reports of transformers; warnings of this package stay."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


class _Progress(TrainerCallback):
    """One bar over the steps of all runs."""

    def __init__(self, bar: Any, runs: int) -> None:
        self.bar, self.runs, self.done = bar, runs, 0

    def skip(self, steps: int) -> None:
        """A run that was finished before."""
        self.bar.total = self.runs * steps
        self.bar.update(steps)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.total = self.runs * state.max_steps
        self.bar.update(state.global_step)  # of a checkpoint

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update()
