"""heartbeat.json: a word every few seconds that the trainer's process lives, and what it is at.

Written by a thread of its own, whole by rename, so that a long step still beats and a killed process stops. What the
beat means for "running, stalled, dead" is the reader's matter (server/status.py).
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import final

from gruppo.monitor.files import write_whole
from gruppo.monitor.schema import to_json

BEAT_SECONDS = 5.0

Look = Callable[[], tuple[int, str]]
"""Optimizer steps done, and the phase that runs."""


@final
class Heartbeat:
    """Beats at once and then every `BEAT_SECONDS` until `close`, which beats once more.

    Args:
        path: heartbeat.json.
        attempt: number of the attempt.
        look: asked before each beat.
        on_failure: told of a beat that could not be written; the next one is tried all the same.
    """

    def __init__(self, path: Path, attempt: int, look: Look, on_failure: Callable[[str, Exception], None]) -> None:
        self._path, self._attempt, self._look, self._on_failure = path, attempt, look, on_failure
        self._seen: tuple[int, str] | None = None
        self._changed = 0.0
        self._is_over = Event()
        self._beat()
        self._thread = Thread(target=self._run, name="gruppo-heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()
        self._beat()

    def _run(self) -> None:
        while not self._is_over.wait(BEAT_SECONDS):
            self._beat()

    def _beat(self) -> None:
        try:  # the thread's boundary
            now, seen = time.time(), self._look()
            if seen != self._seen:
                self._seen, self._changed = seen, now
            beat = {
                "time": now,
                "pid": os.getpid(),
                "host": platform.node(),
                "attempt": self._attempt,
                "step": seen[0],
                "phase": seen[1],
                "changed": self._changed,
            }
            write_whole(self._path, lambda temporary: temporary.write_text(to_json(beat) + "\n", encoding="utf-8"))
        except Exception as error:
            self._on_failure("writing heartbeat.json", error)
