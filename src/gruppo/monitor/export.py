"""A run's records as files for others: one table per kind, as CSV, JSON Lines or Parquet.

It reads through readers.py, one step at a time, so that memory does not grow with the run. What is shown on a page or
in a report is made elsewhere; the run's own files are already readable as they are (docs/reading.md).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gruppo.errors import DataError
from gruppo.monitor.export_choice import FORMATS, Choice, Format, Kind
from gruppo.monitor.files import write_whole
from gruppo.monitor.readers import (
    Line,
    from_listing,
    merged_schema,
    read_events,
    read_files,
    read_lines,
    read_metrics,
)
from gruppo.monitor.schema import LINE_FIELDS, to_json
from gruppo.monitor.server.findings import standing
from gruppo.monitor.server.status import read_run_json
from gruppo.monitor.step_folders import part_files, steps_among

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A cell of text that begins so is run by spreadsheets."""

_Listing = list[tuple[int, Path, list[Path]]]
"""Step, folder that holds it (the run, or a part of it that was superseded), parts."""


def export(run: Path, kind: Kind, path: Path, form: Format, choice: Choice) -> int:
    """Write one table; returns the number of its rows. Nothing is written if there are none.

    Rows are ordered by step. The run may be going on: what is exported is what was there at one moment, and parts that
    a resume moves away meanwhile are looked for where they are now. Raises DataError if the folder holds no run.
    """
    assert form in FORMATS[kind], f"{kind} as {form}"
    if not any((run / mark).exists() for mark in ("metrics.jsonl", "run.json")):
        raise DataError(f"{str(run)!r} holds no run: there is no metrics.jsonl in it. Give a run's output_dir.")
    if kind not in ("rollouts", "tokens"):
        return _write(_lines(run, kind, choice), path, form)
    return from_listing(
        lambda: _list_parts(run, kind, choice), lambda parts: _write(_tables(parts, choice), path, form)
    )


def _write(tables: _Tables, path: Path, form: Format) -> int:
    if not tables.schema:
        return 0
    num_rows = 0

    def write(temporary: Path) -> None:
        nonlocal num_rows
        try:
            num_rows = _WRITERS[form](temporary, tables)
        except FileNotFoundError:
            temporary.unlink(missing_ok=True)
            raise

    write_whole(path, write)
    if not num_rows:  # parts were there, but no row of them was asked for
        path.unlink()
    return num_rows


# -- tables: names and types of all columns, and the rows in batches


@dataclass(frozen=True, slots=True)
class _Tables:
    schema: Mapping[str, pa.DataType]
    batches: Callable[[], Iterator[list[Line]]]


def _lines(run: Path, kind: Kind, choice: Choice) -> _Tables:
    lines = _events(run, choice) if kind == "events" else _metrics(run, choice)
    chosen = [line for line in lines if choice.has(line.get("step"))]
    names = dict.fromkeys([name for name in LINE_FIELDS if kind == "metrics"])
    names |= dict.fromkeys(name for line in chosen for name in line)
    used = {name for line in chosen for name in line}
    schema = {name: _type_of(name, chosen) for name in names if name in used}
    return _Tables(schema, lambda: iter([chosen]))


def _metrics(run: Path, choice: Choice) -> list[Line]:
    if not choice.superseded:
        return read_metrics(run, choice.split)
    lines = [line for line in read_lines(run / "metrics.jsonl") if choice.split in (None, line.get("split"))]
    return sorted(lines, key=lambda line: (line["step"], line["attempt"]))


def _events(run: Path, choice: Choice) -> list[Line]:
    events = read_events(run)
    return events if choice.superseded else list(standing(events, read_run_json(run)["attempts"]))


def _type_of(name: str, lines: Sequence[Line]) -> pa.DataType:
    """Whole numbers for step and attempt, float64 for what is a number wherever it is known, text for the rest."""
    if name in ("step", "attempt"):
        return pa.int64()
    values = (line.get(name) for line in lines)
    known = [value for value in values if value is not None]
    is_number = all(isinstance(value, (int, float)) for value in known)
    return pa.float64() if is_number else pa.string()


def _list_parts(run: Path, kind: Kind, choice: Choice) -> _Listing:
    roots = [run, *sorted((run / "superseded").glob("a*"))] if choice.superseded else [run]
    return [
        (step, root, part_files(root / kind, step))
        for step, root in sorted((step, root) for root in roots for step in _steps(root / kind) if choice.has(step))
    ]


def _steps(folder: Path) -> list[int]:
    return steps_among(path.name for path in folder.glob("*"))


def _tables(parts: _Listing, choice: Choice) -> _Tables:
    schema = merged_schema(pq.read_schema(file) for _, _, files in parts for file in files)
    return _Tables(dict(zip(schema.names, schema.types, strict=True)), lambda: _rows_by_step(parts, choice))


def _rows_by_step(parts: _Listing, choice: Choice) -> Iterator[list[Line]]:
    for _, _, files in parts:
        yield [row for row in read_files(files).to_pylist() if choice.split in (None, row["split"])]


# -- formats


def _write_jsonl(path: Path, tables: _Tables) -> int:
    num_rows = 0
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        for rows in tables.batches():
            file.writelines(to_json(row) + "\n" for row in rows)
            num_rows += len(rows)
    return num_rows


def _write_csv(path: Path, tables: _Tables) -> int:
    num_rows = 0
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_cells(tables.schema))
        for rows in tables.batches():
            writer.writerows(_cells(row.get(name) for name in tables.schema) for row in rows)
            num_rows += len(rows)
    return num_rows


def _cells(values: Iterable[Any]) -> list[Any]:
    return [_cell(value) for value in values]


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (int, float)):
        return value
    text = value if isinstance(value, str) else to_json(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _write_parquet(path: Path, tables: _Tables) -> int:
    schema = pa.schema(list(tables.schema.items()))
    num_rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in tables.batches():
            columns = {name: [_as(kind, row.get(name)) for row in rows] for name, kind in tables.schema.items()}
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))
            num_rows += len(rows)
    return num_rows


def _as(kind: pa.DataType, value: Any) -> Any:
    return to_json(value) if kind == pa.string() and not isinstance(value, (str, type(None))) else value


_WRITERS: Mapping[Format, Callable[[Path, _Tables], int]] = {
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
}
