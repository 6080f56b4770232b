"""What a reward function returned, read into one float and one status per completion.

Accepted: a list or another ordered iterable of numbers, booleans, None, numpy scalars and one-element tensors;
a tensor or array of one dimension. Everything else is an error that names the function and the row.

Not here: policy about failures that are data (`score.py`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Set
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch

from gruppo.errors import RewardError

Status = Literal["ok", "none", "nan", "inf", "error", "timeout"]

FLOAT32_MAX = float(torch.finfo(torch.float32).max)


def read_values(name: str, returned: Any, num_rows: int) -> tuple[list[float], list[Status]]:
    """One float (NaN where abstained) and one status (`ok`, `none`, `nan`, `inf`) per completion.

    Raises RewardError for a wrong type, a wrong length, or a cell that is no number.
    """
    cells = _as_list(name, returned)
    if len(cells) != num_rows:
        raise RewardError(_wrong_length(name, len(cells), num_rows))
    values = [_as_float(name, row, cell) for row, cell in enumerate(cells)]
    return values, [_status(cell, value) for cell, value in zip(cells, values, strict=True)]


def _as_list(name: str, returned: Any) -> list[Any]:
    if isinstance(returned, torch.Tensor | np.ndarray):
        if returned.ndim != 1:
            raise RewardError(
                f"Reward `{name}` returned a {type(returned).__name__} of shape {tuple(returned.shape)}; one value per "
                f"completion is a tensor of one dimension. Use `.flatten()` or `.squeeze(-1)`."
            )
        cells: list[Any] = returned.tolist()
        return cells
    if inspect.iscoroutine(returned):
        returned.close()
        raise RewardError(
            f"Reward `{name}` returned a coroutine, but is not itself declared async. Declare it `async def`, or "
            f"pass the async function directly."
        )
    if isinstance(returned, str | bytes | Mapping | Set) or not isinstance(returned, Iterable):
        shown = "None" if returned is None else f"{_shorten(returned)} of type {type(returned).__name__}"
        raise RewardError(f"Reward `{name}` returned {shown}; return a list with one float (or None) per completion.")
    return list(returned)


def _as_float(name: str, row: int, cell: Any) -> float:
    """The cell as float; None becomes NaN."""
    if cell is None:
        return math.nan
    if isinstance(cell, np.generic) or (isinstance(cell, torch.Tensor | np.ndarray) and math.prod(cell.shape) == 1):
        cell = cell.item()
    if not isinstance(cell, Real):  # booleans and numpy scalars are Real
        raise RewardError(
            f"Reward `{name}` returned {_shorten(cell)} of type {type(cell).__name__} for row {row}; each value must "
            f"be a number, or None to abstain."
        )
    number: Any = cell  # `Real` promises no `>` to the type checker
    if abs(number) > FLOAT32_MAX:  # also integers that no float can hold
        return math.inf if number > 0 else -math.inf
    return float(number)


def _status(cell: Any, value: float) -> Status:
    if cell is None:
        return "none"
    if math.isnan(value):
        return "nan"
    return "inf" if math.isinf(value) else "ok"


def _wrong_length(name: str, given: int, expected: int) -> str:
    where = f"row {given} onward is missing" if given < expected else f"{given - expected} too many"
    return (
        f"The reward function '{name}' returned {given} rewards, but {expected} were expected (one per completion; "
        f"{where}). Return exactly one value per completion, None where it has none."
    )


def _shorten(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
