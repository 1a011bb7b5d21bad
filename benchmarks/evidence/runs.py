"""Many runs, resumable."""

import itertools
import json
import multiprocessing
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from methods import settings
from on_ranks import launch
from one_run import Run, execute
from plan import reported_seeds
from tasks import Task
from tqdm import tqdm

HERE = Path(__file__).parent
TUNED = HERE / "tuned.json"


def _execute(job: tuple[Run, dict[str, str]]) -> dict[str, Any]:
    run, folders = job
    return launch(run, folders) if run.settings.get("ranks", 1) > 1 else execute(run, folders)


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
        results.parent.mkdir(parents=True, exist_ok=True)
        with processes({run.task for run in missing}, folders, workers) as pool, results.open("a") as file:
            rows = pool.imap_unordered(_execute, [(run, folders) for run in missing])
            for row in tqdm(rows, total=len(runs), initial=len(runs) - len(missing), smoothing=0, unit="run"):
                file.write(json.dumps(row) + "\n")
                file.flush()
                done[Run(*(row[name] for name in Run._fields)).key] = row
    return [done[run.key] for run in runs]


def processes(tasks: set[str], folders: dict[str, str], workers: int) -> Any:
    """Processes that share the loaded data, one for each run; a GPU does not survive a fork, so there they go on."""
    if torch.cuda.is_available() or sys.platform != "linux":
        return multiprocessing.get_context("spawn").Pool(workers)
    for task in tasks:
        Task(task).load(folders)
    return multiprocessing.get_context("fork").Pool(workers, maxtasksperchild=1)


def read_tuned() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads(TUNED.read_text()) if TUNED.exists() else {}


def planned(
    tasks: list[str], methods: list[str], seeds: list[int] | None, split: str, grid: Sequence[dict[str, Any]] = ({},)
) -> Iterator[Run]:
    """The runs of tasks x seeds (by default the reported ones) x methods x overrides, at the tuned settings."""
    tuned = read_tuned()
    for task in tasks:
        own = {method: seeds or reported_seeds(task, method) for method in methods}
        for seed in dict.fromkeys(itertools.chain.from_iterable(own.values())):  # methods side by side
            for method in (method for method in methods if seed in own[method]):
                for overrides in grid:
                    yield Run(task, method, seed, split, settings(Task(task), method, tuned.get(task, {}), overrides))
