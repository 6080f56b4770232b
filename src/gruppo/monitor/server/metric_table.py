"""MetricTable: the lines of metrics.jsonl that count, in columns, fed line by line.

It follows the readers' rule (see readers.py): a line replaces the earlier line of its step and split; a training line
also takes away every line of earlier attempts at its step or later. It reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, TypeGuard, final

import numpy as np

from gruppo.monitor.server.buckets import Floats, Ints

NOT_METRICS = frozenset({"step", "split", "attempt", "nonfinite"})
MAX_NAMES = 2000
"""Metrics per split; more are not kept."""


@final
class SplitTable:
    """The rows of one split, by step. `offsets`: where in the file the line of each row ends."""

    def __init__(self) -> None:
        self.steps: Ints = np.zeros(0, np.int64)
        self.attempts: Ints = np.zeros(0, np.int64)
        self.offsets: Ints = np.zeros(0, np.int64)
        self._columns: dict[str, Floats] = {}
        self._new: list[tuple[Mapping[str, Any], int]] = []
        self._last_step = -1

    def append(self, line: Mapping[str, Any], offset: int) -> bool:
        """Add a row; False if it did not go to the end (it replaced a row, or came late)."""
        self._new.append((line, offset))
        if line["step"] > self._last_step:
            self._last_step = line["step"]
            return True
        self._settle()
        order = np.argsort(self.steps, kind="stable")
        newest = np.append(self.steps[order][1:] != self.steps[order][:-1], True)  # of equal steps the later line
        self._keep(order[newest])
        return False

    def drop(self, first: int, attempt: int) -> bool:
        """Take away rows at step `first` or later of other attempts; False if there were none."""
        self._settle()
        kept = (self.steps < first) | (self.attempts == attempt)
        if kept.all():
            return False
        self._keep(np.flatnonzero(kept))
        return True

    def names(self) -> list[str]:
        self._settle()
        return sorted(self._columns)

    def column(self, name: str) -> Floats:
        """The values of a metric, NaN where a row has none."""
        self._settle()
        known = self._columns.get(name)
        return np.full(len(self.steps), np.nan) if known is None else known

    def row(self, position: int) -> dict[str, Any]:
        """One row as a line: step, attempt, and the metrics that it has."""
        self._settle()
        values = {name: float(column[position]) for name, column in self._columns.items()}
        known = {name: values[name] for name in sorted(values) if np.isfinite(values[name])}
        return {"step": int(self.steps[position]), "attempt": int(self.attempts[position])} | known

    def position(self, step: int) -> int | None:
        """The row of a step."""
        self._settle()
        found = int(np.searchsorted(self.steps, step))
        return found if found < len(self.steps) and self.steps[found] == step else None

    def num_bytes(self) -> int:
        return (len(self._columns) + 3) * 8 * len(self.steps)

    def __len__(self) -> int:
        self._settle()
        return len(self.steps)

    def _settle(self) -> None:
        """Move new lines into the columns, many at a time."""
        if not self._new:
            return
        lines = [line for line, _ in self._new]
        num_old = len(self.steps)
        self.steps = np.append(self.steps, [line["step"] for line in lines])
        self.attempts = np.append(self.attempts, [line["attempt"] for line in lines])
        self.offsets = np.append(self.offsets, [offset for _, offset in self._new])
        names = [name for name in dict.fromkeys(chain.from_iterable(lines)) if name not in NOT_METRICS]
        for name in [*self._columns, *(name for name in names if name not in self._columns)][:MAX_NAMES]:
            old = self._columns.get(name)
            old = np.full(num_old, np.nan) if old is None else old
            self._columns[name] = np.append(old, _floats([line.get(name) for line in lines]))
        self._new = []

    def _keep(self, rows: Ints) -> None:
        self.steps, self.attempts, self.offsets = self.steps[rows], self.attempts[rows], self.offsets[rows]
        self._columns = {name: column[rows] for name, column in self._columns.items()}
        self._last_step = int(self.steps[-1]) if len(self.steps) else -1


@final
class MetricTable:
    """All splits of a run. `epoch` counts how often a row was taken back or put in between: who has seen the rows of
    an epoch needs only later ones as long as the epoch stays."""

    def __init__(self) -> None:
        self.splits: dict[str, SplitTable] = {}
        self.epoch = 0
        self._last_steps: dict[int, int] = {}  # attempt -> largest step seen, over all splits

    def add(self, line: Mapping[str, Any], offset: int) -> None:
        """A line that ends at `offset` of the file. What is not a metrics line is passed over."""
        step, split, attempt = line.get("step"), line.get("split"), line.get("attempt")
        if not (_is_count(step) and _is_count(attempt) and isinstance(split, str)):
            return
        if split == "train" and any(a != attempt and last >= step for a, last in self._last_steps.items()):
            dropped = [table.drop(step, attempt) for table in self.splits.values()]
            self.epoch += any(dropped)
            self._last_steps = {
                a: last if a == attempt else min(last, step - 1) for a, last in self._last_steps.items()
            }
        if split not in self.splits:
            self.splits[split] = SplitTable()
        table = self.splits[split]
        self.epoch += not table.append(line, offset)
        self._last_steps[attempt] = max(step, self._last_steps.get(attempt, -1))

    def split(self, name: str) -> SplitTable:
        """The rows of a split; none if nothing was recorded under this name."""
        return self.splits.get(name) or SplitTable()

    def num_bytes(self) -> int:
        return sum(table.num_bytes() for table in list(self.splits.values()))  # a copy: other threads add splits


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _floats(values: list[Any]) -> Floats:
    is_simple = {float, type(None)}.issuperset(map(type, values))
    column = np.array(values if is_simple else [_float(value) for value in values], dtype=np.float64)
    column[~np.isfinite(column)] = np.nan
    return column


def _float(value: Any) -> float:
    if type(value) is float:
        return value
    if isinstance(value, int) and abs(value) < 2**1023:
        return float(value)
    return float("nan")
