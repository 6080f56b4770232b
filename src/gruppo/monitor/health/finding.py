"""What a check says: a Reading at each step, and a Finding when that amounts to news.

Nothing here computes; what turns readings into findings is in state.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

Level = Literal["na", "insufficient", "ok", "info", "warn", "alert"]
"""`na`: the run does not record what the check needs. `insufficient`: too few steps yet. The rest is a verdict."""

Severity = Literal["INFO", "WARN", "ALERT"]

Action = Literal["log", "checkpoint", "pause", "stop"]
"""What the trainer should do. `pause`: save, and end so that `resume_from_checkpoint=True` goes on. `stop`: end."""

RANKS: dict[Level, int] = {"na": -2, "insufficient": -1, "ok": 0, "info": 1, "warn": 2, "alert": 3}
SEVERITIES: dict[Level, Severity] = {"info": "INFO", "warn": "WARN", "alert": "ALERT"}

MAX_EVIDENCE = 8
"""Rows named by one finding."""


class RowId(NamedTuple):
    """A completion of the run: the row of rollouts/ with this step, group_id and sample."""

    step: int
    group_id: int
    sample: int

    def __str__(self) -> str:
        return f"g{self.group_id}s{self.sample}"


@dataclass(frozen=True, slots=True)
class Reading:
    """One check at one step, before hysteresis."""

    level: Level
    value: float
    threshold: float
    message: str = ""
    advice: str = ""
    evidence: tuple[RowId, ...] = ()
    is_urgent: bool = False
    """Needs no second look: fires at once."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The check could not look. `is_temporary`: it will, after more steps."""

    reason: str
    is_temporary: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """News: a check changed its mind. One per onset; `is_cleared` marks the way back to ok (severity INFO)."""

    detector: str
    name: str
    severity: Severity
    step: int
    value: float
    threshold: float
    message: str
    advice: str = ""
    evidence: tuple[RowId, ...] = ()
    docs: str = ""
    is_cleared: bool = False
    action: Action = "log"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; evidence as {step, group_id, sample}. The fields of a `finding` event."""
        return asdict(self) | {"evidence": [row._asdict() for row in self.evidence]}

    def text(self) -> str:
        """As the terminal shows it: what happened, which rows to open, what to do, where to read more."""
        head = f"{self.severity:<5} {self.detector} {self.name}  step {self.step}  {self.message}"
        if self.evidence:
            head += f"  [open {len(self.evidence)}: {' '.join(map(str, self.evidence))}]"
        return "\n      ".join([head, *([self.advice] if self.advice else []), f"docs: {self.docs}"])


def graded(value: float, *, warn: float, alert: float) -> tuple[Level, float]:
    """The level of a value that is bad when large, and the threshold that decided (the next one where it is ok)."""
    if value > alert:
        return "alert", alert
    return ("warn" if value > warn else "ok"), warn
