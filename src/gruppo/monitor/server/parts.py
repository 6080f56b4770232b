"""One Parquet part of rollouts, read in bounded memory: numbers of all rows, texts of the rows that are asked for.

Texts are counted and cut while they stream by, so a part of 10 MB completions costs no more than a part of short ones
(beyond Parquet's own page buffers).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

TEXTS = ("prompt", "completion", "columns")
"""Columns of any length. In a table of numbers their place is taken by `num_chars/<name>`."""

NUM_CHARS = "num_chars/"
PART, ROW = "_part", "_row"
"""Added columns: the file, and the row in it."""

PREVIEW_CHARS = 300
BATCH_BYTES = 4 * 2**20

NO_ROWS = pa.table({PART: pa.array([], pa.string()), ROW: pa.array([], pa.int64())})

UNREADABLE = (OSError, pa.ArrowException, UnicodeDecodeError)
"""What reading a damaged, vanished or foreign file raises."""

Mask = NDArray[np.bool_]


class Piece(NamedTuple):
    """A piece of a text: its code points from `offset`, and how many the whole text has."""

    text: str
    offset: int
    num_chars: int

    @property
    def next_offset(self) -> int | None:
        end = self.offset + len(self.text)
        return end if end < self.num_chars else None

    def as_dict(self) -> dict[str, Any]:
        return {"text": self.text, "num_chars": self.num_chars, "next_offset": self.next_offset}


def read_numbers(path: Path) -> pa.Table:
    """All columns but TEXTS and lists; other text columns cut at PREVIEW_CHARS, NaN and infinities as nulls.

    Raises:
        one of UNREADABLE.
    """
    with pq.ParquetFile(path) as file:
        names = [field.name for field in file.schema_arrow if not pa.types.is_nested(field.type)]
        batches = [_numbers(batch) for batch in _batches(file, names)]
    if not batches:
        return NO_ROWS
    table = pa.Table.from_batches(batches)
    rows = pa.array(np.arange(table.num_rows), pa.int64())
    return table.append_column(PART, pa.array([str(path)] * table.num_rows)).append_column(ROW, rows)


def read_texts(path: Path, name: str, rows: Sequence[int], limit: int, offset: int = 0) -> dict[int, Piece]:
    """row -> `limit` code points of the text column `name` from `offset`. Rows without a text are left out.

    Raises:
        one of UNREADABLE.
    """
    pieces: dict[int, Piece] = {}
    wanted = np.array(sorted(rows), dtype=np.int64)
    with pq.ParquetFile(path) as file:
        if name not in file.schema_arrow.names or not len(wanted):
            return {}
        start = 0
        for batch in _batches(file, [name]):
            here = wanted[(wanted >= start) & (wanted < start + len(batch))]
            column = batch.column(0).take(pa.array(here - start))
            cut = pc.utf8_slice_codeunits(column, offset, offset + limit).to_pylist()
            sizes = pc.utf8_length(column).to_pylist()
            for row, text, size in zip(here.tolist(), cut, sizes, strict=True):
                if text is not None:
                    pieces[row] = Piece(text, min(offset, size), size)
            start += len(batch)
            if start > wanted[-1]:
                break
    return pieces


def contains(path: Path, name: str, needle: str) -> Mask:
    """For each row, whether the text column `name` contains `needle`, any case.

    Raises:
        one of UNREADABLE.
    """
    with pq.ParquetFile(path) as file:
        if name not in file.schema_arrow.names:
            return np.zeros(file.metadata.num_rows, dtype=np.bool_)
        found = [
            pc.match_substring(batch.column(0), needle, ignore_case=True).fill_null(False).to_numpy(False)
            for batch in _batches(file, [name])
        ]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.bool_)


def _batches(file: pq.ParquetFile, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Batches of about BATCH_BYTES, by the size that the footer tells."""
    metadata = file.metadata
    num_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    bytes_per_row = max(1, num_bytes // max(1, metadata.num_rows))
    size = int(min(65_536, max(1, BATCH_BYTES // bytes_per_row)))
    yield from file.iter_batches(batch_size=size, columns=list(names), use_threads=False)


def _numbers(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns: dict[str, pa.Array] = {}
    for name, given in zip(batch.schema.names, batch.columns, strict=True):
        column = given.dictionary_decode() if pa.types.is_dictionary(given.type) else given
        if name in TEXTS:
            columns[NUM_CHARS + name] = pc.utf8_length(column)
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            columns[name] = pc.utf8_slice_codeunits(column, 0, PREVIEW_CHARS)
        elif pa.types.is_floating(column.type):
            doubles = column.cast(pa.float64())
            columns[name] = pc.if_else(pc.is_finite(doubles), doubles, None)
        else:
            columns[name] = column
    return pa.RecordBatch.from_pydict(columns)
