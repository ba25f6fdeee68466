"""The machine a result is made on: what it is, what is installed, how a process keeps its memory."""

from __future__ import annotations

import ctypes
import os
import platform
from importlib import import_module
from pathlib import Path
from typing import Any

from bnlib import __version__


def describe(device: str) -> dict[str, Any]:
    """The device that runs are done on, "cpu" or "cuda"."""
    if device.startswith("cuda"):
        return {"type": "cuda", "name": import_module("torch").cuda.get_device_name(device)}
    return {"type": "cpu", "name": processor(), "cores": os.cpu_count(), "threads_per_run": 1}


def processor() -> str:
    """The processor's name, as well as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of Python and of everything that can change a result."""
    modules = {name: import_module(name) for name in ("torch", "torchvision", "numpy")}
    packages = {name: module.__version__ for name, module in modules.items()}  # with "+cu130" and the like
    return {"python": platform.python_version(), **packages, "bnlib": __version__}


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, and use it again; False where that cannot be asked for.

    The C library gives large pieces back to the system at once, and a training step asks for the same ones
    again: each comes back page by page, filled with zeros.  Where activations are large and the arithmetic is
    little, as in the networks for digits, that is a third of the time.  No result changes.  Linux with the
    GNU C library only (mallopt(3)).
    """
    mmap_max, trim_threshold = -4, -1  # of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))
