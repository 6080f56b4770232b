"""The same prompt across steps: found by going back through the rounds, a bounded number of them per request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gruppo.monitor.server.completion import text_json
from gruppo.monitor.server.folders import part_files
from gruppo.monitor.server.parts import PREVIEW_CHARS, UNREADABLE
from gruppo.monitor.server.query import Query
from gruppo.monitor.server.refusal import bad_parameter
from gruppo.monitor.server.rounds import ids_of, texts_of, values
from gruppo.monitor.server.store import Store

MAX_ROUNDS = 400
"""Rounds searched per request."""


def answer_history(store: Store, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET prompts/{prompt_id}/history."""
    run = store.run(args["run"])
    prompt_id, split = _prompt_id(args["prompt_id"]), query.text("split") or "train"
    before, limit = query.maybe_number("before"), query.number("limit", 20, 1, 100)
    steps = store.rounds.steps(run.path)
    steps = steps if before is None else steps[steps < before]
    visits: list[dict[str, Any]] = []
    prompt = next_before = None
    for num_read, step in enumerate(reversed(steps.tolist())):
        if num_read == MAX_ROUNDS or len(visits) >= limit:
            next_before = step + 1
            break
        if any(_has_prompt(path, prompt_id) for path in part_files(run.path, "rollouts", step)):
            table = _rows(store, run.path, step, split, prompt_id)
            visits += _visits(table, step)
            if prompt is None and table.num_rows:
                prompt = text_json(table.slice(0, 1), "prompt", PREVIEW_CHARS)[0]
    return {"prompt_id": prompt_id, "split": split, "prompt": prompt, "next_before": next_before, "visits": visits}


def _prompt_id(given: str) -> int:
    if not (given.lstrip("-").isdigit() and given.isascii() and len(given) <= 19):
        raise bad_parameter("prompt_id", given[:100], "give a whole number")
    return int(given)


def _has_prompt(path: Path, prompt_id: int) -> bool:
    try:  # the boundary to files of others: what cannot be read has nothing
        with pq.ParquetFile(path) as file:
            if "prompt_id" not in file.schema_arrow.names:
                return False
            column = file.read(columns=["prompt_id"], use_threads=False)["prompt_id"]
            return prompt_id in column.to_pylist()
    except UNREADABLE:
        return False


def _rows(store: Store, run: Path, step: int, split: str, prompt_id: int) -> pa.Table:
    table = store.rounds.read(run, step, split).table
    return table.filter(
        pa.array(np.array([value == prompt_id for value in values(table, "prompt_id")], dtype=np.bool_))
    )


def _visits(table: pa.Table, step: int) -> list[dict[str, Any]]:
    """One per group: a prompt may be drawn twice in a round."""
    group_ids = values(table, "group_id")
    visits = []
    for group_id in dict.fromkeys(group_ids):
        rows = table.take(pa.array([row for row, value in enumerate(group_ids) if value == group_id]))
        visits.append(
            {
                "step": step,
                "group_id": group_id,
                "mean": values(rows, "group_mean")[0],
                "std": values(rows, "group_std")[0],
                "rewards": values(rows, "reward"),
                "advantages": values(rows, "advantage"),
                "lengths": values(rows, "n_completion"),
                "finish_reasons": values(rows, "finish_reason"),
                "ids": ids_of(rows),
                "previews": [piece.text if piece else None for piece in texts_of(rows, "completion", PREVIEW_CHARS)],
            }
        )
    return visits
