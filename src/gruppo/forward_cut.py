"""How rows are cut into forwards: siblings together, as many tokens as the budget allows, half of it when memory ends.

A cut never changes the objective, because row weights are counted before the first forward. What it decides is time
and memory. Rows that cannot move the policy are set apart here, so that they are computed without a backward pass.

Not here: packing the rows of a forward (`policy.packing`), and running it (`learner`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gruppo.policy.packing import cut_by_tokens

if TYPE_CHECKING:
    from gruppo.types import TrainBatch

logger = logging.getLogger(__name__)

FULL_FORWARD: Final = {"cpu": 1024}
"""Tokens above which a larger packed forward was measured to gain nothing, by device type."""
_FULL_FORWARD_ELSEWHERE: Final = 8192


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one forward."""

    rows: list[int]
    has_gradient: bool = True


class ForwardCut:
    """The cut of a run.

    Args:
        rows_per_slice: TRL's micro-batch.
        is_packed: each prompt is computed once for its siblings; otherwise a row is as long as the longest.
        max_tokens: the user's budget; None: the tokens of a padded micro-batch, or fewer where more gain nothing.
        is_by_slice: the loss looks at whole slices (top-entropy mask, load balancing), so forwards are slices.
        skips_zero_advantage: a group whose advantages are all zero has no gradient, whatever its log-probs.
    """

    def __init__(
        self,
        *,
        rows_per_slice: int,
        is_packed: bool,
        max_tokens: int | None,
        is_by_slice: bool,
        skips_zero_advantage: bool,
    ) -> None:
        self._rows_per_slice, self._is_packed, self._max_tokens = rows_per_slice, is_packed, max_tokens
        self._is_by_slice = is_by_slice
        self._skips_zero_advantage = skips_zero_advantage and is_packed and not is_by_slice

    def for_training(self, batch: TrainBatch, slices: Sequence[int]) -> list[Part]:
        """All rows of an optimizer step's segment; `slices` are their micro-steps.

        At least one part has a gradient, so that the optimizer finds (zero) gradients and moves by its momentum.
        """
        if self._is_by_slice or (self._max_tokens is None and not self._is_packed):
            return [Part(rows) for rows in self._by_slice(sorted(range(len(batch)), key=lambda row: slices[row]))]
        idle = self._idle(batch)
        moving = [Part(rows) for rows in self._cut(batch, [row for row in range(len(batch)) if row not in idle])]
        still = [Part(rows, has_gradient=False) for rows in self._cut(batch, sorted(idle))]
        return moving + still if moving else [Part(part.rows, number == 0) for number, part in enumerate(still)]

    def without_gradient(self, batch: TrainBatch, rows: Sequence[int]) -> list[list[int]]:
        """For old and reference log-probs."""
        if self._max_tokens is None and not self._is_packed:
            return self._by_slice(list(rows))
        return self._cut(batch, rows)

    def halve(self, batch: TrainBatch) -> bool:
        """Memory was not enough for `batch`: forwards shall have half as many tokens. False: they cannot."""
        if self._is_by_slice:
            return False
        parts = self.without_gradient(batch, range(len(batch)))
        if all(len(rows) == 1 for rows in parts):
            return False
        self._max_tokens = max(1, max(self._size(batch, rows) for rows in parts) // 2)
        logger.warning("Out of memory: forwards go on with at most %d tokens; the loss is the same.", self._max_tokens)
        return True

    def _idle(self, batch: TrainBatch) -> set[int]:
        if not self._skips_zero_advantage:
            return set()
        advantages = batch.advantages_N.tolist()
        moving = {group for group, advantage in zip(batch.group_ids, advantages, strict=True) if advantage != 0.0}
        return {row for row, group in enumerate(batch.group_ids) if group not in moving}

    def _by_slice(self, rows: list[int]) -> list[list[int]]:
        size = self._rows_per_slice
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _cut(self, batch: TrainBatch, rows: Sequence[int]) -> list[list[int]]:
        prompts = [len(batch.prompt_ids[row]) for row in rows]
        completions = [len(batch.completion_ids[row]) for row in rows]
        longest = max(map(sum, zip(prompts, completions, strict=True)), default=1)
        groups = [batch.group_ids[row] for row in rows]
        if self._is_packed:
            budget = self._max_tokens or self._default(batch, prompts, completions, groups, longest)
        else:
            # A padded row is a family of its own: its prompt is counted, and as if it were the longest of all.
            assert self._max_tokens is not None
            budget, groups = self._max_tokens, list(range(len(rows)))
            prompts, completions = [0] * len(rows), [longest] * len(rows)
        parts = cut_by_tokens(prompts, completions, groups, budget)
        return [[rows[place] for place in part] for part in parts]

    def _default(
        self, batch: TrainBatch, prompts: list[int], completions: list[int], groups: list[int], longest: int
    ) -> int:
        """No more than TRL would hold, and no more than helps, but whole groups: splitting one repeats its prompt."""
        families: dict[int, int] = {}
        for prompt, completion, group in zip(prompts, completions, groups, strict=True):
            families[group] = families.get(group, prompt) + completion
        full = FULL_FORWARD.get(batch.trained_NT.device.type, _FULL_FORWARD_ELSEWHERE)
        return min(self._rows_per_slice * longest, max(full, *families.values(), 1))

    def _size(self, batch: TrainBatch, rows: list[int]) -> int:
        lengths = [(len(batch.prompt_ids[row]), len(batch.completion_ids[row])) for row in rows]
        if not self._is_packed:
            return len(rows) * max(map(sum, lengths))
        prompts = {batch.group_ids[row]: prompt for row, (prompt, _) in zip(rows, lengths, strict=True)}
        return sum(prompts.values()) + sum(completion for _, completion in lengths)
