"""Freed memory is used again during a run, and goes back to the system at its end."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gruppo.memory import freed_memory_kept

BLOCK_BYTES = 128 * 2**20
NUM_PAGES = BLOCK_BYTES // resource.getpagesize()

on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it does nothing elsewhere")


@pytest.fixture(autouse=True)
def untuned(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)


def resident_bytes():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def new_pages_of_a_block():
    """Pages that the system has to clear for a block that is taken, filled and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(BLOCK_BYTES // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@on_glibc
def test_a_block_that_was_freed_is_taken_again_without_new_pages():
    new_pages_of_a_block()
    assert new_pages_of_a_block() > NUM_PAGES // 1024  # huge pages are 512 times as large
    with freed_memory_kept():
        # Something small may settle in what was freed, and then the next block finds too little room there.
        assert min(new_pages_of_a_block() for _ in range(5)) < NUM_PAGES // 1024
    assert new_pages_of_a_block() > NUM_PAGES // 1024


@on_glibc
def test_at_the_end_what_is_free_goes_back():
    with freed_memory_kept():
        block = torch.ones(BLOCK_BYTES // 4)
        survivor = torch.ones(1024)  # the heap cannot just be cut at its end
        del block
        kept = resident_bytes()
    assert resident_bytes() < kept - BLOCK_BYTES // 2
    assert survivor.sum() == 1024


@on_glibc
def test_it_ends_with_an_error_too():
    with pytest.raises(RuntimeError, match="broken"), freed_memory_kept():
        raise RuntimeError("broken")
    new_pages_of_a_block()
    assert new_pages_of_a_block() > NUM_PAGES // 1024


@on_glibc
@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "1000000"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1000000")],
)
def test_the_users_own_knobs_are_left_alone(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with freed_memory_kept():
        new_pages_of_a_block()
        assert new_pages_of_a_block() > NUM_PAGES // 1024


@on_glibc
def test_a_block_from_another_thread_is_served_too():
    script = (
        "import threading, torch\n"
        "from gruppo.memory import freed_memory_kept\n"
        "sums = []\n"
        "with freed_memory_kept():\n"
        "    thread = threading.Thread(target=lambda: sums.append(torch.ones(50_000_000).sum().item()))\n"
        "    thread.start(); thread.join()\n"
        "print(sums)\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[50000000.0]"
