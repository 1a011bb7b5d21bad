"""Runs on_gpu.py where there is a GPU. All other tests mean the CPU, and conftest.py hides what else there is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="there is no GPU")
def test_what_needs_a_gpu_passes_on_one():
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rf",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        str(here / "on_gpu.py"),
    ]
    environment = os.environ | {"ITRA_TESTS_SEE_GPUS": "1"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(command, env=environment, cwd=here.parent, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout[-8000:]
