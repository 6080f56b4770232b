"""The folders that hold one step's parts: what they are called, and which there are. Nothing here opens a part.

They are not called `step=12`, which pandas, pyarrow and DuckDB would take for a second column `step`, of another type
than the one inside the parts. Folders of that name are read where a run has them.
"""

from __future__ import annotations

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
