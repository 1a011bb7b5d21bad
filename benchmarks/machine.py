"""The machine that the benchmarks ran on, for their pages."""

import platform
from pathlib import Path


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return f"{name or platform.processor()} ({platform.machine()}, {platform.system()})"
