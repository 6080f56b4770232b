"""Read what a run recorded: run, metrics, events, rollouts. Works during the run, after it, and after a crash.

The rule for metrics.jsonl, where attempts follow each other in one file: a line replaces the earlier line of its
step and split; a training line also takes away every line of earlier attempts at its step or later. A last line
that a kill cut short is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gruppo.monitor.step_folders import part_files

Line = dict[str, Any]
Kept = TypeVar("Kept")
Listing = TypeVar("Listing")
Result = TypeVar("Result")


def read_metrics(path: str | Path, split: str | None = "train") -> list[Line]:
    """The lines that count, by step. `path` is a run's folder or its metrics.jsonl; `split` None means all splits."""
    kept = _counting((line, line) for line in read_lines(_metrics_file(path)))
    chosen = (line for (_, name), line in kept.items() if split in (None, name))
    return sorted(chosen, key=lambda line: line["step"])


def each_metrics(path: str | Path) -> Iterator[Line]:
    """The lines that count, of all splits, one at a time: by step, training before evaluations.

    It holds only their places in the file (100,000 steps: some 20 MB), and reads the file twice.
    """
    file = _metrics_file(path)
    if not file.exists():
        return
    with file.open("rb") as lines:
        places = _counting((line, place) for place, line in _placed(lines))
        for (_, _), place in sorted(places.items(), key=lambda item: (item[0][0], item[0][1] != "train")):
            lines.seek(place)
            line = _parsed(lines.readline().decode("utf-8", errors="replace"))
            if line is not None:
                yield line


def _metrics_file(path: str | Path) -> Path:
    file = Path(path)
    return file / "metrics.jsonl" if file.is_dir() else file


def _placed(lines: BinaryIO) -> Iterator[tuple[int, Line]]:
    """(byte at which it begins, line) of all whole lines."""
    place = 0
    for raw in lines:
        line = _parsed(raw.decode("utf-8", errors="replace"))
        if line is not None:
            yield place, line
        place += len(raw)


def _counting(lines: Iterable[tuple[Line, Kept]]) -> dict[tuple[int, str], Kept]:
    """(step, split) -> what came with the line that counts (the rule is at the top of this file)."""
    kept: dict[tuple[int, str], tuple[int, Kept]] = {}
    last_steps: dict[int, int] = {}
    for line, thing in lines:
        step, split, attempt = line["step"], line["split"], line["attempt"]
        if split == "train" and any(last >= step for other, last in last_steps.items() if other != attempt):
            kept = {key: old for key, old in kept.items() if old[0] == attempt or key[0] < step}
            last_steps = {
                other: last if other == attempt else min(last, step - 1) for other, last in last_steps.items()
            }
        kept[step, split] = attempt, thing
        last_steps[attempt] = max(step, last_steps.get(attempt, step))
    return {key: thing for key, (_, thing) in kept.items()}


def read_events(output_dir: str | Path) -> list[Line]:
    """The events of all ranks, by time."""
    files = sorted(Path(output_dir).glob("events*.jsonl"))
    return sorted((line for file in files for line in read_lines(file)), key=lambda line: line["time"])


def read_rollouts(
    output_dir: str | Path, *, step: int | None = None, split: str | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """The completions of a run (or of one step, of one split), all ranks; superseded ones are elsewhere.

    Rows are ordered by step, split, group and sample.
    """
    return _read_parts(Path(output_dir) / "rollouts", step, split, columns)


def _read_parts(folder: Path, step: int | None, split: str | None, columns: Sequence[str] | None) -> pa.Table:
    return from_listing(lambda: part_files(folder, step), lambda files: read_files(files, split, columns))


def from_listing(list_files: Callable[[], Listing], read: Callable[[Listing], Result]) -> Result:
    """`read(list_files())`; on a fresh listing if a file moved away meanwhile. A resumed run does that at any moment.

    Raises FileNotFoundError if a file is listed again and still cannot be found (a dangling link).
    """
    tried: Listing | None = None
    missing: FileNotFoundError | None = None
    while True:
        files = list_files()
        if missing is not None and files == tried:
            raise missing
        try:
            return read(files)
        except FileNotFoundError as error:
            tried, missing = files, error


def read_files(files: Sequence[Path], split: str | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of these parts, and all columns that any of them has.

    Each is opened once: a part that is written anew while it is read is read whole, as it was or as it is.
    """
    if not files:
        return pa.table({})
    table = joined([_read_file(file) for file in files])
    if split is not None:
        table = table.filter(pc.equal(table["split"], split))
    table = table.sort_by([(name, "ascending") for name in ("step", "split", "group_id", "sample")])
    return table if columns is None else table.select(list(columns))


def _read_file(file: Path) -> pa.Table:
    with pq.ParquetFile(file) as part:
        return part.read()


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of these parts (one at least), and all columns that any of them has."""
    schema = merged_schema(table.schema for table in tables)
    return pa.concat_tables([_in_schema(table, schema) for table in tables])


def merged_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """All columns of all parts: `log_extra` may bring new ones, or turn one of numbers into text."""
    fields: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            known = fields.setdefault(field.name, field.type)
            fields[field.name] = known if known == field.type else pa.string()
    return pa.schema(list(fields.items()))


def _in_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def read_tokens(output_dir: str | Path, *, step: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """The per-token columns of a run (or of one round), all ranks; superseded ones are elsewhere.

    Rows are ordered by step, split, group and sample; their keys are those of `read_rollouts`.
    """
    return _read_parts(Path(output_dir) / "tokens", step, None, columns)


def read_lines(path: Path) -> list[Line]:
    """The JSON objects of a lines file; broken lines are left out. A file that is not there has no lines."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        line = _parsed(text)
        if line is not None:
            lines.append(line)
    return lines


def _parsed(text: str) -> Line | None:
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) else None
