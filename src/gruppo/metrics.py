"""Metric values that carry what they need to be combined rightly: a mean carries its sum and its count.

Why: the mean of two means is wrong as soon as the two parts differ in size (3 tokens of entropy 1.0 and 1 token
of entropy 0.0 are 0.75 together, not 0.5). So parts of a step, and ranks, hand on sums and counts, and the
division happens once, at the end.

`Stats` is what a phase of a step returns. It is not a logger: nothing here writes anywhere.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, Self


class Metric(Protocol):
    """A value that merges with another of its kind, in any order, and reads as a float (NaN if empty)."""

    def merge(self, other: Self) -> Self: ...
    def value(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Mean:
    """Σ x / count. `Mean.of([1, 2, nan])` leaves NaN out, as TRL's logging does."""

    total: float
    count: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Mean":
        kept = [float(v) for v in values if not math.isnan(v)]
        return cls(math.fsum(kept), len(kept))

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> float:
        return self.total / self.count if self.count else math.nan


@dataclass(frozen=True, slots=True)
class Sum:
    """Adds up: tokens, seconds."""

    total: float

    def merge(self, other: "Sum") -> "Sum":
        return Sum(self.total + other.total)

    def value(self) -> float:
        return self.total


@dataclass(frozen=True, slots=True)
class Max:
    """The largest seen; NaN is ignored unless there is nothing else."""

    largest: float

    def merge(self, other: "Max") -> "Max":
        return Max(_pick(max, self.largest, other.largest))

    def value(self) -> float:
        return self.largest


@dataclass(frozen=True, slots=True)
class Min:
    """The smallest seen; NaN is ignored unless there is nothing else."""

    smallest: float

    def merge(self, other: "Min") -> "Min":
        return Min(_pick(min, self.smallest, other.smallest))

    def value(self) -> float:
        return self.smallest


@dataclass(frozen=True, slots=True)
class Last:
    """The latest value: learning rate, epoch, cumulative token count."""

    latest: float

    def merge(self, other: "Last") -> "Last":
        return other

    def value(self) -> float:
        return self.latest


@dataclass(slots=True)
class Stats:
    """Named metrics of one phase, step or logging window. `add` merges by name.

    >>> stats = Stats({"entropy": Mean(3.0, 3)})
    >>> stats.add({"entropy": Mean(0.0, 1)})
    >>> stats.values()
    {'entropy': 0.75}
    """

    metrics: dict[str, Metric] = field(default_factory=dict)

    def add(self, more: "Stats | Mapping[str, Metric]") -> None:
        """Merge `more` into this. A name keeps its kind for the whole run; a change of kind is our bug."""
        for name, metric in (more.metrics if isinstance(more, Stats) else more).items():
            mine = self.metrics.get(name)
            assert mine is None or type(mine) is type(metric), f"{name}: {type(mine)} met {type(metric)}"
            self.metrics[name] = metric if mine is None else mine.merge(metric)

    def values(self) -> dict[str, float]:
        """Plain numbers, for a log line."""
        return {name: metric.value() for name, metric in self.metrics.items()}

    def clear(self) -> None:
        self.metrics.clear()


def _pick(choose, a: float, b: float) -> float:  # type: ignore[no-untyped-def]
    if math.isnan(a):
        return b
    return a if math.isnan(b) else choose(a, b)
