"""DETECTORS: all checks by id, and what their thresholds are once the user's are put in.

A new check is one function and one row, in the file of its topic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from gruppo.errors import ConfigError
from gruppo.monitor.health import drift, faults, gaming, groups, lengths, terms, texts, timing, trends, updates
from gruppo.monitor.health.detector import Detector, Limits

_TOPICS = (groups, updates, lengths, drift, texts, gaming, terms, trends, faults, timing)

DETECTORS: Mapping[str, Detector] = {
    detector.id: detector
    for detector in sorted((row for topic in _TOPICS for row in topic.DETECTORS), key=lambda row: row.id)
}

OFF = "off"


def resolve_limits(thresholds: Mapping[str, Any] | None = None) -> dict[str, Limits]:
    """Thresholds of every check that is on.

    Args:
        thresholds: detector id -> {threshold: number}, or "off": `{"D05": {"alert": 0.7}, "D12": "off"}`.

    Raises ConfigError with every mistake in it.
    """
    limits: dict[str, Limits] = {}
    given = dict(thresholds or {})
    problems = [_unknown("check", name, DETECTORS) for name in given if name not in DETECTORS]
    for name, detector in DETECTORS.items():
        wanted = given.get(name, {})
        if wanted == OFF:
            continue
        if not isinstance(wanted, Mapping):
            problems.append(f"health_thresholds[{name!r}] is {wanted!r}; give {{threshold: number}}, or 'off'.")
            continue
        defaults = detector.defaults()
        problems += [_unknown(f"threshold of {name}", key, defaults) for key in wanted if key not in defaults]
        problems += [_no_number(name, key, value) for key, value in wanted.items() if not _is_number(value)]
        limits[name] = defaults | {key: float(value) for key, value in wanted.items() if _is_number(value)}
    if problems:
        raise ConfigError(problems)
    return limits


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _no_number(name: str, key: str, value: Any) -> str:
    return f"health_thresholds[{name!r}][{key!r}] is {value!r}; it must be a finite number."


def _unknown(kind: str, name: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"There is no {kind} {name!r}.{hint} There are: {', '.join(known)}."
