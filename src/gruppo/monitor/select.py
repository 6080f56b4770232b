"""Which completions of a round keep their per-token columns: whole groups, the telling ones first, within a budget.

Pure and deterministic: the same round at the same step gives the same rows. The order in which groups are taken:

    1 the largest |advantage|   2 one by lot   3 the widest gap between sampler and trainer   4 the longest completion
    5 another by lot   6 the shortest completion   7 the highest reward   8 the lowest reward   then all others by lot

The lot depends on step and group id alone, so over many steps every prompt gets its turn. A group that no longer fits
is passed over, smaller ones may still fit. Not here: what is recorded of the rows (token_table.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2s
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Candidates(NamedTuple):
    """The completions of a round on this rank, one entry each; NaN where a number is not known."""

    group_ids: Sequence[int]
    num_tokens: Sequence[int]
    advantages: Floats
    rewards: Floats
    gaps: Floats
    """Largest |trainer minus sampler| log-prob of the completion's tokens."""


def select_rows(candidates: Candidates, *, step: int, budget: int) -> list[int]:
    """Rows to keep, ascending; together they have at most `budget` tokens. Rows without tokens are never among them.

    If not even one group fits as a whole, single completions of the first group are taken, by |advantage|.
    """
    groups: dict[int, list[int]] = {}
    for row, group_id in enumerate(candidates.group_ids):
        if candidates.num_tokens[row]:
            groups.setdefault(group_id, []).append(row)
    if not groups:
        return []
    order = _order(groups, candidates, step)
    chosen = _fill([groups[group_id] for group_id in order], candidates.num_tokens, budget)
    if not chosen:
        size = np.nan_to_num(np.abs(candidates.advantages))
        single = sorted(groups[order[0]], key=lambda row: (-size[row], row))
        chosen = _fill([[row] for row in single], candidates.num_tokens, budget)
    return sorted(chosen)


def _order(groups: dict[int, list[int]], candidates: Candidates, step: int) -> list[int]:
    lot = sorted(groups, key=lambda group_id: blake2s(f"{step}:{group_id}".encode()).digest())
    lengths = np.asarray(candidates.num_tokens, dtype=np.float64)

    rows = [row for group_id in lot for row in groups[group_id]]
    place = np.repeat(np.arange(len(lot)), [len(groups[group_id]) for group_id in lot])

    def top(values: Floats) -> int:
        best = np.full(len(lot), -np.inf)
        np.fmax.at(best, place, values[rows])
        return lot[int(best.argmax())]

    first: list[Callable[[], Iterable[int]]] = [
        lambda: [top(np.abs(candidates.advantages))],
        lambda: lot[:1],
        lambda: [top(candidates.gaps)],
        lambda: [top(lengths)],
        lambda: lot[1:2],
        lambda: [top(-lengths)],
        lambda: [top(candidates.rewards)],
        lambda: [top(-candidates.rewards)],
        lambda: lot,
    ]
    return list(dict.fromkeys(group_id for pick in first for group_id in pick()))


def _fill(parts: Sequence[list[int]], num_tokens: Sequence[int], budget: int) -> list[int]:
    chosen: list[int] = []
    for part in parts:
        size = sum(num_tokens[row] for row in part)
        if size <= budget:
            chosen += part
            budget -= size
    return chosen
