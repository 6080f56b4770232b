"""Freed memory goes back to the system."""

import platform
from pathlib import Path

import pytest
import torch

from gruppo.memory import WORTHWHILE_BYTES, return_freed_memory


def resident_bytes():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it does nothing elsewhere")
def test_a_large_freed_heap_goes_back_to_the_system():
    # Pieces below the size from which glibc maps each by itself, with a survivor that keeps the heap from shrinking.
    pieces = [torch.ones(16 * 1024) for _ in range(4 * WORTHWHILE_BYTES // 2**16)]
    before = resident_bytes()
    survivor = pieces[-1]
    del pieces
    return_freed_memory()
    assert resident_bytes() < before - 2 * WORTHWHILE_BYTES
    assert survivor.sum() == 16 * 1024


def test_it_may_always_be_called():
    for _ in range(3):
        return_freed_memory()
