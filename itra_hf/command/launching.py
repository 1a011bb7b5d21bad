"""Several processes by `accelerate launch`; they end together with the command that started them."""

import argparse
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import psutil

NAMES = ("SIGTERM", "SIGINT", "SIGHUP")  # of `kill`, Ctrl-C and a terminal that is closed, which Windows has not
SIGNALS = tuple(number for number in signal.Signals if number.name in NAMES)
SECONDS = 10  # that a process has to end by itself


def launch(argv: Sequence[str]) -> None:
    """Run a command by `accelerate launch` and exit with its status, if it has one of the two options for that."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--accelerate_config")
    options, rest = parser.parse_known_args(argv)
    flags = []
    if options.num_processes is not None and options.num_processes < 1:
        raise ValueError(f"num_processes={options.num_processes} must be at least 1")
    if options.accelerate_config is not None:
        flags = ["--config_file", options.accelerate_config]
    elif options.num_processes is not None and options.num_processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        flags = ["--multi_gpu", "--num_machines", "1", "--main_process_port", str(port)]  # on CPUs, too
        flags += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if options.num_processes is not None:
        flags += ["--num_processes", str(options.num_processes)]
    if flags:
        launcher = ["-m", "accelerate.commands.launch", *flags, "-m", "itra_hf.command.cli"]
        sys.exit(run_together([sys.executable, *launcher, *rest]))


def run_together(command: Sequence[str]) -> int:
    """Run a command to its end and return its status; a signal to this process ends the command and its children.

    Launchers differ in what they do with a signal. So each process gets the signal, and is killed if it does not end.
    The children have a session of their own, so that Ctrl-C reaches them once, from here.
    """
    started: list[subprocess.Popen[bytes]] = []

    def end(number: int, frame: Any) -> None:
        for process in started:
            _end(process.pid, number)
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        started.append(subprocess.Popen(command, start_new_session=True))  # noqa: S603
        return started[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(pid: int, number: int) -> None:
    """End a process and all that come from it."""
    try:
        root = psutil.Process(pid)
        family = [*root.children(recursive=True), root]  # the launcher last, or it would report crashes
    except psutil.NoSuchProcess:
        return
    for process in family:
        _signal(process, number)
    _, alive = psutil.wait_procs(family, timeout=SECONDS)
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=1)


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
