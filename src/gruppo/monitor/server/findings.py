"""What the health checks found in a run: as its events report it, or, where nobody looked, by an audit of its files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, final

from gruppo.monitor.server.folders import RunFolder
from gruppo.monitor.server.lines import Line
from gruppo.monitor.server.query import Query
from gruppo.monitor.server.rounds import CompletionId
from gruppo.monitor.server.store import Store

logger = logging.getLogger(__name__)

MAX_FINDINGS = 500
"""Of one answer."""

MAX_AUDIT_BYTES = 8 * 2**20
"""A longer metrics.jsonl is not audited here: `gruppo audit` does that without a page waiting."""

SEVERITIES = ("INFO", "WARN", "ALERT")

FIELDS = (
    "detector",
    "name",
    "severity",
    "step",
    "value",
    "threshold",
    "message",
    "advice",
    "docs",
    "is_cleared",
    "action",
    "attempt",
    "time",
)


@final
class Auditor:
    """Audits runs in one background thread, one at a time, and remembers the latest few."""

    MAX_KEPT = 16

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gruppo-audit")
        self._lock = Lock()
        self._jobs: dict[tuple[Path, int], Future[list[Line]]] = {}

    def findings(self, run: Path) -> list[Line] | None:
        """The findings; None while they are computed, which the first call for this size of the file starts."""
        key = (run, (run / "metrics.jsonl").stat().st_size)
        with self._lock:
            if key not in self._jobs:
                while len(self._jobs) >= self.MAX_KEPT:
                    self._jobs.pop(next(iter(self._jobs))).cancel()
                self._jobs[key] = self._thread.submit(_audit, run)
            job = self._jobs[key]
        return job.result() if job.done() else None

    def wait(self) -> None:
        """Until all that was started is done."""
        for job in list(self._jobs.values()):
            job.result()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def answer_health(store: Store, auditor: Auditor, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET health."""
    run = store.run(args["run"])
    source, complete, found = all_findings(store, auditor, run)
    return {
        "source": source,
        "step": store.status(run).latest.get("step"),
        "complete": complete,
        "num_findings": num_open(found),
        "detectors": detectors_of(found),
        "findings": [as_json(finding) for finding in reversed(found[-MAX_FINDINGS:])],
    }


def all_findings(store: Store, auditor: Auditor, run: RunFolder) -> tuple[str, bool, list[Line]]:
    """(source, complete, findings that count, oldest first); see `source` in docs/monitor-api.md."""
    landmarks = store.landmarks(run)
    complete = landmarks.refresh()
    status = store.status(run)
    reported = standing(landmarks.findings(), status.run["attempts"])
    if reported or status.state == "running":
        return "events", complete, reported
    metrics = run.path / "metrics.jsonl"
    if not metrics.exists() or metrics.stat().st_size > MAX_AUDIT_BYTES:
        return "none", complete, []
    audited = auditor.findings(run.path)
    return ("audit", False, []) if audited is None else ("audit", complete, audited)


def standing(findings: Sequence[Line], attempts: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The findings without those of steps that a later attempt made anew."""
    starts = [(entry.get("attempt"), entry.get("start_step")) for entry in attempts]

    def is_standing(finding: Line) -> bool:
        attempt, step = finding.get("attempt"), finding.get("step")
        if not isinstance(attempt, int) or not isinstance(step, int):
            return True
        return not any(
            isinstance(later, int) and later > attempt and isinstance(start, int) and step > start
            for later, start in starts
        )

    return [finding for finding in findings if is_standing(finding)]


def num_open(findings: Sequence[Line]) -> dict[str, int]:
    """severity -> how many checks stand there."""
    last = [entry["severity"] for entry in detectors_of(findings) if entry["is_open"]]
    return {severity: last.count(severity) for severity in SEVERITIES}


def detectors_of(findings: Sequence[Line]) -> list[dict[str, Any]]:
    """What each check that ever spoke said, as spans of steps: the Health strip."""
    entries: dict[str, dict[str, Any]] = {}
    for finding in findings:
        detector, step = str(finding.get("detector")), finding.get("step")
        new = {"detector": detector, "name": finding.get("name"), "severity": None, "is_open": False}
        entry = entries.setdefault(detector, new | {"spans": []})
        spans = entry["spans"]
        if spans and spans[-1]["to"] is None:
            spans[-1]["to"] = step
        entry["is_open"] = not finding.get("is_cleared")
        if entry["is_open"]:
            entry["severity"] = finding.get("severity")
            spans.append({"from": step, "to": None, "severity": finding.get("severity")})
    return [entries[name] for name in sorted(entries)]


def as_json(finding: Line) -> dict[str, Any]:
    """A finding as the page gets it: its rows by id."""
    rows = finding.get("evidence")
    evidence = [row for row in rows if isinstance(row, dict)] if isinstance(rows, (list, tuple)) else []
    return {name: finding.get(name) for name in FIELDS} | {"evidence": [_with_id(row) for row in evidence]}


def _with_id(row: Mapping[str, Any]) -> dict[str, Any]:
    step, group_id, sample = (row.get(name, 0) for name in ("step", "group_id", "sample"))
    split = str(row.get("split", "train"))
    named = {"step": step, "group_id": group_id, "sample": sample}
    if not all(isinstance(value, int) for value in named.values()):
        return named | {"id": None}
    return named | {"id": str(CompletionId(step, group_id, sample, split))}


def _audit(run: Path) -> list[Line]:
    from gruppo.monitor.health.audit import audit  # late: scipy and the checks are not needed to serve a page

    try:  # the boundary to a run that cannot be audited (no lines yet, foreign ones): it has no findings
        found = [finding.as_dict() for finding in audit(run).findings]
    except Exception:
        logger.warning("The run in %s could not be audited; the page shows no findings for it.", run, exc_info=True)
        return []
    return [{name: None if value != value else value for name, value in finding.items()} for finding in found]  # noqa: PLR0124
