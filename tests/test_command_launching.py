"""Several processes end together with the command that has started them."""

import os
import signal
import subprocess
import sys
import time

import folders
import psutil
import pytest

from itra_hf.command import launching

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"]
subprocess.Popen(child, start_new_session=True)
print("started", flush=True)
time.sleep(60)
"""
PARENT = """
import sys
from itra_hf.command import launching
launching.SECONDS = 1
sys.exit(launching.run_together([sys.executable, "-c", sys.argv[1]]))
"""


def gone(processes, seconds):
    """Those that are still there after so many seconds."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)])  # accelerate has two launchers
def test_a_signal_to_the_command_ends_the_launcher_and_every_rank(tmp_path, number, ranks):
    data = ["--model_name_or_path", folders.bert(tmp_path), "--train_file", folders.pets(tmp_path)]
    options = ["--max_steps", "1000000", "--logging_steps", "1", "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    command = [sys.executable, "-m", "itra_hf.command.cli", "train", *data, *options]
    command += ["--num_processes", str(ranks)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603
    for line in process.stdout:
        if "'loss'" in line:
            break
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 1 + ranks  # the launcher and the ranks
    process.send_signal(number)
    try:
        begun = time.monotonic()
        assert process.wait(15) == 128 + number
        assert gone(family, 15 - (time.monotonic() - begun)) == []
    finally:
        for each in gone(family, 0):
            each.kill()


def test_a_terminal_that_is_closed_ends_them_too():
    assert {signal.SIGHUP, signal.SIGINT, signal.SIGTERM} == set(launching.SIGNALS)


def test_processes_that_heed_no_signal_are_killed(tmp_path):
    command = [sys.executable, "-c", PARENT, STUBBORN]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert process.stdout.readline() == "started\n"
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 2
    process.terminate()
    assert process.wait(10) == 128 + signal.SIGTERM
    assert gone(family, 1) == []


@pytest.mark.parametrize("status", [0, 3])
def test_the_status_is_that_of_the_processes_and_signals_are_as_before(status):
    before = [signal.getsignal(number) for number in launching.SIGNALS]
    assert launching.run_together([sys.executable, "-c", f"raise SystemExit({status})"]) == status
    assert [signal.getsignal(number) for number in launching.SIGNALS] == before
    assert not [child for child in psutil.Process(os.getpid()).children() if "SystemExit" in str(child.cmdline())]


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        (["--accelerate_config", "a.yaml"], ["--config_file", "a.yaml"]),
        (
            ["--accelerate_config", "a.yaml", "--num_processes", "3"],
            ["--config_file", "a.yaml", "--num_processes", "3"],
        ),
    ],
)
def test_a_file_of_accelerate_is_handed_over(monkeypatch, given, flags):
    asked = []
    monkeypatch.setattr(launching, "run_together", lambda command: asked.append(command) or 7)
    with pytest.raises(SystemExit) as ended:
        launching.launch(["compare", "config.yaml", *given, "--seeds", "2"])
    assert ended.value.code == 7
    end = ["-m", "itra_hf.command.cli", "compare", "config.yaml", "--seeds", "2"]
    assert asked == [[sys.executable, "-m", "accelerate.commands.launch", *flags, *end]]


def test_a_command_for_one_process_is_not_handed_over():
    launching.launch(["train", "config.yaml", "--seed", "2"])
