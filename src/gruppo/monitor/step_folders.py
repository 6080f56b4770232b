"""The folders that hold one step's parts: what they are called, and which there are. Nothing here opens a part.

They are not called `step=12`, which pandas, pyarrow and DuckDB would take for a second column `step`, of another type
than the one inside the parts. Folders of that name are read where a run has them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_PREFIXES = ("step-", "step=")
_MAX_DIGITS = 12


def step_folder(kind: Path, step: int) -> Path:
    """Where the parts of a step are written; `kind` is a run's folder `rollouts` or `tokens`."""
    return kind / f"step-{step:06d}"


def step_places(kind: Path, step: int) -> list[Path]:
    """Where parts of a step may lie."""
    return [step_folder(kind, step), kind / f"step={step:06d}"]


def step_of(name: str) -> int | None:
    """The step whose folder is called so; None if it is no such folder."""
    digits = name[5:]  # no pattern: a long run has 100,000 such names, and a page that follows it asks every second
    is_folder = name[:5] in _PREFIXES and digits.isdecimal() and len(digits) <= _MAX_DIGITS
    return int(digits) if is_folder else None


def steps_among(names: Iterable[str]) -> list[int]:
    """The steps of the folders among `names`, ascending, each once."""
    return sorted({step for name in names if (step := step_of(name)) is not None})


def part_files(kind: Path, step: int | None = None) -> list[Path]:
    """The whole parts of a step (None: of all) by path. What is being written begins with a dot and is left out.

    Folders may come and go meanwhile: one that is not there has no parts.
    """
    places = step_places(kind, step) if step is not None else [kind / n for n in _names(kind) if step_of(n) is not None]
    return sorted(
        place / name for place in places for name in _names(place) if name.endswith(".parquet") and name[0] != "."
    )


def _names(folder: Path) -> list[str]:
    try:  # no question first whether it is there: it may move away between question and look
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
