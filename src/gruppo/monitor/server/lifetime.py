"""How long a server lives that a trainer started: as long as the trainer, and then as long as somebody looks.

The trainer holds the other end of the server's standard input. However the trainer ends (kill -9 too), that end
closes; nothing needs to be told, and no process id can be mistaken for another's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import final

from starlette.types import ASGIApp, Receive, Scope, Send

PATIENCE_SECONDS = 600.0
"""After the trainer has ended: how long without a request until the server ends. An open page asks all the time."""

PERIOD_SECONDS = 5.0


@final
class Lifetime:
    """Counts requests, and says when it is time to go.

    Args:
        read: reads up to so many bytes of a stream that ends when the trainer does.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        *,
        patience: float = PATIENCE_SECONDS,
        period: float = PERIOD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._patience, self._period, self._clock = read, patience, period, clock
        self._num_open = 0
        self._last = clock()

    def counted(self, app: ASGIApp) -> ASGIApp:
        """The application, with its requests counted. A stream is one long request."""

        async def counting(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            self._num_open += 1
            try:
                await app(scope, receive, send)
            finally:
                self._num_open -= 1
                self._last = self._clock()

        return counting

    def is_over(self) -> bool:
        """Whether nobody has asked for long. To be called once the trainer has ended."""
        return self._num_open == 0 and self._clock() - self._last >= self._patience

    def watch(self, stop: Callable[[], None]) -> None:
        """Begin to watch, in a thread; `stop` is called when it is time."""
        threading.Thread(target=self._watch, args=(stop,), name="gruppo-lifetime", daemon=True).start()

    def _watch(self, stop: Callable[[], None]) -> None:
        while self._read(4096):
            pass  # nothing is said on it
        self._last = max(self._last, self._clock())
        while not self.is_over():
            time.sleep(self._period)
        stop()
