"""Rows for the Rewards view: rewards, terms and lengths of many rounds, what share of the signal each term makes, and
how they go together. Statistics are pure functions of columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gruppo.monitor.server.buckets import Floats, Ints, rounded
from gruppo.monitor.server.parts import NO_ROWS
from gruppo.monitor.server.query import Query
from gruppo.monitor.server.rounds import REWARD, Round, concatenated, ids_of, numbers, values
from gruppo.monitor.server.store import Store, reward_weights

MAX_ROUNDS = 40
MAX_ROWS = 5000


def answer_rewards(store: Store, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET rewards."""
    run = store.run(args["run"])
    split = query.text("split") or "train"
    max_rounds, max_rows = (
        query.number("max_rounds", MAX_ROUNDS, 1, MAX_ROUNDS),
        query.number("max_rows", 2000, 1, MAX_ROWS),
    )
    steps = _steps(store.rounds.steps(run.path), query.maybe_number("from"), query.maybe_number("to"), max_rounds)
    rounds = {step: store.rounds.read(run.path, step, split) for step in steps.tolist()}
    rounds = {step: found for step, found in rounds.items() if found.table.num_rows}
    table = concatenated([found.table for found in rounds.values()]) if rounds else NO_ROWS
    names = Round(table, 0).reward_names
    weights = reward_weights(store.config(run), names)
    shown = table.take(pa.array(evenly(table.num_rows, max_rows)))
    by_round = [shares(found.table, names, weights) for found in rounds.values()]
    return {
        "from": min(rounds, default=None),
        "to": max(rounds, default=None),
        "rounds": list(rounds),
        "num_rows": table.num_rows,
        "num_used": shown.num_rows,
        "reward_names": names,
        "reward_weights": weights,
        "rows": {
            "ids": ids_of(shown),
            "steps": values(shown, "step"),
            "lengths": values(shown, "n_completion"),
            "rewards": rounded(numbers(shown, "reward")),
            "advantages": rounded(numbers(shown, "advantage")),
            "terms": {name: rounded(numbers(shown, REWARD + name)) for name in names},
        },
        "shares": shares(table, names, weights),
        "by_round": {
            "steps": list(rounds),
            "shares": {name: [one.get(name) for one in by_round] for name in names},
        },
        "correlations": correlations(
            {"reward": numbers(table, "reward"), "length": numbers(table, "n_completion")}
            | {name: numbers(table, REWARD + name) for name in names}
        ),
    }


def evenly(num_rows: int, most: int) -> Ints:
    """Row numbers, evenly spread, at most `most`."""
    if num_rows <= most:
        return np.arange(num_rows)
    return np.unique(np.linspace(0, num_rows - 1, most).round().astype(np.int64))


def shares(table: pa.Table, names: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    """The part of the within-group variance of the reward that each term makes.

    It is Σ w_k r_k (r - mean r) / Σ (r - mean r)². GRPO ignores what all siblings share, so means do not count.
    Empty if no group has a difference.
    """
    if not table.num_rows:
        return {}
    rewards = numbers(table, "reward")
    scored = ~np.isnan(rewards)
    groups = _group_numbers(table)
    sums = np.bincount(groups[scored], weights=rewards[scored], minlength=groups.max() + 1)
    counts = np.bincount(groups[scored], minlength=groups.max() + 1)
    means = sums / np.maximum(counts, 1)
    centred = np.where(scored, rewards - means[groups], 0.0)
    total = float(centred @ centred)
    largest = float(np.abs(rewards[scored]).max(initial=0.0))
    if not np.isfinite(total) or total <= 1e-12 * largest**2:
        return {}
    terms = {name: np.nan_to_num(numbers(table, REWARD + name)) for name in names}
    return {
        name: float(f"{weight * float(centred @ terms[name]) / total:.6g}")
        for name, weight in zip(names, weights, strict=True)
    }


def correlations(columns: Mapping[str, Floats]) -> dict[str, Any]:
    """Pearson's coefficients; null where a column is constant or fewer than three rows have both values."""
    names = list(columns)
    return {"names": names, "matrix": [[_pearson(columns[a], columns[b]) for b in names] for a in names]}


def _pearson(x: Floats, y: Floats) -> float | None:
    known = ~(np.isnan(x) | np.isnan(y))
    x, y = x[known], y[known]
    if len(x) < 3 or x.min() == x.max() or y.min() == y.max():
        return None
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt(x @ x) * np.sqrt(y @ y))
    return round(max(-1.0, min(1.0, float(x @ y) / scale)), 6) if np.isfinite(scale) and scale > 0 else None


def _steps(steps: Ints, first: int | None, last: int | None, max_rounds: int) -> Ints:
    if first is None and last is None:
        return steps[-max_rounds:]
    kept = steps[(steps >= (first or 0)) & (steps <= (steps.max(initial=0) if last is None else last))]
    return kept[evenly(len(kept), max_rounds)]


def _group_numbers(table: pa.Table) -> NDArray[np.int64]:
    """0, 1, ... for each (step, group)."""
    keys = zip(values(table, "step"), values(table, "group_id"), strict=True)
    known: dict[tuple[Any, Any], int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)
