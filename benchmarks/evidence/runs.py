"""A run, from its settings to its measures, and many of them, resumable."""

import json
import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from contrast import contrastive_discrepancy
from measures import StepCost, machine, measure
from methods import OWN_OPTIONS, find_method, one_half_loss, settings
from networks import add_dropout
from plan import reported_seeds
from tasks import Task
from tqdm import tqdm
from transformers import PrinterCallback, set_seed
from transformers.utils import logging

from itra_hf import ITRAConfig, guards

HERE = Path(__file__).parent
TUNED = HERE / "tuned.json"


class Run(NamedTuple):
    """One training; `key` tells it from all others."""

    task: str
    method: str
    seed: int
    split: str
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        return json.dumps(self, sort_keys=True)


def execute(run: Run, folders: dict[str, str]) -> dict[str, Any]:
    """Train and measure; the seed decides the training rows, the initial weights and the order."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    task, (method, _) = Task(run.task), find_method(run.method)
    data = task.load(folders)
    train, measured = task.draw(data, run.seed, run.split == "validation")
    own = {name: value for name, value in run.settings.items() if name in OWN_OPTIONS}
    options = {name: value for name, value in run.settings.items() if name not in OWN_OPTIONS}
    set_seed(run.seed)
    model = task.build(data)
    if "dropout" in own:
        add_dropout(model, own["dropout"])
    guards.LEARNED = own.get("fully_open_at", guards.LEARNED)  # a process has one run
    extra: dict[str, Any] = {"strength": own["strength"]} if "strength" in own else {}
    if own.get("one_half"):
        extra["compute_loss_func"] = one_half_loss
    if "contrast" in own:
        extra["matching_loss"] = partial(contrastive_discrepancy, contrast=own["contrast"])
    with tempfile.TemporaryDirectory() as folder:
        args = ITRAConfig(
            folder,
            seed=run.seed,
            warmup_steps=0.1,
            per_device_eval_batch_size=256,
            dataloader_drop_last=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            **options,
        )
        cost = StepCost()
        trainer = method.trainer(
            model, args, data_collator=data.collator, train_dataset=train, callbacks=[cost], **extra
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        costs = cost.measured()
        scores = measure(trainer, measured)
        fit = measure(trainer, train[:1000])
    return {
        **run._asdict(),
        "machine": machine(),
        **scores,
        **costs,
        "train_accuracy": fit["accuracy"],
        "train_loss": fit["loss"],
    }


def _execute(job: tuple[Run, dict[str, str]]) -> dict[str, Any]:
    return execute(*job)


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The finished runs by their keys; a last line that a killed run left unfinished is dropped."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):
        path.write_text("".join(lines[:-1]))
        lines = lines[:-1]
    rows = [json.loads(line) for line in lines]
    return {Run(*(row[name] for name in Run._fields)).key: row for row in rows}


def run_all(runs: Iterable[Run], results: Path, folders: dict[str, str], workers: int) -> list[dict[str, Any]]:
    """The results of all runs; those that the file does not hold yet are run, each in a process of its own."""
    runs = list({run.key: run for run in runs}.values())
    done = read_results(results)
    missing = [run for run in runs if run.key not in done]
    if missing:
        torch.set_num_threads(1)
        for task in {run.task for run in missing}:
            Task(task).load(folders)  # once, for all processes to share
        results.parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        with context.Pool(workers, maxtasksperchild=1) as pool, results.open("a") as file:
            rows = pool.imap_unordered(_execute, [(run, folders) for run in missing])
            for row in tqdm(rows, total=len(runs), initial=len(runs) - len(missing), smoothing=0, unit="run"):
                file.write(json.dumps(row) + "\n")
                file.flush()
                done[Run(*(row[name] for name in Run._fields)).key] = row
    return [done[run.key] for run in runs]


def read_tuned() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads(TUNED.read_text()) if TUNED.exists() else {}


def planned(
    tasks: list[str], methods: list[str], seeds: list[int] | None, split: str, grid: Sequence[dict[str, Any]] = ({},)
) -> Iterator[Run]:
    """The runs of tasks x seeds (by default the reported ones) x methods x overrides, at the tuned settings."""
    tuned = read_tuned()
    for task in tasks:
        for seed in seeds or reported_seeds(task):
            for method in methods:
                for overrides in grid:
                    yield Run(task, method, seed, split, settings(Task(task), method, tuned.get(task, {}), overrides))
