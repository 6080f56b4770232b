"""Calling reward functions: in order, together on an event loop, and with a deadline. Failures come back as data.

Without a timeout, synchronous functions run on the caller's thread. With one, each runs on a thread of its own, and
a call that misses its deadline is abandoned: Python cannot stop a thread, so it goes on unheard in the background.
Such functions cannot use signals, and must choose their CUDA device themselves.

This is the boundary where foreign exceptions are caught. It is not a sandbox: functions run in this process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Outcome:
    """What came of one call: a value, or an error, or neither because the deadline passed."""

    value: Any = None
    error: BaseException | None = None
    has_timed_out: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Call:
    """A function and its keyword arguments."""

    function: Callable[..., Any]
    keywords: Mapping[str, Any]


def run_sync(call: Call, timeout: float | None) -> Outcome:
    """Call a synchronous function, on this thread, or with a deadline on another one."""
    outcome = Outcome()

    def work() -> None:
        with _recording(outcome):
            outcome.value = call.function(**call.keywords)

    if timeout is None:
        work()
        return outcome
    thread = threading.Thread(target=work, daemon=True, name="gruppo-reward")
    thread.start()
    thread.join(timeout)
    return _timed_out(timeout) if thread.is_alive() else outcome


class AsyncCaller:
    """Runs async functions together, on one event loop in a thread that lives until `close`.

    One loop for the whole life, because HTTP clients and the like belong to the loop they first ran on.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="gruppo-async-rewards")
        self._thread.start()
        self._finalizer = weakref.finalize(self, _stop, self._loop, self._thread)

    def run(self, calls: list[Call], timeout: float | None) -> list[Outcome]:
        """Start all calls, wait for all of them (or for the deadline, which cancels the rest)."""
        futures = [asyncio.run_coroutine_threadsafe(_run_async(call), self._loop) for call in calls]
        try:
            done, _ = concurrent.futures.wait(futures, timeout)
        finally:
            for future in futures:
                future.cancel()
        return [future.result() if future in done else _timed_out(timeout) for future in futures]

    def close(self) -> None:
        """Cancel what still runs and end the thread. Calling it twice does nothing."""
        self._finalizer()


async def _run_async(call: Call) -> Outcome:
    outcome = Outcome()
    with _recording(outcome):
        outcome.value = await call.function(**call.keywords)
    return outcome


@contextmanager
def _recording(outcome: Outcome) -> Iterator[None]:
    """The boundary: any exception becomes data. `sys.exit` in a reward must not look like a finished run, nor a
    cancelled request of its own like one that the scorer gave up."""
    start = time.perf_counter()
    try:
        yield
    except (Exception, SystemExit, asyncio.CancelledError) as error:
        outcome.error = error
    finally:
        outcome.seconds = time.perf_counter() - start


def _timed_out(timeout: float | None) -> Outcome:
    assert timeout is not None
    return Outcome(has_timed_out=True, seconds=timeout)


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    async def cancel_all() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        loop.stop()

    asyncio.run_coroutine_threadsafe(cancel_all(), loop)
    if thread is not threading.current_thread():  # the collector may run on the loop's own thread
        thread.join(timeout=5)
    if not thread.is_alive():
        loop.close()
