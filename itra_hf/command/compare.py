"""Trainer against ITRATrainer on a user's own model and data: both on every seed."""

import copy
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed
from transformers.utils import logging

from itra_hf.command.differences import described, summarise
from itra_hf.command.kept_runs import (
    RUNS,
    SettingsError,
    check_further,
    drop_ends,
    finished_runs,
    keep_settings,
    options_of,
)
from itra_hf.command.tasks import Task
from itra_hf.config import ITRAConfig, MatchingArguments
from itra_hf.diagnostics import ITRADiagnosticsCallback
from itra_hf.files import write_anew
from itra_hf.hub.checkpoints import last_whole_checkpoint
from itra_hf.hub.scores import SIDES, is_score
from itra_hf.trainer import ITRATrainer

RESULT = "comparison.json"
Arm = tuple[type[Trainer], ITRAConfig]


def compare(
    task: Task,
    args: ITRAConfig,
    seeds: list[int],
    measures: Sequence[str] = ("compactness",),
    also: Sequence[ITRAConfig] = (),
    samples_per_class: int | None = None,
) -> dict[str, Any]:
    """Train with both trainers on each seed, and compare them.

    A seed decides the new weights, the order of the rows and the dropout. The data are the same in all runs, except
    under `samples_per_class`. `runs.jsonl` keeps the finished runs. After a crash, the same call goes on with the next
    run, or within a run if the arguments save checkpoints. `settings.json` keeps all that decides a run, so that runs
    of different settings are never mixed.

    Args:
        task: the data and the model.
        args: of every run; its folder takes `runs.jsonl`, `settings.json`, `comparison.json` and a folder for each run.
        seeds: one pair of runs each.
        measures: of `ITRADiagnosticsCallback`, for the report. Nothing is measured in a regression, or if the
            evaluation rows hold only one class, or no two rows of one class.
        also: further arms on the same seeds: both trainers with each of these arguments. If these differ from `args`
            only in matching options, only ITRATrainer is trained.
        samples_per_class: draw a training set of this many rows of each class, another one for each seed.

    Returns:
        The content of `comparison.json`. It holds the runs, and the paired differences of every score with their 95 %
        confidence interval (Student's t over seeds). The verdict is on `metric_for_best_model`, by default accuracy,
        else the loss; a sentence says why.

    Raises:
        SettingsError: if the folder holds a comparison of other settings, the matching is switched off, or a further
            arm has the same options.
        ValueError: if a class has fewer than `samples_per_class` rows.
    """
    if args.matching == "none" or args.matching_weight == 0:
        raise SettingsError(
            f"matching={args.matching!r} with matching_weight={args.matching_weight} is Trainer itself, and there is "
            "nothing to compare; take another matching, or a weight above 0"
        )
    arms, pairs = arms_of(args, also)
    tasks = {seed: task if samples_per_class is None else task.drawn(samples_per_class, seed) for seed in seeds}
    folder = Path(str(args.output_dir))
    facts = described(tasks[seeds[0]], args, samples_per_class)
    runs = finished_runs(folder)
    planned = [(seed, name) for seed in seeds for name in arms]

    def result() -> dict[str, Any]:
        found = summarise(task, args, facts, [runs[key] for key in planned if key in runs], pairs)
        if args.process_index == 0:
            write_anew(folder / RESULT, json.dumps(found, indent=2))
        return found

    with _quiet():
        keep_settings(folder, task, args, samples_per_class)
        with tqdm(total=len(planned), disable=args.disable_tqdm or args.process_index > 0, unit="step") as bar:
            progress = _Progress(bar, len(planned))
            for seed, name in planned:
                if (seed, name) in runs:
                    progress.skip(runs[seed, name]["steps"])
                    continue
                bar.set_description(f"seed {seed}, {name}")
                runs[seed, name] = _run(tasks[seed], name, arms[name], seed, folder, progress, measures)
                if args.process_index == 0:
                    write_anew(folder / RUNS, "".join(json.dumps(run) + "\n" for run in runs.values()))
                    result()
                    for checkpoint in (folder / runs[seed, name]["folder"]).glob("checkpoint-*"):
                        shutil.rmtree(checkpoint)
    return result()


def arms_of(args: ITRAConfig, also: Sequence[ITRAConfig]) -> tuple[dict[str, Arm], list[tuple[str, str]]]:
    """What is trained on every seed, by name, and which further pairs of these are compared."""
    kinds: tuple[type[Trainer], ...] = (Trainer, ITRATrainer)
    arms: dict[str, Arm] = {name: (kind, args) for name, kind in zip(SIDES, kinds, strict=True)}
    ours = {option.name for option in fields(MatchingArguments)}
    pairs, own = [], options_of(args)
    for further in also:
        changed = {name: value for name, value in options_of(further).items() if value != own.get(name)}
        if not changed:
            raise SettingsError("a further arm (also) has the options of the comparison itself; give it another value")
        check_further(changed)
        told = ", ".join(f"{name}={value}" for name, value in changed.items())
        plain, itra = (f"{name} with {told}" for name in SIDES)
        if changed.keys() <= ours:  # Trainer does not know these
            pairs += [(SIDES[1], itra), (SIDES[0], itra)]
        else:
            arms[plain] = (Trainer, further)
            pairs += [(SIDES[0], plain), (plain, itra), (plain, SIDES[1])]
        arms[itra] = (ITRATrainer, further)
    return arms, list(dict.fromkeys(pairs))


def folder_name(name: str, seed: int) -> str:
    """A name for an arm's folder that every file system takes."""
    plain = re.sub(r"[^\w.=-]+", "-", name)
    return f"{plain if len(plain) < 150 else plain[:120] + hashlib.sha256(plain.encode()).hexdigest()[:8]}-seed-{seed}"


def _run(
    task: Task, name: str, arm: Arm, seed: int, folder: Path, progress: "_Progress", measures: Sequence[str]
) -> dict[str, Any]:
    """Train once, evaluate, and return a line of `runs.jsonl`."""
    kind, args = arm
    own = copy.copy(args)
    own.seed, own.output_dir = seed, str(folder / folder_name(name, seed))
    own.push_to_hub, own.disable_tqdm, own.report_to, own.log_level = False, True, [], "error"
    set_seed(seed)
    trainer = task.trainer(kind, own, [progress])
    trainer.remove_callback(PrinterCallback)
    if task.has_scatter:
        trainer.add_callback(ITRADiagnosticsCallback(measures, trainer=trainer))
    with own.main_process_first(desc="finding where the run stopped"):
        drop_ends(own.output_dir)
    trained = trainer.train(resume_from_checkpoint=last_whole_checkpoint(own.output_dir))
    scores = {key: value for key, value in trainer.evaluate().items() if is_score(key) or key == "eval_scatter_ratio"}
    trainer.save_state()
    finite = {key: float(value) if math.isfinite(value) else None for key, value in scores.items()}
    return {
        "seed": seed,
        "trainer": name,
        "metrics": {key.removeprefix("eval_"): value for key, value in finite.items()},
        "seconds": trained.metrics["train_runtime"],
        "steps": trained.global_step,
        "folder": Path(own.output_dir).name,
        "matched": trainer.matching_line if isinstance(trainer, ITRATrainer) else None,
        "hardly": trainer.hardly_matched if isinstance(trainer, ITRATrainer) else None,
    }


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
