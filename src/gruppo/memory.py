"""Giving freed memory back between the parts of a step, on the CPU.

glibc keeps what was freed for the next allocation of the same thread. Rollouts, forwards and the optimizer need their
memory in different shapes, so without this the peak of a run is nearly the sum of theirs. On other C libraries and
systems nothing is done. (On GPUs torch's caching allocator serves all parts from one pool.)
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Any, Final

WORTHWHILE_BYTES: Final = 64 * 2**20
"""Less is kept: the next part would only have to ask for it again."""

_FIELDS: Final = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip


class _HeapFacts(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def return_freed_memory() -> None:
    """Hands the free pages of the C heap back to the system, if they are many."""
    glibc = _glibc()
    if glibc is not None and glibc.mallinfo2().fordblks >= WORTHWHILE_BYTES:
        glibc.malloc_trim(0)


@cache
def _glibc() -> Any:
    """None before glibc 2.33, which has `mallinfo2`, and where the C library is another."""
    name, number = platform.libc_ver()
    if name != "glibc" or tuple(map(int, number.split(".")[:2])) < (2, 33):
        return None
    library = ctypes.CDLL("libc.so.6")
    library.mallinfo2.restype = _HeapFacts
    return library
