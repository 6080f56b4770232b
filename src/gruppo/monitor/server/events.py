"""events.jsonl of all ranks: the latest ones, those after a cursor, and the landmarks that every view needs."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection
from pathlib import Path
from threading import Lock
from typing import Any, final

from gruppo.monitor.server.folders import is_plain_file
from gruppo.monitor.server.lines import Line, fingerprint, open_plain, parse, read_last, read_new
from gruppo.monitor.server.refusal import bad_parameter

TAIL_BYTES = 512 * 2**10
MAX_BYTES_PER_CALL = 8 * 2**20
MAX_FILES = 256
"""Ranks whose events are read."""

_NAME = re.compile(r"events(?:-r(\d{1,6}))?\.jsonl")
_CURSOR = re.compile(r"(\d{1,6}:\d{1,15})(,\d{1,6}:\d{1,15})*")


def event_files(run: Path) -> dict[int, Path]:
    """Rank -> its events file."""
    found = {}
    for path in run.glob("events*.jsonl"):
        match = _NAME.fullmatch(path.name)
        if match and is_plain_file(path):
            found[int(match[1] or 0)] = path
    return dict(sorted(found.items())[:MAX_FILES])


def latest_events(run: Path, kinds: Collection[str], limit: int) -> dict[str, Any]:
    """The latest events by time, and a cursor for what comes after."""
    events: list[Line] = []
    offsets: dict[int, int] = {}
    for rank, path in event_files(run).items():
        offsets[rank] = _whole_size(path)
        events += [event | {"rank": rank} for event in read_last(path, TAIL_BYTES) if _is_wanted(event, kinds)]
    return {"cursor": _cursor(offsets), "reset": True, "complete": True, "events": by_time(events)[-limit:]}


def events_since(run: Path, cursor: str, kinds: Collection[str], limit: int) -> dict[str, Any]:
    """The events after a cursor (`start`: from the beginning), oldest first, about `limit` of them."""
    seen = _parse_cursor(cursor)
    files = event_files(run)
    if any(path.stat().st_size < seen.get(rank, 0) for rank, path in files.items()):
        return events_since(run, "start", kinds, limit) | {"reset": True}
    events: list[Line] = []
    offsets, complete = dict(seen), True
    for rank, path in files.items():
        offset = seen.get(rank, 0)
        chunk = read_new(path, offset, MAX_BYTES_PER_CALL)
        complete &= chunk.is_end
        offset = chunk.offset if not chunk.lines else offset
        for text, end in chunk.lines:
            if len(events) == limit:
                complete = False
                break
            offset = end
            event = parse(text)
            if event is not None and _is_wanted(event, kinds):
                events.append(event | {"rank": rank})
        offsets[rank] = offset
    return {"cursor": _cursor(offsets), "reset": False, "complete": complete, "events": by_time(events)}


def by_time(events: list[Line]) -> list[Line]:
    return sorted(events, key=_time)


@final
class Landmarks:
    """Findings, and how each attempt ended, of a whole run; followed by byte offset. Threads may share it."""

    MAX_FINDINGS = 5000

    def __init__(self, run: Path, max_bytes_per_call: int = MAX_BYTES_PER_CALL) -> None:
        self._run, self._max_bytes, self._lock = run, max_bytes_per_call, Lock()
        self._start()

    def refresh(self) -> bool:
        """Read what is new; True if that reached the end of all files."""
        with self._lock:
            complete = True
            for rank, path in event_files(self._run).items():
                now = fingerprint(path)
                if self._prints.get(rank, now) != now or path.stat().st_size < self._offsets.get(rank, 0):
                    self._start()
                if now == "0":
                    continue
                chunk = read_new(path, self._offsets.get(rank, 0), self._max_bytes)
                for text, _ in chunk.lines:
                    if b'"finding"' in text or b'"attempt_stop"' in text:  # most lines need no parsing
                        self._take(parse(text) or {})
                self._offsets[rank], self._prints[rank] = chunk.offset, now
                complete &= chunk.is_end
            return complete

    def findings(self) -> list[Line]:
        """By time, oldest first."""
        with self._lock:
            return by_time(list(self._findings))

    def outcomes(self) -> dict[int, str]:
        """attempt -> how it said it ended."""
        with self._lock:
            return dict(self._outcomes)

    def num_bytes(self) -> int:
        return 1000 + 1500 * len(self._findings)

    def _start(self) -> None:
        self._offsets: dict[int, int] = {}
        self._prints: dict[int, str] = {}
        self._findings: deque[Line] = deque(maxlen=self.MAX_FINDINGS)
        self._outcomes: dict[int, str] = {}

    def _take(self, event: Line) -> None:
        if event.get("kind") == "finding":
            self._findings.append(event)
        elif event.get("kind") == "attempt_stop" and isinstance(event.get("attempt"), int):
            self._outcomes[event["attempt"]] = str(event.get("outcome"))


def _is_wanted(event: Line, kinds: Collection[str]) -> bool:
    return not kinds or str(event.get("kind")) in kinds


def _time(event: Line) -> float:
    time = event.get("time")
    return float(time) if isinstance(time, (int, float)) else 0.0


def _whole_size(path: Path) -> int:
    """The offset after the last whole line."""
    size = path.stat().st_size
    start = max(0, size - TAIL_BYTES)
    with open_plain(path) as file:
        file.seek(start)
        return start + file.read(TAIL_BYTES).rfind(b"\n") + 1


def _cursor(offsets: dict[int, int]) -> str:
    return ",".join(f"{rank}:{offset}" for rank, offset in sorted(offsets.items())) or "start"


def _parse_cursor(cursor: str) -> dict[int, int]:
    if cursor == "start":
        return {}
    if _CURSOR.fullmatch(cursor) is None:
        raise bad_parameter("since", cursor[:100], "send the cursor of the answer before, or start")
    return {int(rank): int(offset) for rank, offset in (pair.split(":") for pair in cursor.split(","))}
