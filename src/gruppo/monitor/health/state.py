"""From one reading per check and step to findings: a pure fold over the records of a run.

    state, findings = advance(state, record)

A check fires when enough of its latest readings are bad (`Detector.fire`, 3 of 5 as a rule; urgent ones at once), says
so once, and goes back when 5 readings in a row are better. A record that a check cannot read leaves its state alone.
What is explained once (INFO) is not said again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gruppo.monitor.health.detector import Detector, Limits
from gruppo.monitor.health.finding import RANKS, SEVERITIES, Finding, Level, Missing, Reading
from gruppo.monitor.health.record import EvalRecord, Record, StepRecord
from gruppo.monitor.health.table import DETECTORS, resolve_limits
from gruppo.monitor.health.window import NUM_BASELINE, NUM_RECENT, Window

NUM_TO_CLEAR = 5
"""Better readings in a row that clear an alarm."""

MAX_EVALS = 500

_LOUD: tuple[Level, ...] = ("alert", "warn", "info")


@dataclass(frozen=True, slots=True)
class CheckState:
    """Where one check stands."""

    level: Level = "na"
    reason: str = "nothing was recorded yet"
    """Why there is no verdict; empty if there is one."""
    since: int = 0
    """Step of the last change of level."""
    worst: Level = "na"
    """The worst level ever."""
    told: Level = "ok"
    """The worst level since it was last ok: no onset is reported twice."""
    value: float = float("nan")
    threshold: float = float("nan")
    latest: tuple[Level, ...] = ()
    """The last readings, oldest first."""


@dataclass(frozen=True, slots=True)
class HealthState:
    """All that the fold remembers. Its size does not grow with the run."""

    config: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Limits] = field(default_factory=resolve_limits)
    """Thresholds of the checks that are on."""
    baseline: tuple[StepRecord, ...] = ()
    recent: tuple[StepRecord, ...] = ()
    evals: tuple[EvalRecord, ...] = ()
    checks: Mapping[str, CheckState] = field(default_factory=dict)


class CheckError(Exception):
    """A check raised: our own mistake. `detector` is its id."""

    def __init__(self, detector: str) -> None:
        self.detector = detector
        super().__init__(f"health check {detector} failed")


def advance(state: HealthState, record: Record) -> tuple[HealthState, list[Finding]]:
    """The state after one more record, and the news. Raises CheckError if a check does."""
    state = _remembering(state, record)
    window = Window(state.baseline, state.recent, state.evals, state.config)
    checks, findings = dict(state.checks), []
    is_eval = isinstance(record, EvalRecord)
    for name, limits in state.limits.items():
        detector = DETECTORS[name]
        if (detector.needs[0] == "evals") != is_eval:
            continue
        reading = _read(detector, window, limits)
        before = checks.get(name, CheckState())
        after = checks[name] = _judged(before, reading, detector, record.step)
        finding = _news(before, after, reading, detector, record.step)
        findings += [] if finding is None else [finding]
    return replace(state, checks=checks), findings


def _remembering(state: HealthState, record: Record) -> HealthState:
    """The history with the record in it; a step that is done again (after a resume) replaces what came later."""
    if isinstance(record, EvalRecord):
        kept = [old for old in state.evals if (old.step, old.split) != (record.step, record.split)]
        return replace(state, evals=(*kept, record)[-MAX_EVALS:])
    baseline = tuple(old for old in state.baseline if old.step < record.step)
    if len(baseline) < NUM_BASELINE:
        baseline = (*baseline, record.without_rows())
    earlier = [old for old in state.recent if old.step < record.step]
    earlier[-1:] = [old.without_rows() for old in earlier[-1:]]
    evals = tuple(old for old in state.evals if old.step < record.step)
    return replace(state, baseline=baseline, recent=(*earlier, record)[-NUM_RECENT:], evals=evals)


def _read(detector: Detector, window: Window, limits: Limits) -> Reading | Missing:
    try:  # the boundary that gives a failing check its name
        return detector.check(window, limits)
    except Exception as error:
        raise CheckError(detector.id) from error


def _judged(state: CheckState, reading: Reading | Missing, detector: Detector, step: int) -> CheckState:
    """The check's state after a reading."""
    if isinstance(reading, Missing):
        level: Level = "insufficient" if reading.is_temporary else "na"
        # A step without new completions has nothing to say about a check that has been heard before.
        return state if state.latest else replace(state, level=level, worst=level, reason=reading.reason)
    latest = (*state.latest, reading.level)[-max(NUM_TO_CLEAR, detector.fire[1]) :]
    level = _level(state.level, latest, reading, detector)
    return CheckState(
        level=level,
        reason="",
        since=state.since if level == state.level else step,
        worst=max(state.worst, level, key=lambda name: RANKS[name]),
        told=level if level == "ok" else max(state.told, level, key=lambda name: RANKS[name]),
        value=reading.value,
        threshold=reading.threshold,
        latest=latest,
    )


def _level(current: Level, latest: tuple[Level, ...], reading: Reading, detector: Detector) -> Level:
    needed, of = detector.fire
    reached: Level = "ok"
    for level in _LOUD:
        num_as_bad = sum(RANKS[old] >= RANKS[level] for old in latest[-of:])
        if num_as_bad >= needed or (reading.is_urgent and RANKS[reading.level] >= RANKS[level]):
            reached = level
            break
    if RANKS[reached] >= RANKS[current]:
        return reached
    is_better = len(latest) >= NUM_TO_CLEAR and all(RANKS[old] < RANKS[current] for old in latest[-NUM_TO_CLEAR:])
    return reached if is_better and current != "info" else current


def _news(
    before: CheckState, after: CheckState, reading: Reading | Missing, detector: Detector, step: int
) -> Finding | None:
    """A finding where the check got worse, or went back to ok."""
    if isinstance(reading, Missing) or after.level == before.level:
        return None
    finding = Finding(
        detector=detector.id,
        name=detector.name,
        severity="INFO",
        step=step,
        value=reading.value,
        threshold=reading.threshold,
        message=reading.message,
        docs=detector.docs,
    )
    if after.level in SEVERITIES and RANKS[after.level] > RANKS[before.told]:
        severity = SEVERITIES[after.level]
        return replace(finding, severity=severity, advice=reading.advice, evidence=reading.evidence)
    if after.level == "ok" and before.level in SEVERITIES:
        message = f"back to normal; it was {SEVERITIES[before.told]}"
        return replace(finding, message=message, is_cleared=True)
    return None
