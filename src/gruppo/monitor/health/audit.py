"""Audit: the checks on the files of a run, finished, crashed or still going. The same fold as live.

It reads metrics.jsonl, run.json and one step of rollouts/ at a time, so its memory does not grow with the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gruppo.errors import DataError, boundary
from gruppo.monitor.decisive import decisive_attempt
from gruppo.monitor.health.finding import Finding
from gruppo.monitor.health.live import recorded
from gruppo.monitor.health.record import Record, eval_record
from gruppo.monitor.health.state import CheckState, HealthState, advance
from gruppo.monitor.health.table import resolve_limits
from gruppo.monitor.health.tricks import check_patterns
from gruppo.monitor.readers import each_metrics, read_rollouts

_UNHEARD = "needs records that this run does not have yet (steps, or evaluations)"


@dataclass(frozen=True, slots=True)
class Audit:
    """What the checks say about a run."""

    run: Path
    num_steps: int
    findings: tuple[Finding, ...]
    checks: Mapping[str, CheckState]
    """Check id -> where it stands after the last record; `worst` is the worst that it ever was."""

    @property
    def has_alert(self) -> bool:
        return any(finding.severity == "ALERT" for finding in self.findings)


def audit(run: str | Path, thresholds: Mapping[str, Any] | None = None) -> Audit:
    """Run all checks over a run's folder.

    Args:
        run: the run's `output_dir`.
        thresholds: see `table.resolve_limits`; None takes the config's `health_thresholds`.

    Raises DataError if there is no run, ConfigError for thresholds that cannot be.
    """
    folder = Path(run)
    config = read_config(folder)
    check_patterns(config.get("health_patterns") or ())
    wanted = config.get("health_thresholds") if thresholds is None else thresholds
    state = HealthState(config=config, limits=resolve_limits(wanted))
    findings: list[Finding] = []
    num_steps = 0
    for record in read_records(folder, config):
        state, news = advance(state, record)
        findings += news
        num_steps = max(num_steps, record.step)
    checks = {name: state.checks.get(name, CheckState(reason=_UNHEARD)) for name in sorted(state.limits)}
    return Audit(folder, num_steps, tuple(findings), checks)


def read_records(run: str | Path, config: Mapping[str, Any], before_step: int | None = None) -> Iterator[Record]:
    """The records of a run in the order in which they came: a step, then the evaluations after it.

    `before_step`: only what was recorded up to and including this step (a resume from checkpoint-k passes k).
    """
    for line in each_metrics(run):
        step, split = line["step"], line["split"]
        if before_step is not None and step > before_step:
            return
        if split != "train":
            metrics = {name: value for name, value in line.items() if name.startswith(f"{split}_")}
            yield eval_record(step, split, metrics)
            continue
        yield recorded(step, line, read_rollouts(run, step=step, split="train"), config)


def read_config(run: Path) -> dict[str, Any]:
    """The config of the attempt that speaks for the run (`decisive_attempt`); empty if there is none.

    Raises DataError if the folder holds no run.
    """
    if not (run / "metrics.jsonl").exists():
        raise DataError(f"{str(run)!r} holds no run: there is no metrics.jsonl in it. Give a run's output_dir.")
    path = run / "run.json"
    if not path.exists():
        return {}
    with boundary(DataError, f"reading {path}"):
        attempts = json.loads(path.read_text(encoding="utf-8"))["attempts"]
        config: dict[str, Any] = decisive_attempt(attempts)["config"] if attempts else {}
    return config
