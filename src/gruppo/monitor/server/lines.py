"""Whole lines of growing files, by byte offset: what is new since last time, or the last few. JSON objects out.

A last line without its newline is not there yet. Broken lines (cut by a kill) are passed over. Lines end with \\n
alone: other separators may stand inside a JSON text.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zlib import crc32

Line = dict[str, Any]

MAX_LINE_BYTES = 8 * 2**20
"""A longer line is passed over."""


class Chunk(NamedTuple):
    """New lines with the offset after each; the offset to go on from; whether nothing whole is left behind it."""

    lines: list[tuple[bytes, int]]
    offset: int
    is_end: bool


def read_new(path: Path, offset: int, max_bytes: int) -> Chunk:
    """Whole lines from `offset` on, about `max_bytes` of them. No file: nothing new."""
    try:
        with open_plain(path) as file:
            file.seek(offset)
            data = file.read(max_bytes)
            is_end = len(data) < max_bytes
            if not is_end and b"\n" not in data:
                data += file.read(MAX_LINE_BYTES)
    except FileNotFoundError:
        return Chunk([], offset, True)
    whole, newline, _ = data.rpartition(b"\n")
    if not newline:
        # Either the writer is in the midst of a line, or the line is too long to be one of ours: step over its bytes.
        is_monster = len(data) > MAX_LINE_BYTES
        return Chunk([], offset + len(data) * is_monster, not is_monster)
    lines = []
    for line in whole.split(b"\n"):
        offset += len(line) + 1
        lines.append((line, offset))
    return Chunk(lines, offset, is_end)


def read_last(path: Path, max_bytes: int) -> list[Line]:
    """The objects of the last whole lines within `max_bytes` of the end, oldest first. No file: none."""
    try:
        with open_plain(path) as file:
            size = file.seek(0, 2)
            start = max(0, size - max_bytes)
            file.seek(start)
            data = file.read(max_bytes)
    except FileNotFoundError:
        return []
    if start:
        data = data.partition(b"\n")[2]
    whole = data.rpartition(b"\n")[0]
    return list(parsed(whole.split(b"\n")))


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file to read.

    Raises:
        FileNotFoundError: there is none, or a link, a pipe or a folder stands in its place.
    """
    try:
        # Not blocking: a pipe would wait for its writer for ever.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise FileNotFoundError(f"{path.name}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FileNotFoundError(f"{path.name}: not a regular file")
    return os.fdopen(file, "rb")


def parsed(lines: list[bytes]) -> Iterator[Line]:
    for text in lines:
        line = parse(text)
        if line is not None:
            yield line


def parse(text: bytes) -> Line | None:
    """The JSON object of a line, or None. NaN and infinities, however written, become None."""
    return _decoded(text, _STRICT)


def parse_fast(text: bytes) -> Line | None:
    """The same in half the time, but a number that is too large for a float (1e999) becomes an infinity."""
    return _decoded(text, _FAST)


def _decoded(text: bytes, decoder: json.JSONDecoder) -> Line | None:
    try:
        line = decoder.decode(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):  # not JSON; a number of thousands of digits; nesting that is no record of ours
        return None
    return line if isinstance(line, dict) else None


def fingerprint(path: Path) -> str:
    """A word that stays the same while a file is appended to, and changes when it is exchanged: from its first line."""
    try:
        with open_plain(path) as file:
            first = file.readline(4096)
    except FileNotFoundError:
        return "0"
    return f"{crc32(first):x}" if first.endswith(b"\n") or len(first) == 4096 else "0"


def _none(_: str) -> None:
    return None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


_STRICT = json.JSONDecoder(parse_constant=_none, parse_float=_finite)
_FAST = json.JSONDecoder(parse_constant=_none)
