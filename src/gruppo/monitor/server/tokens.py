"""Per-token columns of a completion, from the parts of tokens/. They exist for selected completions only.

The columns are whatever the part holds: scalars of ROW_KEYS name the completion, lists have one entry per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gruppo.monitor.server.folders import part_files
from gruppo.monitor.server.parts import UNREADABLE
from gruppo.monitor.server.rounds import CompletionId

ROW_KEYS = ("step", "group_id", "sample", "split")
OFFSETS = "text_offsets"


def selected(run: Path, step: int) -> set[str]:
    """Ids of the completions of a step that have per-token columns."""
    found: set[str] = set()
    for path in part_files(run, "tokens", step):
        found |= set(_ids(path, step))
    return found


def read_columns(run: Path, step: int, completion_id: str) -> dict[str, list[Any]] | None:
    """Column -> one value per token, null for NaN; None if nothing was recorded."""
    for path in part_files(run, "tokens", step):
        ids = _ids(path, step)
        if completion_id in ids:
            return _row(path, ids.index(completion_id))
    return None


def sliced(columns: Mapping[str, list[Any]], offset: int, limit: int) -> dict[str, list[Any]]:
    return {name: values[offset : offset + limit] for name, values in columns.items()}


def text_range(offsets: list[int] | None, num_tokens: int, offset: int, limit: int) -> tuple[int, int | None] | None:
    """Code points of the completion that the tokens `offset`.. cover; an end of None is the text's end."""
    if not offsets or len(offsets) < num_tokens:
        return None
    start = offsets[min(offset, num_tokens - 1)] if num_tokens else 0
    end = offset + limit
    return start, (offsets[end] if end < num_tokens else None)


def _ids(path: Path, step: int) -> list[str]:
    try:  # the boundary to files of others: a damaged or vanished part names nothing
        with pq.ParquetFile(path) as file:
            names = [name for name in ROW_KEYS if name in file.schema_arrow.names]
            rows = file.read(columns=names, use_threads=False).to_pylist()
    except UNREADABLE:
        return []
    return [
        str(CompletionId(row.get("step", step), row.get("group_id"), row.get("sample"), row.get("split", "train")))
        for row in rows
    ]


def _row(path: Path, row: int) -> dict[str, list[Any]] | None:
    columns: dict[str, list[Any]] = {}
    try:  # the same boundary
        with pq.ParquetFile(path) as file:
            names = [field.name for field in file.schema_arrow if _is_list(field.type)]
            table = file.read(columns=names, use_threads=False).slice(row, 1)
    except UNREADABLE:
        return None
    for name in names:
        cell = table[name].combine_chunks()
        columns[name] = _values(cell.flatten())
    num_tokens = max((len(values) for values in columns.values()), default=0)
    return {name: values for name, values in columns.items() if len(values) == num_tokens}


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _values(array: pa.Array) -> list[Any]:
    if not pa.types.is_floating(array.type):
        return list(array.to_pylist())
    values = np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.float64)
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]
