"""Rows: the completions of one step in columns, as the checks see them. The names are those of rollouts/ (schema.py).

Rows are put in one order (group, sample), so nothing that is computed from them depends on how they arrived. A column
that is not there is None, never an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from gruppo.monitor.health.finding import MAX_EVIDENCE, RowId
from gruppo.monitor.health.stats import Floats
from gruppo.monitor.health.text_features import TEXT_COLUMNS, prompt_text, text_features
from gruppo.monitor.health.tricks import trick_rows
from gruppo.monitor.health.words import PaidWord, paid_words

Index = NDArray[np.int64]

REWARD, STATUS = "reward/", "reward_status/"


@final
class Rows:
    """Completions of one optimizer step, all ranks.

    Args:
        columns: name -> one value per completion; only `group_id` and `sample` are indispensable to name rows, and
            even they are made up where they are missing.
        step: the step they are recorded under.
    """

    def __init__(self, columns: Mapping[str, Sequence[Any]], step: int) -> None:
        self.step = step
        size = max((len(values) for values in columns.values()), default=0)
        given = {name: list(values) for name, values in columns.items() if len(values) == size}
        given.setdefault("group_id", [0] * size)
        given.setdefault("sample", list(range(size)))
        texts = given.get("completion", [""] * size)
        order = sorted(range(size), key=lambda row: (given["group_id"][row], given["sample"][row], texts[row] or ""))
        self._columns = {name: [values[row] for row in order] for name, values in given.items()}
        self._size = size
        self._tricks: dict[tuple[str, ...], dict[int, set[str]]] = {}

    def __len__(self) -> int:
        return self._size

    def column(self, name: str) -> list[Any] | None:
        """The values as recorded, or None. Text features are computed from the text where no column holds them."""
        if name in TEXT_COLUMNS and name not in self._columns:
            return self._features.get(name)
        return self._columns.get(name)

    def numbers(self, name: str) -> Floats | None:
        """The column as floats with NaN for null; None if it is missing or holds nothing but nulls."""
        values = self.column(name)
        if values is None:
            return None
        x = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        return None if np.isnan(x).all() else x

    def tricks(self, patterns: Sequence[str]) -> dict[int, set[str]]:
        """`trick_rows` of the completions; looked for once, though signals and D25 both ask."""
        key = tuple(patterns)
        if key not in self._tricks:
            self._tricks[key] = trick_rows(self.column("completion") or (), key)
        return self._tricks[key]

    def paid_words(self) -> dict[str, PaidWord] | None:
        """`paid_words` of the completions; None also where they or their rewards are not there."""
        completions, rewards = self.column("completion"), self.numbers("reward")
        if completions is None or rewards is None:
            return None
        return paid_words([text or "" for text in completions], self._prompts, rewards, self.groups)

    @cached_property
    def groups(self) -> list[Index]:
        """Row numbers of each group."""
        numbers: dict[Any, list[int]] = {}
        for row, group_id in enumerate(self._columns["group_id"]):
            numbers.setdefault(group_id, []).append(row)
        return [np.array(rows, dtype=np.int64) for rows in numbers.values()]

    @cached_property
    def reward_names(self) -> list[str]:
        """The reward functions, in the order of their columns."""
        return [name.removeprefix(REWARD) for name in self._columns if name.startswith(REWARD)]

    @cached_property
    def statuses(self) -> dict[str, list[str]]:
        """Reward function -> ok, none, nan, inf, error or timeout for each row."""
        return {n.removeprefix(STATUS): values for n, values in self._columns.items() if n.startswith(STATUS)}

    @cached_property
    def flat_groups(self) -> list[tuple[Index, bool]]:
        """Groups of at least two scored rows whose rewards are all equal, and whether they are solved ones.

        Solved: above the middle of the step's rewards; where all are equal, above 0 (as `groups/frac_solved`).
        """
        rewards = self.numbers("reward")
        if rewards is None:
            return []
        low, high = float(np.nanmin(rewards)), float(np.nanmax(rewards))
        middle = 0.0 if low == high else (low + high) / 2
        flat = []
        for group in self.groups:
            scored = rewards[group][~np.isnan(rewards[group])]
            if len(scored) >= 2 and scored.min() == scored.max():
                flat.append((group, bool(scored[0] > middle)))
        return flat

    def ids(self, rows: Iterable[int]) -> tuple[RowId, ...]:
        """Names of the first rows of `rows`, as evidence."""
        group_ids, samples = self._columns["group_id"], self._columns["sample"]
        chosen = list(rows)[:MAX_EVIDENCE]
        return tuple(RowId(self.step, int(group_ids[row] or 0), int(samples[row] or 0)) for row in chosen)

    @cached_property
    def _prompts(self) -> list[str]:
        """Plain text of the prompts."""
        formats = self._columns.get("prompt_format", ["text"] * self._size)
        prompts = [text or "" for text in self._columns.get("prompt", [""] * self._size)]
        pairs = list(zip(prompts, formats, strict=True))
        plain = {pair: prompt_text(*pair) for pair in dict.fromkeys(pairs)}
        return [plain[pair] for pair in pairs]

    @cached_property
    def _features(self) -> dict[str, list[Any]]:
        completions = self._columns.get("completion")
        if completions is None:
            return {}
        return text_features(
            self._prompts,
            [text or "" for text in completions],
            self._columns["group_id"],
            self._columns["sample"],
        )
