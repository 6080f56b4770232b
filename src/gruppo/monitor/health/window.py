"""Window: everything a check may look at: the first steps of the run, the latest ones, evaluations, the config.

A check is a pure function of a Window and its limits. Rows are there for the latest step only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from gruppo.monitor.health.record import EvalRecord, StepRecord
from gruppo.monitor.health.rows import Rows
from gruppo.monitor.health.stats import Floats

NUM_BASELINE = 20
"""The first steps of a run: what "at the start" means."""

NUM_RECENT = 120
"""The latest steps that are kept."""


class Series(NamedTuple):
    """A metric over steps; steps that lack it are left out."""

    steps: Floats
    values: Floats

    def __len__(self) -> int:
        return len(self.values)


@final
class Window:
    """A view on the history of a run at its latest record."""

    def __init__(
        self,
        baseline: Sequence[StepRecord],
        recent: Sequence[StepRecord],
        evals: Sequence[EvalRecord] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.baseline, self.recent, self.evals = baseline, recent, evals
        self.config: Mapping[str, Any] = config or {}
        self._series: dict[str, Series] = {}

    @property
    def now(self) -> StepRecord:
        return self.recent[-1]

    @property
    def rows(self) -> Rows | None:
        """Completions of the latest step, if its round began there."""
        return self.recent[-1].rows if self.recent else None

    def value(self, name: str) -> float | None:
        """A metric of the latest step."""
        return self.recent[-1].metrics.get(name) if self.recent else None

    def series(self, name: str, last: int = NUM_RECENT) -> Series:
        """A metric over (at most) the last `last` steps that have it."""
        if name not in self._series:
            self._series[name] = _series(self.recent, name)
        steps, values = self._series[name]
        return Series(steps[-last:], values[-last:])

    def start(self, name: str) -> Floats:
        """A metric over the first steps of the run."""
        return _series(self.baseline, name).values

    def names(self, prefix: str) -> list[str]:
        """Metrics of the latest step whose name begins so, without the prefix."""
        return [name.removeprefix(prefix) for name in self.now.metrics if name.startswith(prefix)]

    def reward_names(self) -> list[str]:
        """Reward functions that report a mean at this step."""
        names = self.names("rewards/")
        return [name.removesuffix("/mean") for name in names if name.endswith("/mean")]

    def number(self, name: str) -> float | None:
        """A config field, if it is a number."""
        value = self.config.get(name)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _series(records: Sequence[StepRecord], name: str) -> Series:
    pairs = [(record.step, record.metrics[name]) for record in records if name in record.metrics]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return Series(table[:, 0], table[:, 1])
