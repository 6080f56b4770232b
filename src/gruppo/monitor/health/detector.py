"""Detector: one check with its thresholds and its prose, in one place; the docs pages are generated from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from gruppo.monitor.health.finding import Missing, Reading
from gruppo.monitor.health.window import Window

Need = Literal["metrics", "rollouts", "tokens", "evals"]

Limits = Mapping[str, float]
"""Threshold -> value, of one check."""

Check = Callable[[Window, Limits], Reading | Missing]


@dataclass(frozen=True, slots=True)
class Limit:
    """A threshold: its default, and what it is."""

    default: float
    meaning: str


@dataclass(frozen=True, slots=True)
class Detector:
    """One of D01-D26."""

    id: str
    name: str
    check: Check
    needs: tuple[Need, ...]
    limits: Mapping[str, Limit]
    meaning: str
    """What it means when it fires."""
    computed: str
    """How the value is computed, in words and formulas."""
    remedy: str
    """What to do."""
    source: str
    """Where signal and thresholds come from; "ours" where nothing is published."""
    fire: tuple[int, int] = (3, 5)
    """How many of how many readings must be bad (urgent ones count at once)."""
    docs: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "docs", f"docs/health/{self.id}.md")

    def defaults(self) -> dict[str, float]:
        return {name: limit.default for name, limit in self.limits.items()}
