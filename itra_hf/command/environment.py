"""What a bug report needs to know of the machine: `itra-hf env`."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from itra_hf.version import __version__

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "huggingface_hub", "numpy", "triton")


def environment() -> str:
    """The versions and the devices, one on each line, without a path or a name of the user.

    Example:
        >>> environment().splitlines()[0].startswith("itra_hf ")
        True
    """
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    found = {"itra_hf": __version__, "Python": platform.python_version(), "platform": platform.platform()}
    found |= {name: _version(name) for name in PACKAGES}
    found |= {"CUDA": torch.version.cuda or "none", "GPUs": ", ".join(devices) or "none"}
    return "\n".join(f"{name:<16} {value}" for name, value in found.items())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
