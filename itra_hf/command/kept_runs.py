"""The files of a comparison: it goes on after a crash, and never mixes runs of different settings."""

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import TrainerState
from transformers.utils import logging

from itra_hf.command.contents import model_digest, processor_digest, rows_digest
from itra_hf.command.tasks import Task
from itra_hf.config import ITRAConfig
from itra_hf.files import write_anew
from itra_hf.hub.checkpoints import STATE
from itra_hf.hub.public import PRIVATE
from itra_hf.hub.scores import SIDES

logger = logging.get_logger(__name__)

RUNS, SETTINGS = "runs.jsonl", "settings.json"
# The keys of a line of `runs.jsonl`.
KEPT = ("seed", "trainer", "metrics", "seconds", "steps", "folder", "matched", "hardly")
# Options of TrainingArguments that change no run.
HARMLESS = (*PRIVATE, "output_dir", "report_to", "run_name", "project", "trackio_")
# Options that torch or accelerate take once for a process: all arms of a comparison have them, or none.
OF_PROCESS = (
    *("torch_compile", "tf32", "bf16", "fp16", "full_determinism", "deepspeed", "fsdp", "ddp_", "use_cpu"),
    *("parallelism_config", "accelerator_config"),
)


class SettingsError(ValueError):
    """A comparison that makes no sense, or mixes runs of different settings."""


def options_of(args: ITRAConfig) -> dict[str, Any]:
    """The options that decide a run."""
    free = HARMLESS if args.load_best_model_at_end else (*HARMLESS, "metric_for_best_model", "greater_is_better")
    return {name: value for name, value in args.to_dict().items() if not name.startswith(free)}


def check_further(names: Iterable[str]) -> None:
    """Refuse further arms that differ in what holds for the whole process."""
    for name in names:
        if name.startswith(OF_PROCESS):
            raise SettingsError(
                f"a further arm (also) changes {name}, which holds for a whole process; compare it by a call of its own"
            )


def keep_settings(folder: Path, task: Task, args: ITRAConfig, samples_per_class: int | None) -> None:
    """Save all settings that decide a run; refuse a folder with a comparison of other settings."""
    rows = {"rows": [len(task.train), len(task.test)], "samples_per_class": samples_per_class}
    own = task.source | options_of(args) | rows | {"world_size": args.world_size} | _contents(task)
    settings = json.loads(json.dumps(own, default=str))
    path = folder / SETTINGS
    if path.exists() or (folder / RUNS).exists():
        earlier = _earlier_settings(path)
        changed = sorted(name for name in {*earlier, *settings} if earlier.get(name) != settings.get(name))
        if changed:
            told = ", ".join(f"{name} ({earlier.get(name)} then, {settings.get(name)} now)" for name in changed)
            raise SettingsError(f"{folder} holds a comparison of other settings: {told}; take another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    if args.process_index == 0:
        write_anew(path, json.dumps(settings, indent=2))


def _contents(task: Task) -> dict[str, str | None]:
    """Digests of the data, the model and the processor; they do not depend on names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of weights that are new
        model = model_digest(task.new_model())
    return {
        "content of the training rows": rows_digest(task.train),
        "content of the evaluation rows": rows_digest(task.test),
        "content of the model": model,
        "content of the processor": processor_digest(task.processor),
    }


def _earlier_settings(path: Path) -> dict[str, Any]:
    """The settings of an earlier call."""
    try:
        settings = dict(json.loads(path.read_text(encoding="utf-8")))
        if settings:
            return settings
        raise ValueError("it is empty")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise SettingsError(
            f"{path} cannot be read ({error}), so its runs may be of other settings; take another --output_dir"
        ) from error


def finished_runs(folder: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """The finished runs of an earlier call, by seed and trainer; a line that was cut off does not count."""
    runs = {}
    lines = (folder / RUNS).read_text(encoding="utf-8", errors="replace") if (folder / RUNS).exists() else ""
    for number, line in enumerate(lines.splitlines(), 1):
        try:
            run = _checked_run(json.loads(line))
            runs[run["seed"], run["trainer"]] = run
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            logger.warning(f"{folder / RUNS}: line {number} cannot be read; its run is repeated.")
    return runs


def _checked_run(run: Any) -> dict[str, Any]:
    """The content of a line of `runs.jsonl`, or an error."""
    numbers = [run["seconds"], run["steps"], *(value for value in run["metrics"].values() if value is not None)]
    texts = [run["folder"], *(run[name] for name in ("matched", "hardly") if run[name] is not None)]
    are_numbers = all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers)
    trainer = run["trainer"].split(" with ")[0]  # a further arm's options follow
    if not are_numbers or not all(isinstance(text, str) for text in texts) or trainer not in SIDES:
        raise ValueError("it is not a run")
    return {name: run[name] for name in KEPT}


def drop_ends(folder: str) -> None:
    """Delete checkpoints of the last step; from these, Trainer would train one step more."""
    for state in Path(folder).glob(f"checkpoint-*/{STATE}"):
        try:
            at_end = TrainerState.load_from_json(str(state))
        except (ValueError, TypeError):  # a broken one is passed over
            continue
        if at_end.global_step >= at_end.max_steps:
            shutil.rmtree(state.parent)
