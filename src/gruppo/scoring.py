"""Step 2 as the loop sees it: this rank's groups in, the reward table of ALL ranks out, the same on every rank.

Everything travels in one exchange, a failure too: a reward that raises on one rank ends the step on all of them.
After this point nothing about rewards depends on ranks: every rank computes the same advantages and keeps its rows.
Not here: how reward functions are called (`rewards/`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from gruppo.errors import RewardError
from gruppo.metrics import Mean
from gruppo.monitor.schema import plain
from gruppo.types import Group, RewardTable

if TYPE_CHECKING:
    from gruppo.clock import Clock
    from gruppo.distributed.world import World
    from gruppo.rewards.protocol import RewardSource
    from gruppo.rewards.score import LocalRewards, Scorer


class GlobalScorer:
    """Runs the reward functions on this rank's completions and gathers what they said."""

    def __init__(self, scorer: Scorer, world: World, clock: Clock) -> None:
        self._scorer, self._world, self._clock = scorer, world, clock

    @property
    def sources(self) -> list[RewardSource]:
        """The reward functions and models, in the order of the table's columns."""
        return self._scorer.sources

    @property
    def weights(self) -> list[float]:
        return self._scorer.weights

    def close(self) -> None:
        """End the thread of async rewards; the next `score` starts a new one."""
        self._scorer.close()

    def score(self, groups: Sequence[Group], *, trainer_state: Any = None) -> RewardTable:
        """One row per completion of all ranks, groups contiguous. `seconds` are this rank's.

        Raises RewardError; on several ranks all of them do, whichever it was that failed.
        """
        mine = self._world.rank
        ranks = self._world.gather_outcomes(
            lambda: self._local(groups, trainer_state), RewardError, "Scoring completions"
        )
        return RewardTable(
            names=ranks[mine].names,
            rewards_NF=torch.cat([local.rewards_NF for local in ranks]),
            statuses_NF=[[str(cell) for cell in row] for local in ranks for row in local.statuses_NF],
            extras=_extras(ranks),
            metrics=_metrics(ranks),
            seconds=ranks[mine].seconds,
        )

    def _local(self, groups: Sequence[Group], trainer_state: Any) -> LocalRewards:
        with self._clock.phase("score"):
            local = self._scorer.score(list(groups), trainer_state=trainer_state)
        if self._world.size > 1:  # whatever a user logs must be able to travel: as the record will say it
            local.extras = {str(name): plain(values) for name, values in local.extras.items()}
        return local


def _extras(ranks: Sequence[LocalRewards]) -> dict[str, list[Any]]:
    """A function may log a column on some ranks only: it has no values on the others."""
    names = sorted({name for local in ranks for name in local.extras})
    return {
        name: [value for local in ranks for value in local.extras.get(name, [None] * len(local.statuses_NF))]
        for name in names
    }


def _metrics(ranks: Sequence[LocalRewards]) -> dict[str, float]:
    merged: dict[str, Mean] = {}
    for name, mean in (item for local in ranks for item in sorted(local.metrics.items())):
        merged[name] = merged[name].merge(mean) if name in merged else mean
    return {name: merged[name].value() for name in sorted(merged)}
