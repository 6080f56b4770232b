"""Lru: a dict that forgets what was not asked for lately, so that its values stay within a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar, final

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@final
class Lru(Generic[Key, Value]):
    """Threads may share it. A value larger than the budget is kept alone.

    Args:
        max_bytes: budget of all values together.
        weigh: bytes of a value; asked again whenever the value is used, as values may grow.
    """

    def __init__(self, max_bytes: int, weigh: Callable[[Value], int]) -> None:
        self._max_bytes, self._weigh = max_bytes, weigh
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._weights: dict[Key, int] = {}
        self._total = 0
        self._lock = Lock()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of `key`, made if it is not there. `make` runs without the lock: two threads may both make it."""
        with self._lock:
            if key in self._values:
                return self._use(key)
        made = make()
        with self._lock:
            self._values.setdefault(key, made)
            return self._use(key)

    @property
    def num_bytes(self) -> int:
        return self._total

    def __len__(self) -> int:
        return len(self._values)

    def _use(self, key: Key) -> Value:
        value = self._values[key]
        weight = self._weigh(value)
        self._total += weight - self._weights.get(key, 0)
        self._weights[key] = weight
        self._values.move_to_end(key)
        while self._total > self._max_bytes and len(self._values) > 1:
            oldest, _ = self._values.popitem(last=False)
            self._total -= self._weights.pop(oldest)
        return value
