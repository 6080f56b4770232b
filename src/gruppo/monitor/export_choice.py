"""What can be exported of a run, as what, and which rows of it. How it is done is in export.py.

Light: the command line's help imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["metrics", "rollouts", "events", "tokens"]
Format = Literal["csv", "jsonl", "parquet"]

KINDS: tuple[Kind, ...] = get_args(Kind)

FORMATS: Mapping[Kind, tuple[Format, ...]] = {
    "metrics": ("csv", "jsonl", "parquet"),
    "rollouts": ("parquet", "jsonl", "csv"),
    "events": ("jsonl",),
    "tokens": ("parquet", "jsonl"),
}
"""What each kind can be written as, the usual one first. Events share no columns; tokens are lists."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows: steps `first` to `last`, both included; `split` None means all.

    `superseded`: also what later attempts made anew.
    """

    first: int | None = None
    last: int | None = None
    split: str | None = None
    superseded: bool = False

    def has(self, step: object) -> bool:
        """Whether a row of this step belongs to it; a row without a step does, unless steps were asked for."""
        if not isinstance(step, int):
            return self.first is None and self.last is None
        return (self.first is None or step >= self.first) and (self.last is None or step <= self.last)
