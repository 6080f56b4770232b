"""Completions as a table: filtered, sorted, paged, over one round or a range of rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from gruppo.monitor.server.buckets import Ints
from gruppo.monitor.server.completion import extras_of, scalars_of, text_json
from gruppo.monitor.server.filters import Filter, parse_filters, rows_that_meet
from gruppo.monitor.server.folders import part_files
from gruppo.monitor.server.parts import NO_ROWS, PREVIEW_CHARS, TEXTS, UNREADABLE
from gruppo.monitor.server.query import Query
from gruppo.monitor.server.refusal import bad_parameter
from gruppo.monitor.server.rounds import ORDER, REWARD, STATUS, Round, concatenated, ids_of
from gruppo.monitor.server.store import Store

MAX_ROUNDS = 64
"""Rounds read per request."""

MAX_ROWS = 50_000
"""No further round is read once so many rows were found."""


class Found(NamedTuple):
    """Rows that meet the filters, and the rounds that were read."""

    round: Round
    first: int | None
    last: int | None
    next_to: int | None


def answer_rollouts(store: Store, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET rollouts."""
    run = store.run(args["run"])
    filters = parse_filters(query.many("filter"))
    split = query.text("split")
    if split is not None:
        filters.append(Filter("split", "eq", split))
    per_page, page = query.number("per_page", 50, 1, 200), query.number("page", 1, 1)
    found = search(store, run.path, _steps(store.rounds.steps(run.path), query), filters)
    table = _sorted(found.round.table, query.text("sort"), filters)
    shown = table.slice((page - 1) * per_page, per_page)
    return {
        "num_rows": table.num_rows,
        "page": page,
        "num_pages": max(1, math.ceil(table.num_rows / per_page)),
        "from": found.first,
        "to": found.last,
        "next_to": found.next_to,
        "unreadable_parts": found.round.num_unreadable,
        "reward_names": found.round.reward_names,
        "rows": _rows(shown, found.round.reward_names),
    }


def search(store: Store, run: Path, steps: Ints, filters: Sequence[Filter]) -> Found:
    """The rows of `steps` (ascending) that meet the filters, newest rounds first, as many as one request may read."""
    tables: list[pa.Table] = []
    num_rows = num_unreadable = 0
    read: list[int] = []
    for step in reversed(steps.tolist()):
        if len(read) == MAX_ROUNDS or num_rows >= MAX_ROWS:
            break
        read.append(step)
        for path in part_files(run, "rollouts", step):
            kept = _kept(store, path, filters)
            if kept is None:
                num_unreadable += path.exists()
            else:
                tables.append(kept)
                num_rows += kept.num_rows
    table = concatenated(tables) if tables else NO_ROWS
    older = steps[steps < read[-1]] if read else steps
    return Found(
        Round(table, num_unreadable),
        read[-1] if read else None,
        read[0] if read else None,
        int(older[-1]) if len(older) else None,
    )


def _kept(store: Store, path: Path, filters: Sequence[Filter]) -> pa.Table | None:
    table = store.rounds.part(path)
    if table is None or not filters:
        return table
    try:  # the boundary to files of others, as in rounds.py
        return table.filter(pa.array(rows_that_meet(path, table, filters)))
    except UNREADABLE:
        return None


def _steps(steps: Ints, query: Query) -> Ints:
    step, first, last = (query.maybe_number(name) for name in ("step", "from", "to"))
    if step is not None:
        if first is not None or last is not None:
            raise bad_parameter("step", step, "give step, or from and to")
        return steps[steps == step]
    if first is None and last is None:
        return steps[-1:]
    kept = steps >= (first or 0)
    return steps[kept if last is None else kept & (steps <= last)]


def _sorted(table: pa.Table, sort: str | None, filters: Sequence[Filter]) -> pa.Table:
    """Sorted, with rows without a value at the end.

    Raises:
        Refusal: the parts have no such column.
    """
    if table is NO_ROWS:
        return table
    names = table.column_names
    for one in filters:
        if one.column not in names and one.column not in TEXTS:
            raise bad_parameter("filter", one.column[:100], "there is no such column")
    keys = [("step", "ascending"), *((name, "ascending") for name in ORDER)]
    if sort is not None:
        name = sort.removeprefix("-")
        if name not in names:
            raise bad_parameter("sort", sort[:100], "there is no such column")
        keys = [(name, "descending" if sort.startswith("-") else "ascending"), *(key for key in keys if key[0] != name)]
    return table.sort_by([key for key in keys if key[0] in names])


def _rows(table: pa.Table, reward_names: Sequence[str]) -> list[dict[str, Any]]:
    prompts, completions = (text_json(table, name, PREVIEW_CHARS) for name in ("prompt", "completion"))
    return [
        {
            "id": row_id,
            **scalars_of(row),
            "prompt": _without_offset(prompt),
            "completion": _without_offset(completion),
            "terms": {name: row.get(REWARD + name) for name in reward_names},
            "statuses": {name: row.get(STATUS + name) for name in reward_names},
            "extras": extras_of(row),
        }
        for row_id, prompt, completion, row in zip(ids_of(table), prompts, completions, table.to_pylist(), strict=True)
    ]


def _without_offset(text: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in text.items() if name != "next_offset"}
