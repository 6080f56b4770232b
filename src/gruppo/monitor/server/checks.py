"""What a health check is: its documentation page as data, with the thresholds that the run was checked by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gruppo.monitor.server.query import Query
from gruppo.monitor.server.refusal import not_found
from gruppo.monitor.server.store import Store


def answer_check(store: Store, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET health/{check}."""
    from gruppo.monitor.health.table import DETECTORS  # late: the checks (scipy) are not needed to serve a page

    run = store.run(args["run"])
    detector = DETECTORS.get(args["check"])
    if detector is None:
        raise not_found(f"There is no check {args['check']!r}; there are {min(DETECTORS)} to {max(DETECTORS)}.")
    given = store.config(run).get("health_thresholds")
    wanted = given.get(detector.id, {}) if isinstance(given, dict) else {}
    set_ones = wanted if isinstance(wanted, dict) else {}
    return {
        "id": detector.id,
        "name": detector.name,
        "meaning": detector.meaning,
        "computed": detector.computed,
        "remedy": detector.remedy,
        "source": detector.source,
        "needs": list(detector.needs),
        "fire": {"bad": detector.fire[0], "of": detector.fire[1]},
        "is_off": wanted == "off",
        "limits": [
            {"name": name, "value": _number(set_ones.get(name), limit.default), "default": limit.default}
            | {"meaning": limit.meaning}
            for name, limit in detector.limits.items()
        ],
        "docs": detector.docs,
    }


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else default
