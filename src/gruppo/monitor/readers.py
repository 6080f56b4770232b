"""Read what a run recorded: run, metrics, events, rollouts. Works during the run, after it, and after a crash.

The rule for metrics.jsonl, where attempts follow each other in one file: a line replaces the earlier line of its
step and split; a training line also takes away every line of earlier attempts at its step or later. A last line
that a kill cut short is left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from gruppo.monitor.step_folders import step_of, step_places

Line = dict[str, Any]


def read_metrics(path: str | Path, split: str | None = "train") -> list[Line]:
    """The lines that count, by step. `path` is a run's folder or its metrics.jsonl; `split` None means all splits."""
    file = Path(path)
    kept: dict[tuple[int, str], Line] = {}
    for line in read_lines(file / "metrics.jsonl" if file.is_dir() else file):
        step, line_split = line["step"], line["split"]
        if line_split == "train":
            kept = {
                key: other for key, other in kept.items() if other["attempt"] == line["attempt"] or other["step"] < step
            }
        kept[step, line_split] = line
    chosen = (line for line in kept.values() if split is None or line["split"] == split)
    return sorted(chosen, key=lambda line: line["step"])


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
    files = _part_files(folder, step)
    while True:
        try:
            return _read_files(files, split, columns)
        except FileNotFoundError:  # a resumed run moves away what it makes anew, at any moment
            now = _part_files(folder, step)
            if now == files:
                raise
            files = now


def _part_files(folder: Path, step: int | None) -> list[str]:
    folders = folder.glob("step*") if step is None else step_places(folder, step)
    return sorted(
        str(path) for place in folders if step_of(place.name) is not None for path in place.glob("[!.]*.parquet")
    )


def _read_files(files: Sequence[str], split: str | None, columns: Sequence[str] | None) -> pa.Table:
    if not files:
        return pa.table({})
    chosen = None if split is None else pads.field("split") == split
    order = [(name, "ascending") for name in ("step", "split", "group_id", "sample")]
    table = pads.dataset(files, schema=_merged_schema(files)).to_table(filter=chosen).sort_by(order)
    return table if columns is None else table.select(list(columns))


def read_tokens(output_dir: str | Path, *, step: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """The per-token columns of a run (or of one round), all ranks; superseded ones are elsewhere.

    Rows are ordered by step, split, group and sample; their keys are those of `read_rollouts`.
    """
    return _read_parts(Path(output_dir) / "tokens", step, None, columns)


def _merged_schema(files: Sequence[str]) -> pa.Schema:
    """All columns of all parts: `log_extra` may bring new ones, or turn one of numbers into text."""
    fields: dict[str, pa.DataType] = {}
    for file in files:
        for field in pads.dataset(file).schema:
            known = fields.setdefault(field.name, field.type)
            fields[field.name] = known if known == field.type else pa.string()
    return pa.schema(list(fields.items()))


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
