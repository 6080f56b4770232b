"""Where the time of a step goes: wall seconds of each phase, and the live display told which one is running."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gruppo.metrics import Mean, Metric


class Clock:
    """`with clock.phase("generate"): ...` adds up seconds until `take` reads and resets them."""

    def __init__(self, on_phase: Callable[[str], None]) -> None:
        self._on_phase = on_phase
        self._seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._on_phase(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def restart(self) -> None:
        """Begin a step now: time spent since the last one (evaluation, saving) belongs to none."""
        self._last = time.perf_counter()
        self._seconds = {}

    def take(self, num_new_tokens: float) -> dict[str, Metric]:
        """step_time (TRL's name), time/<phase> in seconds, and the step's completion tokens per second."""
        seconds = time.perf_counter() - self._last
        values = {"step_time": seconds, **{f"time/{name}": spent for name, spent in self._seconds.items()}}
        if num_new_tokens:
            values["perf/tokens_per_second"] = num_new_tokens / seconds
        self._seconds = {}
        return {name: Mean.of([value]) for name, value in values.items()}
