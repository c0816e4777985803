"""Freed memory stays in the process, where there is a glibc to say so to."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

from ftray.train.memory import MALLOC_ENVIRONMENT, MMAP_THRESHOLD_BYTES, TRIM_THRESHOLD_BYTES, keep_freed_memory

FAULTS = """
import resource, sys
from ftray.train.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def allocate():
    return b"x" * 2**25
allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    allocate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory: there is no glibc here")
def test_memory_is_not_faulted_in_again() -> None:
    assert keep_freed_memory() is True
    assert faults("keep") * 5 < faults("default")


def test_the_environment_of_workers_says_the_same() -> None:
    assert MALLOC_ENVIRONMENT.keys() == {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    assert [int(value) for value in MALLOC_ENVIRONMENT.values()] == [MMAP_THRESHOLD_BYTES, TRIM_THRESHOLD_BYTES]


def test_thresholds_fit_a_c_int() -> None:
    assert max(MMAP_THRESHOLD_BYTES, TRIM_THRESHOLD_BYTES) < 2**31
    assert resource.getpagesize() < MMAP_THRESHOLD_BYTES
