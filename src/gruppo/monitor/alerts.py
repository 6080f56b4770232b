"""Alarms to trackers: what the health checks find goes to wandb and trackio as their own alerts, as it is found.

It never breaks training: a tracker that refuses is left alone after one warning. Findings are recorded by the recorder
and shown by the display; `health_values` are the numbers that every tracker gets with its log lines.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import final

from gruppo.monitor.health.finding import RANKS, Finding
from gruppo.monitor.health.state import CheckState
from gruppo.monitor.report.untrusted import flat

logger = logging.getLogger(__name__)

LEVELS = {"WARN": "WARN", "ALERT": "ERROR"}
"""Severity -> name in the AlertLevel of both trackers. INFO explains something once: that is no alarm."""


@final
class Alerts:
    """Sends findings to the trackers of `report_to` (names, or ["all"] for those installed). Main process only."""

    def __init__(self, report_to: str | Sequence[str] | None) -> None:
        named = [report_to] if isinstance(report_to, str) else list(report_to or [])
        self._senders = {
            name: send for name, send in SENDERS.items() if name in named or ("all" in named and find_spec(name))
        }

    def send(self, finding: Finding) -> None:
        """Send an alarm; what explains, and what is back to normal, is not sent."""
        if finding.severity not in LEVELS or finding.is_cleared:
            return
        for name, send in list(self._senders.items()):
            try:  # the boundary between a tracker and training
                send(import_module(name), finding)
            except Exception as error:
                del self._senders[name]
                logger.warning("%s takes no alarms, training goes on without: %r", name, error)


def health_values(checks: Mapping[str, CheckState]) -> dict[str, float]:
    """`health/num_warn` and `health/num_alert`: checks that stand there. `health/<id>`, of each that ever warned:
    0 ok, 1 info, 2 warn, 3 alert."""
    levels = [check.level for check in checks.values()]
    values = {"health/num_warn": float(levels.count("warn")), "health/num_alert": float(levels.count("alert"))}
    spoke = {name: check for name, check in checks.items() if RANKS[check.worst] >= RANKS["warn"]}
    return values | {f"health/{name}": float(max(RANKS[check.level], 0)) for name, check in sorted(spoke.items())}


def _title(finding: Finding) -> str:
    return flat(f"{finding.severity} {finding.detector} {finding.name}")


def _text(finding: Finding) -> str:
    rows = f"Rows: {' '.join(map(str, finding.evidence))}" if finding.evidence else ""
    lines = (f"Step {finding.step}: {finding.message}", finding.advice, rows, finding.docs)
    return "\n".join(flat(line) for line in lines if line)


def _to_wandb(wandb: ModuleType, finding: Finding) -> None:
    if wandb.run is not None:
        level = getattr(wandb.AlertLevel, LEVELS[finding.severity])
        wandb.run.alert(title=_title(finding), text=_text(finding), level=level)


def _to_trackio(trackio: ModuleType, finding: Finding) -> None:
    alert = getattr(trackio, "alert", None)  # older releases have none
    if alert is None:
        trackio.log({f"health/{finding.detector}": float(RANKS["alert" if finding.severity == "ALERT" else "warn"])})
        return
    level = getattr(trackio.AlertLevel, LEVELS[finding.severity])
    alert(title=_title(finding), text=_text(finding), level=level)


SENDERS: Mapping[str, Callable[[ModuleType, Finding], None]] = {"wandb": _to_wandb, "trackio": _to_trackio}
"""Tracker -> how it takes an alarm."""
