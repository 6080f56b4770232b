"""Everything that a report says about a run, read from its folder. No HTML here, nothing is drawn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from gruppo.config import FIELD_GROUPS, field_default
from gruppo.config_coerce import plain
from gruppo.errors import DataError
from gruppo.monitor.health.audit import audit
from gruppo.monitor.readers import read_events, read_metrics
from gruppo.monitor.report.curves import Chart, charts_of
from gruppo.monitor.report.numbers import Line, Number, headline, number, values_of
from gruppo.monitor.report.samples import Extremes, last_extremes
from gruppo.monitor.server.findings import detectors_of, standing
from gruppo.monitor.server.status import Status, config_of, latest_attempt, read_facts, signature, status_of
from gruppo.monitor.server.verdict import verdict

NUM_PHASE_STEPS = 50
"""The latest steps that the phases are a mean of."""

ABSENT = object()


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that is not at its default. `default` is ABSENT for what GRPOConfig has no field for."""

    name: str
    value: Any
    default: Any = ABSENT


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase's mean seconds per step, and its share of the step."""

    name: str
    seconds: float
    share: float | None


@dataclass(frozen=True, slots=True)
class Evaluations:
    """One split's evaluations: the metrics that have values, and a row for each evaluation, oldest first."""

    split: str
    names: tuple[str, ...]
    rows: tuple[tuple[int, tuple[float | None, ...]], ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """A whole report. `made` is when it was read, in seconds since 1970."""

    name: str
    made: float
    status: Status
    verdict: Mapping[str, Any]
    numbers: Sequence[Number]
    settings: Sequence[Setting]
    plan: Sequence[str]
    device: Mapping[str, Any]
    versions: Mapping[str, Any]
    charts: Sequence[Chart]
    findings: Sequence[Line]
    findings_source: str
    phases: Sequence[Phase]
    evaluations: Sequence[Evaluations]
    samples: Extremes | None


def read_contents(run: Path) -> Contents:
    """Read a run: finished, crashed or still going. Raises DataError if the folder holds none."""
    lines = read_lines_of(run)
    now = time.time()
    status = status_of(read_facts(run), signature(run), now)
    findings, source = _findings(run, status)
    attempt = latest_attempt(status.run)
    plan, device, versions = attempt.get("plan"), attempt.get("device"), attempt.get("versions")
    return Contents(
        name=run.resolve().name,
        made=now,
        status=status,
        verdict=_verdict(lines, findings, status, now),
        numbers=headline(lines),
        settings=changed_settings(config_of(status.run)),
        plan=plan if isinstance(plan, list) else [],
        device=device if isinstance(device, dict) else {},
        versions=versions if isinstance(versions, dict) else {},
        charts=charts_of(lines),
        findings=findings,
        findings_source=source,
        phases=phases_of([line for line in lines if line["split"] == "train"]),
        evaluations=evaluations_of(lines),
        samples=last_extremes(run),
    )


def read_lines_of(run: Path) -> list[dict[str, Any]]:
    """The lines that count, of all splits, by step. Raises DataError if the folder holds no run."""
    if not (run / "metrics.jsonl").exists():
        raise DataError(f"{str(run)!r} holds no run: there is no metrics.jsonl in it. Give a run's output_dir.")
    return read_metrics(run, split=None)


def changed_settings(config: Mapping[str, Any]) -> list[Setting]:
    """The settings that differ from GRPOConfig's defaults, by name."""
    changed = []
    for name in sorted(config):
        default = plain(field_default(name)) if name in FIELD_GROUPS else ABSENT
        if config[name] != default:
            changed.append(Setting(name, config[name], default))
    return changed


def phases_of(training: Sequence[Line]) -> list[Phase]:
    """The phases of the latest steps, longest first; what no phase covers is `other`."""
    latest = training[-NUM_PHASE_STEPS:]
    names = sorted({name for line in latest for name in line if name.startswith("time/")})
    totals = {name.removeprefix("time/"): sum(value for _, value in values_of(latest, name)) for name in names}
    whole = [value for _, value in values_of(latest, "step_time")]
    if not totals or not latest:
        return []
    if (rest := sum(whole) - sum(totals.values())) > 0.001 * sum(whole):
        totals["other"] = rest
    step = fmean(whole) if whole else None
    means = {name: total / len(latest) for name, total in totals.items()}
    ordered = sorted(means.items(), key=lambda entry: -entry[1])
    return [Phase(name, seconds, seconds / step if step else None) for name, seconds in ordered]


def evaluations_of(lines: Sequence[Line]) -> list[Evaluations]:
    """One entry per split that is not training."""
    found = []
    for split in sorted({str(line["split"]) for line in lines} - {"train"}):
        mine = [line for line in lines if line["split"] == split]
        prefix = f"{split}_"
        keys = {key for line in mine for key in line if key.startswith(prefix) and number(line[key]) is not None}
        names = sorted(keys, key=lambda key: (key != f"{prefix}reward", key))
        rows = tuple((line["step"], tuple(number(line.get(name)) for name in names)) for line in mine)
        found.append(Evaluations(split, tuple(name.removeprefix(prefix) for name in names), rows))
    return found


def _findings(run: Path, status: Status) -> tuple[list[Line], str]:
    """What the run itself reported; if it reported nothing, what an audit of its files says. Oldest first."""
    events = [event for event in read_events(run) if event.get("kind") == "finding"]
    reported = standing(events, status.run["attempts"])
    if reported:
        return list(reported), "As the run reported them."
    return [finding.as_dict() for finding in audit(run).findings], "From the checks of `gruppo audit` on its files."


def _verdict(lines: Sequence[Line], findings: Sequence[Line], status: Status, now: float) -> dict[str, Any]:
    training = [line for line in lines if line["split"] == "train"]
    names = ("reward", "frac_reward_zero_std", "groups/frac_solved")
    columns = {name: np.array([_or_nan(line.get(name)) for line in training], dtype=np.float64) for name in names}
    evals = np.array([_or_nan(line.get("eval_reward")) for line in lines if line["split"] == "eval"], dtype=np.float64)
    loud = [
        entry
        for entry in detectors_of([dict(finding) for finding in findings])
        if entry["is_open"] and entry["severity"] != "INFO"
    ]
    age = None if status.updated is None else now - status.updated
    return verdict(columns, evals, loud, status.state, outcome=status.outcome, age=age)


def _or_nan(value: object) -> float:
    known = number(value)
    return float("nan") if known is None else known
