"""MetricLog: a run's metrics.jsonl, followed by byte offset. Each call reads what is new, a bounded number of bytes.

A cursor says which rows a client has: fingerprint of the file, epoch of the table, offset. It is made from the file
alone, so it outlives the server.
"""

from __future__ import annotations

import re
from pathlib import Path
from threading import Lock
from typing import Any, final

import numpy as np

from gruppo.monitor.server.buckets import Ints, bucketed
from gruppo.monitor.server.lines import fingerprint, parse_fast, read_new
from gruppo.monitor.server.metric_table import MetricTable, SplitTable
from gruppo.monitor.server.refusal import bad_parameter

MAX_BYTES_PER_CALL = 16 * 2**20
"""About half a second of parsing; the client asks again for the rest."""

FIRST_BYTES = 2**20
"""What the first call reads. Each later one may read twice as much as the one before: there is something to show soon,
and few calls read a long file."""

MAX_SERIES = 200

_CURSOR = re.compile(r"([0-9a-f]{1,8})-(\d{1,9})-(\d{1,15})")


@final
class MetricLog:
    """Threads may share it; each public method holds the lock."""

    def __init__(self, run: Path, max_bytes_per_call: int = MAX_BYTES_PER_CALL) -> None:
        self._path = run / "metrics.jsonl"
        self._max_bytes = max_bytes_per_call
        self._num_bytes = min(FIRST_BYTES, max_bytes_per_call)
        self._lock = Lock()
        self._print, self._offset, self._table = "0", 0, MetricTable()

    def refresh(self) -> bool:
        """Read what is new; True if that reached the end of the file."""
        with self._lock:
            return self._refresh()

    def answer(
        self,
        split: str,
        keys: list[str],
        *,
        cursor: str | None = None,
        max_points: int = 500,
        first: int | None = None,
        last: int | None = None,
    ) -> dict[str, Any]:
        """The rows after `cursor` within steps `first`..`last`, thinned; see docs/monitor-api.md."""
        seen = _parse_cursor(cursor)
        with self._lock:
            complete = self._refresh()
            is_reset = seen is None or seen[:2] != (self._print, self._table.epoch) or seen[2] > self._offset
            table = self._table.split(split)
            rows = self._rows(table, 0 if is_reset or seen is None else seen[2], first, last)
            names = table.names()
            series = {name: table.column(name)[rows] for name in chosen_names(names, keys)}
            answer = {
                "split": split,
                "reset": is_reset,
                "complete": complete,
                "cursor": f"{self._print}-{self._table.epoch}-{self._offset}",
                **bucketed(table.steps[rows], series, max_points),
                "attempts": _attempts(table),
            }
            return answer | ({"names": names} if is_reset else {})

    def split_series(self, split: str, keys: list[str], max_points: int) -> dict[str, Any]:
        """All rows of a split, thinned, without refreshing."""
        with self._lock:
            table = self._table.split(split)
            series = {name: table.column(name) for name in chosen_names(table.names(), keys)}
            return bucketed(table.steps, series, max_points)

    def splits(self) -> list[str]:
        with self._lock:
            return sorted(self._table.splits)

    def names(self, split: str = "train") -> list[str]:
        with self._lock:
            return self._table.split(split).names()

    def row(self, step: int | None = None, *, first: bool = False, split: str = "train") -> dict[str, Any] | None:
        """The row of a step; without one the last row (or the first)."""
        with self._lock:
            table = self._table.split(split)
            if step is not None:
                position = table.position(step)
                return None if position is None else table.row(position)
            return table.row(0 if first else -1) if len(table) else None

    def columns(self, names: list[str], split: str = "train") -> dict[str, Any]:
        """Copies of whole columns, and the steps under the name `step`."""
        with self._lock:
            table = self._table.split(split)
            return {"step": table.steps.copy()} | {name: table.column(name).copy() for name in names}

    def num_bytes(self) -> int:
        return self._table.num_bytes()

    def _refresh(self) -> bool:
        now = fingerprint(self._path)
        if now != self._print or (self._path.stat().st_size if self._path.exists() else 0) < self._offset:
            self._print, self._offset, self._table = now, 0, MetricTable()
        if now == "0":
            return True
        chunk = read_new(self._path, self._offset, self._num_bytes)
        self._num_bytes = min(2 * self._num_bytes, self._max_bytes)
        for text, offset in chunk.lines:
            line = parse_fast(text)
            if line is not None:
                self._table.add(line, offset)
        self._offset = chunk.offset
        return chunk.is_end

    @staticmethod
    def _rows(table: SplitTable, offset: int, first: int | None, last: int | None) -> Ints:
        len(table)  # settles the new rows
        kept = table.offsets > offset
        if first is not None:
            kept &= table.steps >= first
        if last is not None:
            kept &= table.steps <= last
        return np.flatnonzero(kept)


def chosen_names(names: list[str], keys: list[str]) -> list[str]:
    """The names that `keys` ask for (exact, or a prefix before a star), in the order of `keys`, at most MAX_SERIES."""
    chosen: dict[str, None] = {}
    for key in keys:
        if key.endswith("*"):
            chosen |= dict.fromkeys(name for name in names if name.startswith(key[:-1]))
        elif key in names:
            chosen[key] = None
    return list(chosen)[:MAX_SERIES]


def _attempts(table: SplitTable) -> list[dict[str, int]]:
    """Which steps each attempt contributed."""
    answer = []
    for attempt in np.unique(table.attempts):
        steps = table.steps[table.attempts == attempt]
        answer.append({"attempt": int(attempt), "first": int(steps.min()), "last": int(steps.max())})
    return answer


def _parse_cursor(cursor: str | None) -> tuple[str, int, int] | None:
    if cursor is None:
        return None
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise bad_parameter("cursor", cursor[:100], "send the cursor of the answer before, unchanged")
    return match[1], int(match[2]), int(match[3])
