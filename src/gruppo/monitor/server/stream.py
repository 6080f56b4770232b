"""Server-sent events: a word whenever a run wrote something, a beat while it does not. No data of the run goes here."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, final

import anyio
import anyio.to_thread

from gruppo.monitor.server.events import event_files
from gruppo.monitor.server.folders import RunFolder
from gruppo.monitor.server.lines import fingerprint
from gruppo.monitor.server.refusal import Refusal
from gruppo.monitor.server.store import Store

MAX_STREAMS = 32
LOOK_SECONDS = 1.0
BEAT_SECONDS = 15.0
MAX_SECONDS = 600.0
"""After this the client connects anew: a stream that nobody reads does not live for ever."""


def marks(store: Store, run: RunFolder) -> dict[str, Any]:
    """A few words that change when the run writes: what a client compares with those before."""
    metrics = run.path / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.exists() else 0
    steps = {kind: store.rounds.steps(run.path, kind) for kind in ("rollouts", "tokens")}
    return {
        "metrics": f"{fingerprint(metrics)}-{size}",
        "events": str(sum(path.stat().st_size for path in event_files(run.path).values())),
        **{kind: int(found[-1]) if len(found) else None for kind, found in steps.items()},
        "state": store.status(run).state,
    }


@final
class Streams:
    """The open streams of the server. `sleep` and `clock` are there for tests."""

    def __init__(
        self,
        store: Store,
        *,
        sleep: Callable[[float], Any] = anyio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._sleep, self._clock = store, sleep, clock
        self._num_open = 0
        self.is_closing: Callable[[], bool] = lambda: False
        """Asked between looks; set by the process that ends."""

    def open(self, run: RunFolder) -> AsyncIterator[bytes]:
        """A stream for one run.

        Raises:
            Refusal: there are too many.
        """
        if self._num_open >= MAX_STREAMS:
            raise Refusal(503, "busy", f"{MAX_STREAMS} streams are open; poll instead.")
        return self._events(run)

    async def _events(self, run: RunFolder) -> AsyncIterator[bytes]:
        self._num_open += 1
        try:
            started = beaten = self._clock()
            before: dict[str, Any] | None = None
            while not self.is_closing() and self._clock() - started < MAX_SECONDS:
                now = await anyio.to_thread.run_sync(self._look, run, before)
                if now != before:
                    yield f"event: change\ndata: {json.dumps(now)}\n\n".encode()
                    before, beaten = now, self._clock()
                elif self._clock() - beaten >= BEAT_SECONDS:
                    yield b": beat\n\n"
                    beaten = self._clock()
                await self._sleep(LOOK_SECONDS)
        finally:
            self._num_open -= 1

    def _look(self, run: RunFolder, before: dict[str, Any] | None) -> dict[str, Any] | None:
        try:  # the boundary to a folder that may be deleted or moved at any moment
            return marks(self._store, run)
        except OSError:
            return before
