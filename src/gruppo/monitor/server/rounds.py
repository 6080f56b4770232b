"""Rounds: which steps have parts, and the rows of a round as one table of numbers. The caches are bounded.

A part may appear or move away while it is read (a resumed run does that): what cannot be read is left out and counted.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, final

import numpy as np
import pyarrow as pa

from gruppo.monitor.server.buckets import Floats, Ints
from gruppo.monitor.server.folders import part_files
from gruppo.monitor.server.lru import Lru
from gruppo.monitor.server.parts import NO_ROWS, PART, ROW, UNREADABLE, Piece, read_numbers, read_texts
from gruppo.monitor.server.refusal import not_found
from gruppo.monitor.step_folders import steps_among

MAX_PART_BYTES = 64 * 2**20
"""All cached tables of numbers together."""

MAX_STEP_BYTES = 16 * 2**20
"""All cached lists of steps together."""

MAX_BACK = 100
"""How many folders are looked through for the round that fed a step."""

TRAIN = "train"

ORDER = ("split", "group_id", "sample")

REWARD, STATUS, EXTRA = "reward/", "reward_status/", "extra/"


class CompletionId(NamedTuple):
    """Which completion: the columns that name it. As text `12.7.3.train`."""

    step: int
    group_id: int
    sample: int
    split: str

    def __str__(self) -> str:
        return f"{self.step}.{self.group_id}.{self.sample}.{split_word(self.split)}"


class Round(NamedTuple):
    """The rows of a step, all ranks, by split, group and sample; and how many parts could not be read."""

    table: pa.Table
    num_unreadable: int

    @property
    def reward_names(self) -> list[str]:
        return [name.removeprefix(REWARD) for name in self.table.column_names if name.startswith(REWARD)]

    def of(self, split: str | None) -> Round:
        """The rows of one split; None means all."""
        if split is None or "split" not in self.table.column_names:
            return self
        is_wanted = np.array([value == split for value in self.table["split"].to_pylist()], dtype=np.bool_)
        return Round(self.table.filter(pa.array(is_wanted)), self.num_unreadable)

    def splits(self) -> list[str]:
        return sorted({str(split) for split in values(self.table, "split")})


@final
class Rounds:
    """Reads rounds of any run. Threads may share it."""

    def __init__(self, max_part_bytes: int = MAX_PART_BYTES) -> None:
        self._parts: Lru[tuple[str, int, int], pa.Table] = Lru(max_part_bytes, lambda table: int(table.nbytes))
        self._steps: Lru[tuple[str, str], StepList] = Lru(MAX_STEP_BYTES, lambda steps: steps.num_bytes())

    def steps(self, run: Path, kind: str = "rollouts") -> Ints:
        """The steps that have a folder, ascending."""
        return self._steps.get((str(run), kind), lambda: StepList(run / kind)).steps()

    def read(self, run: Path, step: int, split: str | None = None) -> Round:
        """The round stored under `step`; empty if there is none."""
        tables, num_unreadable = [], 0
        for path in part_files(run, "rollouts", step):
            table = self.part(path)
            if table is None:
                num_unreadable += path.exists()  # what moved away meanwhile was superseded
            elif table.num_rows:
                tables.append(table)
        if not tables:
            return Round(NO_ROWS, num_unreadable)
        table = concatenated(tables)
        order = [(name, "ascending") for name in ORDER if name in table.column_names]
        return Round(table.sort_by(order) if order else table, num_unreadable).of(split)

    def part(self, path: Path) -> pa.Table | None:
        """The numbers of one part; None if it cannot be read."""
        try:  # the boundary to files of others: damaged and vanished ones are counted, not fatal
            stat = path.stat()
            return self._parts.get((str(path), stat.st_mtime_ns, stat.st_size), lambda: read_numbers(path))
        except UNREADABLE:
            return None

    def at(self, run: Path, step: int, split: str) -> int:
        """The step under which the round that fed `step` is stored: the latest at or before it.

        In training that is the latest with rows to train on: where a round feeds several steps, an evaluation in
        between has a folder of its own. An evaluation is looked for at the latest folder only.

        Raises:
            Refusal: there is none.
        """
        steps = self.steps(run)
        before = steps[: int(np.searchsorted(steps, step, side="right"))][::-1]
        if not len(before):
            raise not_found(f"No completions were recorded at step {step} or before.")
        if split != TRAIN:
            return int(before[0])
        for stored in before[:MAX_BACK].tolist():
            found = self.read(run, stored, split)
            if found.table.num_rows or found.num_unreadable:
                return int(stored)
        raise not_found(f"No completions to train on were recorded at step {step} or shortly before.")

    def around(self, run: Path, step: int) -> tuple[int | None, int | None]:
        """The steps before and after one that have rollouts."""
        steps = self.steps(run)
        before, after = steps[steps < step], steps[steps > step]
        return (int(before[-1]) if len(before) else None), (int(after[0]) if len(after) else None)

    @property
    def num_bytes(self) -> int:
        return self._parts.num_bytes + self._steps.num_bytes


@final
class StepList:
    """The steps that have a folder below a folder. Listed again when the folder changed."""

    FRESH_NS = 2_000_000_000
    """A folder that changed this lately may change again without a new time stamp."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, Lock()
        self._steps: Ints = np.zeros(0, np.int64)
        self._seen_ns = -1

    def steps(self) -> Ints:
        with self._lock:
            try:
                changed_ns = self._folder.lstat().st_mtime_ns
                if changed_ns != self._seen_ns:
                    listed = self._list()
                    is_fresh = os.stat(self._folder).st_mtime_ns != changed_ns or _age_ns(changed_ns) < self.FRESH_NS
                    self._steps, self._seen_ns = listed, -1 if is_fresh else changed_ns
            except (FileNotFoundError, NotADirectoryError):
                self._steps, self._seen_ns = np.zeros(0, np.int64), -1
            return self._steps

    def num_bytes(self) -> int:
        return int(self._steps.nbytes) + 100

    def _list(self) -> Ints:
        with os.scandir(self._folder) as entries:
            return np.array(steps_among(entry.name for entry in entries), dtype=np.int64)


def concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of all columns; a column that is text in one part and numbers in another is text (as in readers.py)."""
    kinds: dict[str, pa.DataType] = {}
    for table in tables:
        for field in table.schema:
            known = kinds.setdefault(field.name, field.type)
            kinds[field.name] = known if known == field.type else pa.string()
    schema = pa.schema(list(kinds.items()))
    return pa.concat_tables([_cast(table, schema) for table in tables])


def values(table: pa.Table, name: str) -> list[Any]:
    """The column as Python values; nulls if the part has no such column."""
    return list(table[name].to_pylist()) if name in table.column_names else [None] * table.num_rows


def texts_of(table: pa.Table, name: str, limit: int) -> list[Piece | None]:
    """The first `limit` code points of a text column for each row of a table of numbers."""
    wanted: dict[str, list[int]] = {}
    places = list(zip(values(table, PART), values(table, ROW), strict=True))
    for part, row in places:
        wanted.setdefault(part, []).append(row)
    pieces: dict[str, dict[int, Piece]] = {}
    for part, rows in wanted.items():
        try:  # the same boundary: a part that moved away between its numbers and its texts has no texts
            pieces[part] = read_texts(Path(part), name, rows, limit)
        except UNREADABLE:
            pieces[part] = {}
    return [pieces[part].get(row) for part, row in places]


def numbers(table: pa.Table, name: str) -> Floats:
    """The column as floats; NaN for null, and for a column that is not there or not of numbers."""
    given = [value if isinstance(value, (int, float)) else None for value in values(table, name)]
    return np.array(given, dtype=np.float64)


def ids_of(table: pa.Table) -> list[str]:
    columns = (values(table, name) for name in ("step", "group_id", "sample", "split"))
    return [str(CompletionId(*row)) for row in zip(*columns, strict=True)]


def split_word(split: str) -> str:
    """The split as an id can hold it: itself, or `~` and hexadecimal digits where it holds more than that allows."""
    is_plain = re.fullmatch(r"\w[\w-]{0,99}", split or "", re.ASCII)
    return split if is_plain else "~" + str(split).encode("utf-8", "replace")[:99].hex()


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _age_ns(changed_ns: int) -> int:
    return time.time_ns() - changed_ns
