"""Filters on completions: `column:op:value`, checked against what the parts hold. A table, not a language."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gruppo.monitor.server.parts import NUM_CHARS, TEXTS, Mask, contains
from gruppo.monitor.server.refusal import bad_parameter
from gruppo.monitor.server.rounds import numbers, values

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}

_FILTER = re.compile(r"(.{1,200}?):(eq|ne|lt|le|gt|ge|has|null):(.*)", re.DOTALL)


class Filter(NamedTuple):
    """One condition on a row. Rows without a value meet only `null:true`."""

    column: str
    op: str
    value: str


def parse_filters(given: Sequence[str]) -> list[Filter]:
    """Raises:
    Refusal: one is not of the form column:op:value, or compares a long text.
    """
    filters = []
    for text in given:
        match = _FILTER.fullmatch(text)
        if match is None:
            raise bad_parameter(
                "filter", text[:100], f"write column:op:value, with op of {', '.join(COMPARE)}, has, null"
            )
        made = Filter(match[1], match[2], match[3])
        if made.column in TEXTS and made.op not in ("has", "null"):
            raise bad_parameter("filter", text[:100], f"{made.column} can be asked with has and null only")
        if made.op == "null" and made.value not in ("true", "false"):
            raise bad_parameter("filter", text[:100], "null is followed by true or false")
        filters.append(made)
    return filters


def rows_that_meet(path: Path, table: pa.Table, filters: Sequence[Filter]) -> Mask:
    """Which rows of a part meet all filters. `table` is its table of numbers.

    Raises:
        Refusal: a number was compared with a text.
        parts.UNREADABLE: the part could not be read.
    """
    kept = np.ones(table.num_rows, dtype=np.bool_)
    for one in filters:
        kept &= _meets(path, table, one)
    return kept


def _meets(path: Path, table: pa.Table, one: Filter) -> Mask:
    name = NUM_CHARS + one.column if one.column in TEXTS else one.column
    if one.op == "null":
        is_null = np.array([value is None for value in values(table, name)], dtype=np.bool_)
        return is_null if one.value == "true" else ~is_null
    if one.column in TEXTS:
        return contains(path, one.column, one.value)
    if name not in table.column_names:
        return np.zeros(table.num_rows, dtype=np.bool_)
    if pa.types.is_string(table[name].type):
        return _text_meets(table[name], one)
    return _number_meets(table, one)


def _text_meets(column: pa.ChunkedArray, one: Filter) -> Mask:
    if one.op == "has":
        found = pc.match_substring(column, one.value, ignore_case=True).fill_null(False)
        return np.asarray(found.to_numpy(), dtype=np.bool_)
    compare = COMPARE[one.op]
    return np.array([value is not None and compare(value, one.value) for value in column.to_pylist()], dtype=np.bool_)


def _number_meets(table: pa.Table, one: Filter) -> Mask:
    if one.op == "has":
        raise bad_parameter("filter", f"{one.column}:has:{one.value}"[:100], f"{one.column} is not a text")
    try:
        wanted = {"true": 1.0, "false": 0.0}[one.value] if one.value in ("true", "false") else float(one.value)
    except ValueError:
        raise bad_parameter("filter", one.value[:100], f"{one.column} is a number: compare it with one") from None
    given = numbers(table, one.column)
    return np.asarray(COMPARE[one.op](given, wanted) & ~np.isnan(given), dtype=np.bool_)
