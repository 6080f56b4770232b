"""The health checks of a live run: rows and metrics in, findings printed and recorded, actions out.

Joins the recorder's rows, `monitor.health` and the terminal. What the checks mean is in `monitor/health`; what is done
when one asks for a checkpoint or a stop is in `milestones.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from gruppo.monitor.health.audit import read_records
from gruppo.monitor.health.finding import Action, Finding
from gruppo.monitor.health.live import HealthMonitor

if TYPE_CHECKING:
    from gruppo.config import GRPOConfig
    from gruppo.distributed.world import World
    from gruppo.monitor.progress import Progress
    from gruppo.monitor.recorder import Recorder


class Watch:
    """One attempt's checks. They run on the main process; every rank calls every method."""

    def __init__(
        self, config: GRPOConfig, recorder: Recorder, display: Progress, world: World, start_step: int
    ) -> None:
        self._recorder, self._display, self._world = recorder, display, world
        self._rows: list[pa.Table] = []
        self._monitor: HealthMonitor | None = None
        if world.is_main:
            fields = config.to_dict()
            self._monitor = HealthMonitor(
                fields,
                thresholds=config.health_thresholds,
                actions=config.health_actions,
                history=read_records(config.output_dir, fields, start_step) if start_step else (),
            )

    def add_rows(self, table: pa.Table | None) -> None:
        """This rank's completions of a training round, as the recorder has them."""
        self._rows += self._world.gather_objects([] if table is None else [table])

    def end_step(self, step: int, metrics: Mapping[str, float]) -> set[Action]:
        """Check an optimizer step; what the findings ask for, the same on every rank."""
        rows = pa.concat_tables(self._rows, promote_options="permissive") if self._rows else None
        self._rows = []
        findings = [] if self._monitor is None else self._monitor.observe(step, metrics, rows)
        return self._tell(findings)

    def end_evaluation(self, step: int, split: str, metrics: Mapping[str, float]) -> set[Action]:
        findings = [] if self._monitor is None else self._monitor.observe_eval(step, split, metrics)
        return self._tell(findings)

    def _tell(self, findings: list[Finding]) -> set[Action]:
        for finding in findings:
            self._recorder.record_event("finding", **finding.as_dict())
            self._display.message(finding.text())
        return self._world.broadcast_object({finding.action for finding in findings})
