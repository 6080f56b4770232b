"""The groups of a round: the list that a Step view shows, and one group whole. Answers of docs/monitor-api.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from gruppo.monitor.server.buckets import Floats, Ints
from gruppo.monitor.server.completion import COMPLETION_CHARS, as_json, extras_of, scalars_of, terms_of, text_json
from gruppo.monitor.server.parts import PREVIEW_CHARS
from gruppo.monitor.server.query import Query
from gruppo.monitor.server.refusal import not_found
from gruppo.monitor.server.rounds import REWARD, STATUS, Round, ids_of, numbers, texts_of, values
from gruppo.monitor.server.store import Store, reward_weights
from gruppo.monitor.server.tokens import selected

SORTS = ("attention", "group_id", "mean", "std", "length")

ATTENTION = {"mixed": 0, "unscored": 1, "failed": 2, "solved": 3}
"""Order of kinds where nothing is at fault."""

LOSS_SETTINGS = (
    "loss_type",
    "beta",
    "epsilon",
    "epsilon_high",
    "scale_rewards",
    "num_iterations",
    "importance_sampling_level",
)
LOSS_METRICS = ("loss", "kl", "grad_norm", "entropy", "clip_ratio/region_mean", "ratio/mean", "learning_rate")


class GroupStats(NamedTuple):
    """One group of a round: where its rows are, and the numbers that it is sorted by."""

    group_id: int
    rows: range
    kind: str
    mean: float
    std: float
    length: float
    num_faults: int


def answer_groups(store: Store, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET steps/{step}/groups."""
    run = store.run(args["run"])
    step, split = int(args["step"]), query.text("split") or "train"
    sort = query.choice("sort", [*SORTS, *(f"-{name}" for name in SORTS)])
    per_page, page = query.number("per_page", 50, 1, 200), query.number("page", 1, 1)
    round_step = store.rounds.at(run.path, step, split)
    found = store.rounds.read(run.path, round_step, split)
    splits = {*found.splits(), *store.rounds.read(run.path, step).splits()}
    groups = sort_groups(group_stats(found), sort)
    previous, _ = store.rounds.around(run.path, round_step)
    _, following = store.rounds.around(run.path, step)
    names = found.reward_names
    shown = groups[(page - 1) * per_page : page * per_page]
    return {
        "step": step,
        "round_step": round_step,
        "is_exact": step == round_step,
        "split": split,
        "splits": sorted(splits),
        "previous": previous,
        "next": following,
        "num_groups": len(groups),
        "num_completions": found.table.num_rows,
        "page": page,
        "num_pages": max(1, math.ceil(len(groups) / per_page)),
        "unreadable_parts": found.num_unreadable,
        "reward_names": names,
        "reward_weights": reward_weights(store.config(run), names),
        "totals": _totals(found, groups),
        "groups": [_group_json(found, group) for group in shown],
    }


