"""Two runs side by side: settings that differ, last values, the same curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gruppo.monitor.server.folders import RunFolder
from gruppo.monitor.server.query import Query
from gruppo.monitor.server.refusal import bad_parameter
from gruppo.monitor.server.status import config_of, dict_in, latest_attempt
from gruppo.monitor.server.store import Store

MISSING = object()


def answer_compare(store: Store, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET compare."""
    sides = {name: _run(store, name, query.text(name)) for name in ("a", "b")}
    statuses = {name: store.status(run) for name, run in sides.items()}
    logs = {name: store.metrics(run) for name, run in sides.items()}
    complete = all([log.refresh() for log in logs.values()])
    latest = {name: log.row() or {} for name, log in logs.items()}
    keys, max_points = query.many("keys"), query.number("max_points", 500, 2, 5000)
    configs = {name: config_of(status.run) for name, status in statuses.items()}
    versions = {name: dict_in(latest_attempt(status.run), "versions") for name, status in statuses.items()}
    return {
        **{
            name: {"id": run.id, "name": run.name, "state": statuses[name].state, "step": latest[name].get("step")}
            for name, run in sides.items()
        },
        "config": differences(configs["a"], configs["b"]),
        "versions": differences(versions["a"], versions["b"]),
        "metrics": [_pair(name, latest["a"], latest["b"]) for name in _metric_names(latest)],
        "series": {name: log.split_series("train", keys, max_points) for name, log in logs.items()},
        "complete": complete,
    }


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry per name whose values differ, by name; a side that lacks the name has no entry for it."""
    names = sorted(set(a) | set(b))
    return [_pair(name, a, b) for name in names if a.get(name, MISSING) != b.get(name, MISSING)]


def _pair(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name} | {side: values[name] for side, values in (("a", a), ("b", b)) if name in values}


def _metric_names(latest: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return sorted({name for row in latest.values() for name in row} - {"step", "attempt", "time"})


def _run(store: Store, name: str, run_id: str | None) -> RunFolder:
    if run_id is None:
        raise bad_parameter(name, None, "give the id of a run, as in compare?a=...&b=...")
    return store.run(run_id)
