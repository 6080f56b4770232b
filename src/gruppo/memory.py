"""Keeping freed memory in the process while a run goes on, on the CPU.

glibc hands every block above 32 MiB back to the system when it is freed, and the heap's free end above 64 MiB. A step
frees and takes such blocks all the time (logits, gradients of embeddings, activations), and the system clears each
page anew: 6 to 13 % of a step. With the two thresholds lifted a step takes no page that the
one before did not have. At the end of the run everything that is free goes back.

On other C libraries and systems nothing is done, nor where the user has set glibc's own knobs. (On GPUs torch's
caching allocator does the same. Other threads than the main one have small heaps of their own, which gain nothing.)
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4

_DEFAULT_MMAP_MAX: Final = 65536
_LARGEST_TRIM_THRESHOLD: Final = 64 * 2**20
"""What glibc's own adaptation arrives at in a process that frees large blocks; setting a knob ends that adaptation."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, memory that this process frees is used again and not given back; on leaving, what is free goes back."""
    glibc = _glibc()
    if glibc is None or _is_tuned_by_user():
        yield
        return
    glibc.mallopt(_M_MMAP_MAX, 0)
    glibc.mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        glibc.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
        glibc.mallopt(_M_TRIM_THRESHOLD, _LARGEST_TRIM_THRESHOLD)
        glibc.malloc_trim(0)


def _is_tuned_by_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    knobs = ("mmap_max", "mmap_threshold", "trim_threshold")
    return any(f"glibc.malloc.{knob}" in tunables or f"MALLOC_{knob.upper()}_" in os.environ for knob in knobs)


@cache
def _glibc() -> Any:
    """None where the C library is another."""
    return ctypes.CDLL("libc.so.6") if platform.libc_ver()[0] == "glibc" else None
