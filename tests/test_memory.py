"""Freed memory is used again during a run, and goes back to the system at its end.

Measured in processes of their own: in one where an allocation has failed before, glibc serves the thread from a heap
that cannot hold large blocks.
"""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it does nothing elsewhere")

PREPARED = '''
import resource, threading
from pathlib import Path
import torch
from gruppo.memory import freed_memory_kept

MIB = 2**20
NUM_PAGES = 64 * MIB // resource.getpagesize()

def takes_new_pages():
    """Whether in the long run the system has to clear pages for a block that is taken, filled and freed.

    Aligning a block leaves splinters, and glibc's per-thread cache holds the first seven of a size: until it is full,
    a freed block may be a splinter too small for the next one.
    """
    counts = []
    for _ in range(40):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(16 * MIB)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(counts[20:]) > NUM_PAGES // 1024  # huge pages are 512 times as large

def resident_mib():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) // 1024
'''


def run(script, **environment):
    knobs = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    clean = {name: value for name, value in os.environ.items() if name not in knobs}
    subprocess.run([sys.executable, "-c", PREPARED + script], env=clean | environment, check=True)


def test_a_block_that_was_freed_is_taken_again_without_new_pages():
    run("""
assert takes_new_pages()
with freed_memory_kept():
    assert not takes_new_pages()
""")


@pytest.mark.parametrize("end", ["pass", "raise RuntimeError"])
def test_afterwards_blocks_go_back_at_once(end):
    run(f"""
try:
    with freed_memory_kept():
        {end}
except RuntimeError:
    pass
assert takes_new_pages()
""")


def test_at_the_end_what_is_free_goes_back():
    run("""
with freed_memory_kept():
    block = torch.ones(128 * MIB // 4)
    survivor = torch.ones(1024)  # the heap cannot just be cut at its end
    del block
    kept = resident_mib()
assert resident_mib() < kept - 64
assert survivor.sum() == 1024
""")


@pytest.mark.parametrize(
    "knob", [{"MALLOC_TRIM_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"}]
)
def test_the_users_own_knobs_are_left_alone(knob):
    run(
        """
with freed_memory_kept():
    assert takes_new_pages()
""",
        **knob,
    )


def test_a_block_of_another_thread_is_served_too():
    run("""
sums = []
with freed_memory_kept():
    thread = threading.Thread(target=lambda: sums.append(torch.ones(50_000_000).sum().item()))
    thread.start()
    thread.join()
assert sums == [50_000_000]
""")


def test_a_block_is_served_after_one_that_was_too_large():
    run("""
with freed_memory_kept():
    try:
        torch.ones(2**58)
    except RuntimeError:
        pass
    assert torch.ones(50_000_000).sum() == 50_000_000
""")
