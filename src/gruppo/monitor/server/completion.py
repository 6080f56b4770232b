"""One completion: its row, its texts, its tokens, and the pieces of JSON that every view of completions shares."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from gruppo.monitor.server.parts import NUM_CHARS, PART, ROW, TEXTS, UNREADABLE, Piece, read_texts
from gruppo.monitor.server.query import Query
from gruppo.monitor.server.refusal import not_found
from gruppo.monitor.server.rounds import EXTRA, REWARD, STATUS, Round, ids_of, texts_of, values
from gruppo.monitor.server.store import Store, reward_weights
from gruppo.monitor.server.tokens import OFFSETS, read_columns, selected, sliced, text_range

COMPLETION_CHARS = 20_000
"""Code points of a text in views of one group or one completion."""

MAX_TEXT_CHARS = 200_000
"""Code points of one piece."""

MAX_TOKENS = 10_000
"""Tokens of one answer."""

COMPLETION_ID = re.compile(r"(\d{1,12})\.-?\d{1,19}\.-?\d{1,12}\.~?[\w-]{1,200}", re.ASCII)


def answer_completion(store: Store, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET rollouts/{id}."""
    run = store.run(args["run"])
    found, position = find(store, run.path, args["id"])
    row = found.table.slice(position, 1)
    siblings = siblings_of(found.table, position)
    here = siblings.index(args["id"])
    values_of_row = row.to_pylist()[0]
    return {
        "id": args["id"],
        **scalars_of(values_of_row),
        "prompt": text_json(row, "prompt", COMPLETION_CHARS)[0],
        "completion": text_json(row, "completion", COMPLETION_CHARS)[0],
        "columns": text_json(row, "columns", COMPLETION_CHARS)[0],
        "terms": terms_of(values_of_row, store.config(run)),
        "extras": extras_of(values_of_row),
        "siblings": siblings,
        "previous": siblings[here - 1] if here else None,
        "next": siblings[here + 1] if here + 1 < len(siblings) else None,
        "has_tokens": args["id"] in selected(run.path, values_of_row["step"]),
    }


def answer_text(store: Store, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET rollouts/{id}/text."""
    run = store.run(args["run"])
    name = query.choice("field", ["completion", "prompt", "columns"])
    offset, limit = query.number("offset", 0), query.number("limit", 100_000, 1, MAX_TEXT_CHARS)
    piece = text_piece(store, run.path, args["id"], name, offset=offset, limit=limit)
    return {"id": args["id"], "field": name, "offset": piece.offset} | piece.as_dict()


def answer_tokens(store: Store, args: Mapping[str, str], query: Query) -> dict[str, Any]:
    """GET tokens/{id}."""
    run = store.run(args["run"])
    offset, limit = query.number("offset", 0), query.number("limit", 2000, 1, MAX_TOKENS)
    found, position = find(store, run.path, args["id"])
    row = found.table.slice(position, 1).to_pylist()[0]
    columns = read_columns(run.path, row["step"], args["id"])
    if columns is None:
        recorded = bool(selected(run.path, row["step"]))
        reason = "this completion was not among those selected" if recorded else "none were recorded for this step"
        raise not_found(f"There are no per-token columns for {args['id']}: {reason}.", "no_tokens")
    num_tokens = max((len(values) for values in columns.values()), default=0)
    answer: dict[str, Any] = {"text": None, "text_offset": None}
    covered = text_range(columns.get(OFFSETS), num_tokens, offset, limit)
    if covered is not None:
        start, end = covered
        num_chars = MAX_TEXT_CHARS if end is None else min(MAX_TEXT_CHARS, max(0, end - start))
        piece = text_piece(store, run.path, args["id"], "completion", offset=start, limit=num_chars)
        answer = {"text": piece.text, "text_offset": start}
    return {
        "id": args["id"],
        "num_tokens": num_tokens,
        "offset": offset,
        "next_offset": offset + limit if offset + limit < num_tokens else None,
        "advantage": as_json(row.get("advantage")),
        "reward": as_json(row.get("reward")),
        **answer,
        "columns": sliced(columns, offset, limit),
    }


def find(store: Store, run: Path, completion_id: str) -> tuple[Round, int]:
    """The round of a completion, and its row there.

    Raises:
        Refusal: there is no such completion.
    """
    match = COMPLETION_ID.fullmatch(completion_id)
    if match is None:
        raise not_found(f"{completion_id[:100]!r} does not name a completion. Ids look like 12.7.3.train.")
    found = store.rounds.read(run, int(match[1]))
    ids = ids_of(found.table) if found.table.num_rows else []
    if completion_id not in ids:
        raise not_found(f"There is no completion {completion_id}.")
    return found, ids.index(completion_id)


def text_piece(store: Store, run: Path, completion_id: str, name: str, *, offset: int, limit: int) -> Piece:
    """A piece of a text of one completion.

    Raises:
        Refusal: there is no such completion, or its part moved away meanwhile.
    """
    found, position = find(store, run, completion_id)
    row = int(values(found.table, ROW)[position])
    try:  # the boundary to files of others: the part may have moved since its numbers were read
        pieces = read_texts(Path(values(found.table, PART)[position]), name, [row], limit, offset)
    except UNREADABLE as error:
        raise not_found(f"The text of {completion_id} is gone: {type(error).__name__}.") from error
    return pieces.get(row) or Piece("", 0, 0)


def siblings_of(table: pa.Table, position: int) -> list[str]:
    """Ids of the completions of the same group and split, by sample."""
    keys = list(zip(values(table, "split"), values(table, "group_id"), strict=True))
    rows = [row for row, key in enumerate(keys) if key == keys[position]]
    return ids_of(table.take(pa.array(rows)))


def text_json(table: pa.Table, name: str, limit: int) -> list[dict[str, Any]]:
    """The text column `name` of each row, cut at `limit` code points."""
    formats = values(table, "prompt_format")
    answer = []
    for kind, piece in zip(formats, texts_of(table, name, limit), strict=True):
        text = (piece or Piece("", 0, 0)).as_dict()
        answer.append({"format": kind or "text", **text} if name == "prompt" else text)
    return answer


def scalars_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The plain columns of a row: not texts, rewards by function, extras, nor our own."""
    return {name: as_json(value) for name, value in row.items() if _is_plain(name)}


def terms_of(row: Mapping[str, Any], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each reward function gave."""
    names = [name.removeprefix(REWARD) for name in row if name.startswith(REWARD)]
    weights = reward_weights(config, names)
    return [
        {"name": name, "value": as_json(row[REWARD + name]), "status": row.get(STATUS + name), "weight": weight}
        for name, weight in zip(names, weights, strict=True)
    ]


def extras_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What reward functions logged with `log_extra`."""
    return {name.removeprefix(EXTRA): as_json(value) for name, value in row.items() if name.startswith(EXTRA)}


def as_json(value: Any) -> Any:
    """The value of a cell as JSON can say it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _is_plain(name: str) -> bool:
    return name not in (*TEXTS, PART, ROW, "run_id", "prompt_format") and not name.startswith(
        (NUM_CHARS, REWARD, STATUS, EXTRA)
    )
