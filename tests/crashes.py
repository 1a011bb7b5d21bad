"""Real processes that train, that are killed while they do, and that go on where another one was killed."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import distributed
from transformers import TrainerCallback

from itra_hf import ITRATrainer

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tiny", "transformers.trainer", "transformers.models.bert.modeling_bert"])


class KillAt(TrainerCallback):
    """Kills this process at the n-th time that an event happens."""

    def __init__(self, event: str, times: int) -> None:
        self.times = times
        setattr(self, event, self.count)

    def count(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times -= 1
        if self.times == 0:
            kill()


class KilledWhileSaving(ITRATrainer):
    """Is killed while it writes its second checkpoint."""

    saves = 0
    before = ""

    def _save_checkpoint(self, *args: Any) -> None:
        self.saves += 1
        super()._save_checkpoint(*args)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.before == "optimizer" and self.saves == 2:
            kill()
        super()._save_optimizer_and_scheduler(output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        if self.before == "rng" and self.saves == 2:
            if self.args.process_index == self.args.world_size - 1:
                torch.save = lambda *args: (time.sleep(1), kill())
            self.state.save_to_json = lambda path: (type(self.state).save_to_json(self.state, path), kill())
        if self.before == "end of state" and self.saves == 2:
            self.state.save_to_json = lambda path: (Path(path).write_text('{"best_metric": nu'), kill())
        if self.before == "slow rank":
            self._save_slowly(Path(output_dir, ".passing"))
        super()._save_rng_state(output_dir)

    def _save_slowly(self, passing: Path) -> None:
        """Rank 0 writes under a name that passes; rank 1 looks at that file until it is gone."""
        if self.args.process_index == 0:
            passing.write_text("half")
            time.sleep(1)
            passing.unlink()
        else:
            wait_for(passing.exists)
            access = os.access
            os.access = lambda path, mode: access(path, mode) and (Path(path) != passing or wait_for_end_of(passing))


def wait_for(event: Callable[[], bool]) -> bool:
    """Whether something happens within 20 seconds."""
    end = time.monotonic() + 20
    while time.monotonic() < end and not event():
        time.sleep(0.01)
    return event()


def wait_for_end_of(path: Path) -> bool:
    return wait_for(lambda: not path.exists())


def kill(*args: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(rank: int, world_size: int, port: int, folder: Path, changes: dict, death: Any, resume: Any) -> None:
    """One rank of a run; its weights go to a file if it lives to its end."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as a script's data loader starts its workers
    if world_size > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        os.environ |= {name: str(value) for name, value in ranks.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.manual_seed(0)
    bert = changes.pop("bert", False)
    model, rows = (tiny.bert(0.2), tiny.texts(50)) if bert else (tiny.Mlp(dropout=0.3), tiny.vectors(50))
    options = {"max_steps": 12, "learning_rate": 0.02, "matching_weight": 3.0, "matching_warmup_ratio": 0.5}
    options |= {"save_strategy": "steps", "save_steps": 2, "logging_steps": 3, **changes}
    options["per_device_train_batch_size"] = 8 // world_size
    KilledWhileSaving.before = death if isinstance(death, str) else ""
    trainer = tiny.trainer(folder, model, rows, KilledWhileSaving, **options)
    if isinstance(death, tuple) and rank == 0:
        trainer.add_callback(KillAt(*death))
    trainer.train(resume_from_checkpoint=resume)
    torch.save(tiny.weights(trainer.model), folder / f"weights-{rank}.pt")
    if world_size > 1:
        distributed.barrier()
        os._exit(0)  # the destructors of torch's process groups may wait for each other for ever


def run(world_size: int, folder: Path, changes: dict, death: Any = None, resume: Any = None) -> bool:
    """Whether a run of so many ranks lived to its end; when one rank dies, the others are killed too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        SERVER.Process(target=train, args=(rank, world_size, port, folder, changes, death, resume))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    while all(rank.exitcode in (None, 0) for rank in ranks) and any(rank.is_alive() for rank in ranks):
        multiprocessing.connection.wait([rank.sentinel for rank in ranks if rank.is_alive()], timeout=120)
    lived = all(rank.exitcode == 0 for rank in ranks)
    for rank in ranks:
        rank.kill()
        rank.join()
    return lived
