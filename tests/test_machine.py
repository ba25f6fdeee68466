"""What a process does with the memory that it has freed."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from bnlib import machine

# The page faults of making a tensor of 40 MB anew ten times, once the allocator has found places for it.
FAULTS = """
import resource, sys, torch
from bnlib import machine
if sys.argv[1] == "kept":
    assert machine.keep_freed_memory()
for _ in range(20):
    torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library has mallopt")
def test_freed_memory_is_used_again():
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, word], check=True, capture_output=True).stdout)
        for word in ("given back", "kept")
    )
    assert given_back > 10_000  # of 4 KiB each, or fewer where pages are larger
    assert kept < given_back / 100


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_other_systems_go_on_without(monkeypatch, error):
    def missing(name):
        raise error("no mallopt here")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert machine.keep_freed_memory() is False