def answer_group(store: Store, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET steps/{step}/groups/{group_id}."""
    run = store.run(args["run"])
    split = query.text("split") or "train"
    step = store.rounds.at(run.path, int(args["step"]), split)
    found = store.rounds.read(run.path, step, split)
    groups = sort_groups(group_stats(found), "group_id")
    position = next((i for i, group in enumerate(groups) if str(group.group_id) == args["group_id"]), None)
    if position is None:
        raise not_found(f"Step {step} has no group {args['group_id']} in split {split!r}.")
    group = groups[position]
    table = _rows_of(found, group)
    config = store.config(run)
    line = store.metrics(run)
    line.refresh()
    metrics = line.row(int(args["step"])) or {}
    return {
        "step": step,
        "split": split,
        "group_id": group.group_id,
        "prompt_id": values(table, "prompt_id")[0],
        "kind": group.kind,
        "mean": as_json(group.mean),
        "std": as_json(group.std),
        "previous": groups[position - 1].group_id if position else None,
        "next": groups[position + 1].group_id if position + 1 < len(groups) else None,
        "reward_names": found.reward_names,
        "reward_weights": reward_weights(config, found.reward_names),
        "prompt": text_json(table.slice(0, 1), "prompt", COMPLETION_CHARS)[0],
        "columns": text_json(table.slice(0, 1), "columns", COMPLETION_CHARS)[0],
        "completions": _completions(table, config, selected(run.path, step)),
        "loss": {name: config.get(name) for name in LOSS_SETTINGS} | {name: metrics.get(name) for name in LOSS_METRICS},
    }


def group_stats(found: Round) -> list[GroupStats]:
    """The groups of a round (one split), in the order of their rows."""
    table = found.table
    if not table.num_rows:
        return []
    group_ids = np.array([-1 if value is None else value for value in values(table, "group_id")], dtype=np.int64)
    starts = np.flatnonzero(np.append(True, group_ids[1:] != group_ids[:-1]))
    ends = np.append(starts[1:], len(group_ids))
    rewards, lengths = numbers(table, "reward"), numbers(table, "n_completion")
    means, stds = numbers(table, "group_mean"), numbers(table, "group_std")
    middle = _middle(rewards)
    faults = _faults(found)
    return [
        GroupStats(
            int(group_ids[start]),
            range(int(start), int(end)),
            kind_of(rewards[start:end], middle),
            float(means[start]),
            float(stds[start]),
            _mean(lengths[start:end]),
            int(faults[start:end].sum()),
        )
        for start, end in zip(starts, ends, strict=True)
    ]


def kind_of(rewards: Floats, middle: float) -> str:
    """mixed, or why the group teaches nothing: solved (flat and above `middle`), failed (flat, not above), unscored
    (nothing to compare: fewer than two rewards among siblings)."""
    scored = rewards[~np.isnan(rewards)]
    if len(scored) < min(2, len(rewards)):
        return "unscored"
    if scored.min() != scored.max():
        return "mixed"
    return "solved" if scored[0] > middle else "failed"


def sort_groups(groups: list[GroupStats], sort: str) -> list[GroupStats]:
    """Groups without a value come last, either way round."""
    name, is_turned = sort.removeprefix("-"), sort.startswith("-")
    if name == "attention":
        ordered = sorted(groups, key=lambda g: (-g.num_faults, ATTENTION[g.kind], -_or_zero(g.std), g.group_id))
        return ordered[::-1] if is_turned else ordered
    sign = -1 if is_turned else 1

    def key(group: GroupStats) -> tuple[bool, float, int]:
        value = float(group._asdict()[name])
        return math.isnan(value), sign * _or_zero(value), group.group_id

    return sorted(groups, key=key)


def _middle(rewards: Floats) -> float:
    """The middle of the round's range of rewards; 0 where all are equal (as `groups/frac_solved`)."""
    scored = rewards[~np.isnan(rewards)]
    if not len(scored) or scored.min() == scored.max():
        return 0.0
    return float(scored.min() / 2 + scored.max() / 2)


def _faults(found: Round) -> Ints:
    """For each row, how many reward functions failed on it."""
    faults = np.zeros(found.table.num_rows, dtype=np.int64)
    for name in found.reward_names:
        statuses = values(found.table, STATUS + name)
        faults += np.array([status not in (None, "ok", "none") for status in statuses], dtype=np.int64)
    return faults


def _totals(found: Round, groups: list[GroupStats]) -> dict[str, Any]:
    rewards = numbers(found.table, "reward")
    scored = rewards[~np.isnan(rewards)]
    kinds = [group.kind for group in groups]
    return {
        "reward_mean": as_json(_mean(rewards)),
        "reward_min": float(scored.min()) if len(scored) else None,
        "reward_max": float(scored.max()) if len(scored) else None,
        "length_mean": as_json(_mean(numbers(found.table, "n_completion"))),
        "num_faults": sum(group.num_faults for group in groups),
    } | {f"num_{kind}": kinds.count(kind) for kind in ATTENTION}


def _rows_of(found: Round, group: GroupStats) -> pa.Table:
    return found.table.slice(group.rows.start, len(group.rows))


def _group_json(found: Round, group: GroupStats) -> dict[str, Any]:
    table = _rows_of(found, group)
    names = found.reward_names
    return {
        "group_id": group.group_id,
        "prompt_id": values(table, "prompt_id")[0],
        "prompt": text_json(table.slice(0, 1), "prompt", PREVIEW_CHARS)[0],
        "kind": group.kind,
        "mean": as_json(group.mean),
        "std": as_json(group.std),
        "num_faults": group.num_faults,
        "ids": ids_of(table),
        "samples": values(table, "sample"),
        "rewards": values(table, "reward"),
        "advantages": values(table, "advantage"),
        "terms": {name: values(table, REWARD + name) for name in names},
        "statuses": {name: values(table, STATUS + name) for name in names},
        "lengths": values(table, "n_completion"),
        "finish_reasons": values(table, "finish_reason"),
        "entropies": values(table, "entropy_mean"),
        "sampler_logprobs": values(table, "sampler_logprob_mean"),
        "previews": [piece.text if piece else None for piece in texts_of(table, "completion", PREVIEW_CHARS)],
    }


def _completions(table: pa.Table, config: Mapping[str, Any], tokens: set[str]) -> list[dict[str, Any]]:
    texts = text_json(table, "completion", COMPLETION_CHARS)
    rows = table.to_pylist()
    return [
        {"id": row_id, **scalars_of(row), "completion": text, "terms": terms_of(row, config), "extras": extras_of(row)}
        | {"has_tokens": row_id in tokens}
        for row_id, text, row in zip(ids_of(table), texts, rows, strict=True)
    ]


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
