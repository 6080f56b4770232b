"""Ways to put bytes on disk that survive a kill: whole files by rename, lines by append, parts in the background.

Nothing here knows what the records mean. No fsync: a killed process loses nothing that was written, a power cut may.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore, Condition, Lock
from typing import Any, TextIO, final

import pyarrow as pa
import pyarrow.parquet as pq

from gruppo.monitor.schema import to_json

MAX_WAITING_PARTS = 16
"""Parts in memory that wait for the disk."""

EARLY_SECONDS = 1.0
"""How long an early version of a part waits for the better one before it is written as it is: in short steps each part
is then written once, in long ones its rows can be looked at while they are trained on."""

PATIENCE_SECONDS = 5.0
"""How long a full queue may hold up training before a part is dropped (and counted). After a drop there is no patience
until a part has been written: a disk that hangs holds training up once."""

Make = Callable[[], pa.Table | None]
"""Makes the rows of a part. None: there is nothing to write."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary file beside `path`, then rename it: readers see all of it or nothing.

    The temporary name begins with a dot, which every Parquet reader takes as "not data".
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    os.replace(temporary, path)


def write_parquet(path: Path, table: pa.Table) -> None:
    """One whole Parquet file, zstd, which finds repeated texts by itself: dictionaries cost time and room."""
    write_whole(path, lambda temporary: pq.write_table(table, temporary, compression="zstd", use_dictionary=False))


@final
class JsonLines:
    """A file of one JSON object per line, opened at the first line and flushed after each. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None
        self._lock = Lock()

    def append(self, record: dict[str, Any]) -> None:
        line = to_json(record) + "\n"
        with self._lock:
            if self._file is None:
                self._file = self._open()
            self._file.write(line)

    def close(self) -> None:
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _open(self) -> TextIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_torn = _ends_within_a_line(self.path)
        # Line buffered; a lone surrogate becomes its JSON escape instead of an error.
        file = self.path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
        if is_torn:  # a kill cut the last line: do not let the next one continue it
            file.write("\n")
        return file


def _ends_within_a_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


@final
class Once:
    """A table that is made once, by whichever thread wants it first; others wait for it then. None if that failed."""

    def __init__(self, make: Make, on_failure: Callable[[str, Exception], None], doing: str) -> None:
        self._make: Make | None = make
        self._on_failure, self._doing = on_failure, doing
        self._table: pa.Table | None = None
        self._lock = Lock()

    def __call__(self) -> pa.Table | None:
        with self._lock:
            make, self._make = self._make, None
            if make is not None:
                try:  # a boundary: whoever asks first, training or the writer, nobody's work ends here
                    self._table = make()
                except Exception as error:
                    self._on_failure(self._doing, error)
            return self._table


@final
class PartWriter:
    """Makes and writes Parquet parts in one background thread, so that training does not wait for either.

    A part may be submitted again under its path, as a better version of itself. The last one is what stays; one that is
    `early` is made at once and written only if no better one comes soon, or if that one cannot be made.

    `on_failure(doing, error)` is called in that thread. What is queued when Python exits is still written.
    """

    def __init__(self, on_failure: Callable[[str, Exception], None], patience: float = PATIENCE_SECONDS) -> None:
        self._on_failure = on_failure
        self._patience, self._is_stuck = patience, False
        self._slots = BoundedSemaphore(MAX_WAITING_PARTS)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gruppo-recorder")
        self._changed = Condition()
        self._num_calls = 0
        self._newest: dict[Path, int] = {}
        """The call that submitted the latest version of a part that is not written yet."""
        self._early: dict[Path, pa.Table] = {}
        """Versions that were passed over for a better one."""

    def submit(self, path: Path, make: Make, *, can_wait: bool = True, is_early: bool = False) -> Future[None] | None:
        """Queue the part that `make` gives. None if the disk is so far behind that it was dropped.

        `can_wait` False: drop it at once where the queue is full, rather than hold up the caller.
        """
        if not self._slots.acquire(timeout=self._patience if can_wait and not self._is_stuck else 0.0):
            self._is_stuck |= can_wait
            return None
        return self._thread.submit(self._write, path, make, self._call(path), is_early)

    def hurry(self) -> None:
        """Somebody waits: an early version shall wait for no better one."""
        self._call(None)

    def drain(self) -> None:
        """Wait until all that is queued is written."""
        self.hurry()
        self._thread.submit(int).result()

    def close(self) -> None:
        """Write what is queued, and end the thread."""
        self.hurry()
        self._thread.shutdown(wait=True)

    def _call(self, path: Path | None) -> int:
        with self._changed:
            self._num_calls += 1
            if path is not None:
                self._newest[path] = self._num_calls
            self._changed.notify()
            return self._num_calls

    def _write(self, path: Path, make: Make, call: int, is_early: bool) -> None:
        try:  # the thread's boundary: nobody would see an exception in here
            table = self._made(path, make)
            if is_early and table is not None and self._is_passed_over(path, call):
                self._early[path] = table
                return
            if table is not None:
                write_parquet(path, table)
            self._is_stuck = False
        except Exception as error:
            self._on_failure(f"writing {path.name}", error)
        finally:
            self._slots.release()
            with self._changed:
                if self._newest.get(path) == call:
                    del self._newest[path]

    def _made(self, path: Path, make: Make) -> pa.Table | None:
        early = self._early.pop(path, None)
        try:  # within that boundary: the earlier version is better than none
            table = make()
        except Exception as error:
            self._on_failure(f"writing {path.name}", error)
            table = None
        return early if table is None else table

    def _is_passed_over(self, path: Path, call: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._num_calls > call, timeout=EARLY_SECONDS)
            return self._newest[path] != call
