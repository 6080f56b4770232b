"""HealthMonitor: the checks while a run goes on. The trainer feeds it and carries out what it asks for.

    monitor = HealthMonitor(config.to_dict(), thresholds=..., actions={"ALERT": "checkpoint", "D22": "stop"})
    for finding in monitor.observe(step, metrics, rows): ...

It never breaks training: a check that fails is switched off with one warning. Main process only, with the rows of all
ranks. What it says is what `audit` says later about the same records.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, final, get_args

import pyarrow as pa

from gruppo.errors import ConfigError
from gruppo.monitor.health.finding import Action, Finding
from gruppo.monitor.health.record import Record, StepRecord, eval_record, step_record
from gruppo.monitor.health.rows import Rows
from gruppo.monitor.health.state import CheckError, HealthState, advance
from gruppo.monitor.health.table import DETECTORS, resolve_limits
from gruppo.monitor.health.tricks import check_patterns

logger = logging.getLogger(__name__)

ACTIONS: tuple[Action, ...] = get_args(Action)


@final
class HealthMonitor:
    """The checks of one training.

    Args:
        config: the resolved config; checks look up num_generations, beta, reward_weights, ...
        thresholds: see `table.resolve_limits`.
        actions: severity ("WARN", "ALERT") or detector id -> log, checkpoint, pause or stop; the id comes first. By
            default everything is logged only. An explanation (INFO) or a cleared alarm asks for nothing.
        history: records of earlier attempts that this one goes on from (`audit.read_records`), so that a resumed run
            has its baseline. Their findings were told then and are not told again.

    Raises ConfigError for unknown names and values.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        thresholds: Mapping[str, Any] | None = None,
        actions: Mapping[str, str] | None = None,
        history: Iterable[Record] = (),
    ) -> None:
        check_patterns(config.get("health_patterns") or ())
        self._actions = _checked_actions(actions or {})
        self.state = HealthState(config=config, limits=resolve_limits(thresholds))
        self._can_read_rows = True
        for record in history:
            self._advance(record)

    def observe(
        self, step: int, metrics: Mapping[str, Any], rows: Rows | pa.Table | Mapping[str, Any] | None = None
    ) -> list[Finding]:
        """One optimizer step: the metrics of its line, and the completions of the rounds that it used first.

        Args:
            step: optimizer steps done.
            metrics: as given to `Recorder.record_step`.
            rows: as rollouts/ has them, all ranks; None if no round began at this step.
        """
        return self._advance(self._record(step, metrics, rows))

    def observe_eval(self, step: int, split: str, metrics: Mapping[str, Any]) -> list[Finding]:
        """An evaluation, with the metrics as logged (`eval_reward`, ...) and its split (`eval`, `eval_<set>`)."""
        return self._advance(eval_record(step, split, metrics))

    def _record(
        self, step: int, metrics: Mapping[str, Any], rows: Rows | pa.Table | Mapping[str, Any] | None
    ) -> StepRecord:
        if self._can_read_rows and rows is not None:
            try:  # the boundary between rows, which hold whatever was sampled, and training
                return recorded(step, metrics, rows, self.state.config)
            except Exception as error:
                self._can_read_rows = False
                logger.warning("Health checks cannot read the completions and go on without: %r", error)
        return step_record(step, metrics)

    def _advance(self, record: Record) -> list[Finding]:
        while True:
            try:  # the boundary between checks and training
                self.state, findings = advance(self.state, record)
            except CheckError as error:
                logger.warning("%s and is switched off: %r", error, error.__cause__)
                limits = {name: limit for name, limit in self.state.limits.items() if name != error.detector}
                self.state = replace(self.state, limits=limits)
            else:
                return [replace(finding, action=self._action(finding)) for finding in findings]

    def _action(self, finding: Finding) -> Action:
        if finding.severity == "INFO":
            return "log"
        return self._actions.get(finding.detector, self._actions.get(finding.severity, "log"))


def recorded(
    step: int, metrics: Mapping[str, Any], rows: Rows | pa.Table | Mapping[str, Any], config: Mapping[str, Any]
) -> StepRecord:
    """The record of a step from its metrics line and its rows, in whatever form they come."""
    if isinstance(rows, pa.Table):
        rows = Rows(rows.to_pydict(), step)
    elif isinstance(rows, Mapping):
        rows = Rows(rows, step)
    return step_record(step, metrics, rows, reward_weights(config, rows), config.get("health_patterns") or ())


def reward_weights(config: Mapping[str, Any], rows: Rows) -> dict[str, float]:
    """Reward function -> weight, from `reward_weights` (a list in the order of the functions, or None)."""
    weights = config.get("reward_weights")
    if not weights or len(weights) != len(rows.reward_names):
        return {}
    return dict(zip(rows.reward_names, map(float, weights), strict=True))


def _checked_actions(actions: Mapping[str, str]) -> dict[str, Action]:
    problems = [
        f"health_actions has {name!r}; it must be WARN, ALERT or a check's id (D01 to D26)."
        for name in actions
        if name not in ("WARN", "ALERT") and name not in DETECTORS
    ]
    problems += [
        f"health_actions[{name!r}] is {action!r}; it must be one of {', '.join(ACTIONS)}."
        for name, action in actions.items()
        if action not in ACTIONS
    ]
    if problems:
        raise ConfigError(problems)
    return {name: known for name, action in actions.items() for known in ACTIONS if known == action}
