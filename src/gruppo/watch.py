"""The health checks of a live run: rows and metrics in, findings printed, recorded and sent to trackers, actions out.

Joins the recorder's rows, `monitor.health`, the terminal and the trackers. What the checks mean is in
`monitor/health`; what is done when one asks for a checkpoint or a stop is in `milestones.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from gruppo.monitor.alerts import Alerts, health_values
from gruppo.monitor.health.audit import read_records
from gruppo.monitor.health.finding import Action, Finding
from gruppo.monitor.health.live import HealthMonitor
from gruppo.monitor.readers import joined

if TYPE_CHECKING:
    from gruppo.config import GRPOConfig
    from gruppo.distributed.world import World
    from gruppo.monitor.progress import Progress
    from gruppo.monitor.recorder import Recorder

logger = logging.getLogger(__name__)


class Watch:
    """One attempt's checks. They run on the main process; every rank calls every method."""

    def __init__(
        self, config: GRPOConfig, recorder: Recorder, display: Progress, world: World, start_step: int
    ) -> None:
        self._recorder, self._display, self._world = recorder, display, world
        self._rounds: list[Callable[[], pa.Table | None]] = []
        self._has_warned = False
        self._monitor: HealthMonitor | None = None
        self._alerts = Alerts(config.report_to)
        self.values: dict[str, float] = health_values({})
        """How many checks stand at which level, for log lines; the same on every rank."""
        if world.is_main:
            fields = config.to_dict()
            self._monitor = HealthMonitor(
                fields,
                thresholds=config.health_thresholds,
                actions=config.health_actions,
                history=read_records(config.output_dir, fields, start_step) if start_step else (),
            )

    def add_rows(self, table_of_rows: Callable[[], pa.Table | None]) -> None:
        """This rank's completions of a training round, as the recorder has (or will have) them."""
        self._rounds.append(table_of_rows)

    def end_step(self, step: int, metrics: Mapping[str, float]) -> set[Action]:
        """Check an optimizer step; what the findings ask for, the same on every rank."""
        found = [table for table_of_rows in self._rounds if (table := table_of_rows()) is not None]
        self._rounds = []
        found = self._world.gather_objects(found)
        findings = [] if self._monitor is None else self._monitor.observe(step, metrics, self._rows(found))
        return self._tell(findings)

    def _rows(self, tables: list[pa.Table]) -> pa.Table | None:
        """All rows of a step; None if there are none, or if they do not fit together."""
        if not tables:
            return None
        try:  # the boundary between checks and training
            return joined(tables)
        except pa.ArrowException as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning("Health checks go on without the completions of a step: %r", error)
            return None

    def end_evaluation(self, step: int, split: str, metrics: Mapping[str, float]) -> set[Action]:
        findings = [] if self._monitor is None else self._monitor.observe_eval(step, split, metrics)
        return self._tell(findings)

    def _tell(self, findings: list[Finding]) -> set[Action]:
        for finding in findings:
            self._recorder.record_event("finding", **finding.as_dict())
            self._display.message(finding.text())
            self._alerts.send(finding)
        values = {} if self._monitor is None else health_values(self._monitor.state.checks)
        self.values, actions = self._world.broadcast_object((values, {finding.action for finding in findings}))
        return actions
