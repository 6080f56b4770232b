"""Store: what the server knows of the runs below one folder. Everything in it can be forgotten and read again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, final

from gruppo.monitor.server.events import Landmarks
from gruppo.monitor.server.folders import RunFolder, find_runs, is_run
from gruppo.monitor.server.lru import Lru
from gruppo.monitor.server.metric_log import MAX_BYTES_PER_CALL, MetricLog
from gruppo.monitor.server.refusal import not_found
from gruppo.monitor.server.rounds import Rounds
from gruppo.monitor.server.status import Facts, Signature, Status, config_of, read_facts, signature, status_of

MAX_METRIC_BYTES = 256 * 2**20
"""Columns of all runs together. A run of 100,000 steps and 50 metrics takes 40 MiB."""

MAX_LANDMARK_BYTES = 32 * 2**20
MAX_FACT_BYTES = 64 * 2**20


@final
class Store:
    """Args:
    root: RUNS_DIR; a run itself, or a folder of them.
    clock: seconds since 1970.
    """

    def __init__(
        self,
        root: Path,
        *,
        clock: Callable[[], float] = time.time,
        max_metric_bytes: int = MAX_METRIC_BYTES,
        max_bytes_per_call: int = MAX_BYTES_PER_CALL,
        rounds: Rounds | None = None,
    ) -> None:
        self.root, self.now = root, clock
        self.rounds = rounds or Rounds()
        self._max_bytes_per_call = max_bytes_per_call
        self._logs: Lru[Path, MetricLog] = Lru(max_metric_bytes, lambda log: log.num_bytes())
        self._landmarks: Lru[Path, Landmarks] = Lru(MAX_LANDMARK_BYTES, lambda marks: marks.num_bytes())
        self._facts: Lru[tuple[Path, Signature], Facts] = Lru(MAX_FACT_BYTES, lambda facts: facts.num_bytes)
        self._runs: dict[str, RunFolder] = {}
        self._lock = Lock()

    def runs(self) -> list[RunFolder]:
        """All runs, searched anew."""
        found = find_runs(self.root)
        with self._lock:
            self._runs = {run.id: run for run in found}
        return found

    def run(self, run_id: str) -> RunFolder:
        """The run with this id.

        Raises:
            Refusal: there is none.
        """
        known = self._runs.get(run_id)
        if known is None or not is_run(known.path):
            self.runs()
            known = self._runs.get(run_id)
        if known is None:
            raise not_found(f"There is no run {run_id[:100]!r}.")
        return known

    def metrics(self, run: RunFolder) -> MetricLog:
        """The run's metrics, read up to now as far as one call may (`refresh` says whether that was all)."""
        return self._logs.get(run.path, lambda: MetricLog(run.path, self._max_bytes_per_call))

    def landmarks(self, run: RunFolder) -> Landmarks:
        return self._landmarks.get(run.path, lambda: Landmarks(run.path))

    def status(self, run: RunFolder) -> Status:
        """How the run is doing now. Files that did not change are not read again."""
        when = signature(run.path)
        facts = self._facts.get((run.path, when), lambda: read_facts(run.path))
        return status_of(facts, when, self.now())

    def config(self, run: RunFolder) -> dict[str, Any]:
        return config_of(self.status(run).run)

    @property
    def num_bytes(self) -> int:
        """Bytes of all caches."""
        return self._logs.num_bytes + self._landmarks.num_bytes + self._facts.num_bytes + self.rounds.num_bytes


def reward_weights(config: Mapping[str, Any], names: list[str]) -> list[float]:
    """The weight of each reward function; 1 where the config does not say."""
    given = config.get("reward_weights")
    is_told = isinstance(given, list) and len(given) == len(names) and all(isinstance(w, (int, float)) for w in given)
    return [float(weight) for weight in given] if is_told and isinstance(given, list) else [1.0] * len(names)
