"""Which runs lie below a folder, and what they are called. Requests name runs by id; an id is looked up, never joined.

A run is a folder with run.json or metrics.jsonl. Links are not followed: what lies elsewhere is not served.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2s
from pathlib import Path

from gruppo.monitor.step_folders import step_places

MARKS = ("run.json", "metrics.jsonl")
MAX_DEPTH = 5
MAX_FOLDERS = 20_000
"""Folders looked into per search."""
MAX_RUNS = 1000


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run: its id in URLs, its name for people (the path below RUNS_DIR), its folder."""

    id: str
    name: str
    path: Path


def find_runs(root: Path) -> list[RunFolder]:
    """The runs at or below `root`, by name; at most MAX_RUNS. A run inside a run is not looked for."""
    if is_run(root):
        return [_run_folder(root, ".", root.resolve().name)]
    found = []
    for path in _folders_of_runs(root):
        name = path.relative_to(root).as_posix()
        found.append(_run_folder(path, name, name))
        if len(found) == MAX_RUNS:
            break
    return sorted(found, key=lambda run: run.name)


def is_run(path: Path) -> bool:
    return any(is_plain_file(path / mark) for mark in MARKS)


def is_plain_file(path: Path) -> bool:
    """A regular file, and not by way of a link."""
    return path.is_file() and not path.is_symlink()


def part_files(run: Path, kind: str, step: int) -> list[Path]:
    """The whole Parquet parts of a step by name; `kind` is `rollouts` or `tokens`."""
    return [part for folder in step_places(run / kind, step) for part in _parts_in(folder)]


def _parts_in(folder: Path) -> list[Path]:
    """What is still being written begins with a dot and is left out, links too."""
    if folder.is_symlink() or folder.parent.is_symlink():
        return []
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.endswith(".parquet")
                and not entry.name.startswith(".")
                and entry.is_file(follow_symlinks=False)
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(names)]


def _run_folder(path: Path, relative: str, name: str) -> RunFolder:
    word = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:60] or "run"
    return RunFolder(
        f"{word}-{blake2s(relative.encode('utf-8', 'surrogateescape'), digest_size=3).hexdigest()}", name, path
    )


def _folders_of_runs(root: Path) -> Iterator[Path]:
    waiting, num_seen = [(root, 0)], 0
    while waiting and num_seen < MAX_FOLDERS:
        folder, depth = waiting.pop(0)
        num_seen += 1
        if depth and is_run(folder):
            yield folder
        elif depth < MAX_DEPTH:
            waiting += [(path, depth + 1) for path in _subfolders(folder)]


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            ]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return [folder / name for name in sorted(names)]
