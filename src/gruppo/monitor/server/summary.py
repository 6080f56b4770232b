"""What is asked about a run as a whole: the list of runs, the summary, the curves, the evaluations, the events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gruppo.monitor.server.events import events_since, latest_events
from gruppo.monitor.server.findings import Auditor, all_findings, as_json, detectors_of, num_open
from gruppo.monitor.server.folders import MAX_RUNS
from gruppo.monitor.server.metric_log import MetricLog
from gruppo.monitor.server.query import Query
from gruppo.monitor.server.status import Status, brief, config_of, latest_attempt, progress_of
from gruppo.monitor.server.store import Store
from gruppo.monitor.server.verdict import verdict

MAX_POINTS = 5000
NUM_FINDINGS = 5


def answer_runs(store: Store, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET runs."""
    now = store.now()
    found = store.runs()
    runs = sorted((brief(run, store.status(run)) for run in found), key=lambda run: -(run["updated"] or 0.0))
    return {"time": now, "truncated": len(found) == MAX_RUNS, "runs": runs}


def answer_run(store: Store, auditor: Auditor, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET runs/{run}."""
    run, now = store.run(args["run"]), store.now()
    log = store.metrics(run)
    complete = log.refresh()
    status = store.status(run)
    _, _, findings = all_findings(store, auditor, run)
    detectors = [entry for entry in detectors_of(findings) if entry["is_open"]]
    attempt = latest_attempt(status.run)
    names = log.names()
    outcomes = store.landmarks(run).outcomes()
    return {
        "id": run.id,
        "name": run.name,
        "run_id": status.run.get("run_id"),
        "schema_version": status.run.get("schema_version"),
        "created": status.run.get("created"),
        "model": brief(run, status)["model"],
        "state": status.state,
        "outcome": status.outcome,
        "updated": status.updated,
        "time": now,
        "verdict": _verdict(log, status, detectors, now),
        "progress": progress_of(status, config_of(status.run)),
        "attempts": [
            {name: entry.get(name) for name in ("attempt", "started", "ended", "start_step")}
            | {"outcome": outcomes.get(entry.get("attempt", -1))}
            for entry in status.run["attempts"]
        ],
        "config": config_of(status.run),
        **{name: attempt.get(name) for name in ("plan", "seeds", "device", "versions")},
        "latest": log.row(),
        "first": log.row(first=True),
        "last_evals": {split: log.row(split=split) for split in log.splits() if split != "train"},
        "names": names,
        "reward_names": reward_names(names),
        "rollouts": _extent(store, run.path, "rollouts"),
        "tokens": _extent(store, run.path, "tokens"),
        "findings": [as_json(finding) for finding in reversed(findings[-NUM_FINDINGS:])],
        "num_findings": num_open(findings),
        "complete": complete,
    }


def answer_metrics(store: Store, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET metrics."""
    log = store.metrics(store.run(args["run"]))
    return log.answer(
        query.text("split") or "train",
        query.many("keys"),
        cursor=query.text("cursor"),
        max_points=query.number("max_points", 500, 2, MAX_POINTS),
        first=query.maybe_number("from"),
        last=query.maybe_number("to"),
    )


def answer_evals(store: Store, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET evals."""
    log = store.metrics(store.run(args["run"]))
    complete = log.refresh()
    max_points = query.number("max_points", 500, 2, MAX_POINTS)
    splits = {split: _evals_of(log, split, max_points) for split in log.splits() if split != "train"}
    return {"splits": splits, "complete": complete}


def answer_events(store: Store, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET events."""
    run = store.run(args["run"])
    kinds, limit = frozenset(query.many("kind")), query.number("limit", 200, 1, 1000)
    since = query.text("since")
    if since is None:
        return latest_events(run.path, kinds, limit)
    return events_since(run.path, since, kinds, limit)


def reward_names(names: list[str]) -> list[str]:
    """The reward functions that report a mean."""
    return [name.removeprefix("rewards/").removesuffix("/mean") for name in names if _is_term(name)]


def _is_term(name: str) -> bool:
    return name.startswith("rewards/") and name.endswith("/mean")


def _verdict(log: MetricLog, status: Status, detectors: list[dict[str, Any]], now: float) -> dict[str, Any]:
    age = None if status.updated is None else now - status.updated
    loud = [entry for entry in detectors if entry["severity"] != "INFO"]
    evals = log.columns(["eval_reward"], "eval")["eval_reward"]
    columns = log.columns(["reward", "frac_reward_zero_std", "groups/frac_solved"])
    return verdict(columns, evals, loud, status.state, outcome=status.outcome, age=age)


def _evals_of(log: MetricLog, split: str, max_points: int) -> dict[str, Any]:
    prefix = f"{split}_"
    answer = log.split_series(split, [f"{prefix}*"], max_points)
    answer["series"] = {name.removeprefix(prefix): series for name, series in answer["series"].items()}
    rewards = log.columns([f"{prefix}reward"], split)
    pairs = [
        (float(value), int(step))
        for value, step in zip(rewards[f"{prefix}reward"], rewards["step"], strict=True)
        if value == value  # noqa: PLR0124 - NaN is no value
    ]
    best = max(pairs, key=lambda pair: (pair[0], -pair[1]), default=None)
    return answer | {"best": None if best is None else {"step": best[1], "reward": best[0]}}


def _extent(store: Store, run: Path, kind: str) -> dict[str, int | None]:
    steps = store.rounds.steps(run, kind)
    if not len(steps):
        return {"first": None, "last": None, "count": 0}
    return {"first": int(steps[0]), "last": int(steps[-1]), "count": len(steps)}
