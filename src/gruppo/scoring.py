"""Step 2 as the loop sees it: this rank's groups in, the reward table of ALL ranks out, the same on every rank.

After this point nothing about rewards depends on ranks: every rank computes the same advantages and keeps its rows.
Not here: how reward functions are called (`rewards/`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gruppo.metrics import Mean
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
        """One row per completion of all ranks, groups contiguous. `seconds` are this rank's."""
        with self._clock.phase("score"):
            local = self._scorer.score(list(groups), trainer_state=trainer_state)
        device = self._world.device
        return RewardTable(
            names=local.names,
            rewards_NF=self._world.gather_rows(local.rewards_NF.to(device)).cpu(),
            statuses_NF=[[str(cell) for cell in row] for row in self._world.gather_objects(local.statuses_NF)],
            extras=self._extras(local),
            metrics=self._metrics(local),
            seconds=local.seconds,
        )

    def _extras(self, local: LocalRewards) -> dict[str, list[Any]]:
        # A function may log a column on some ranks only: all ranks must gather the same columns in the same order.
        names = sorted(set(self._world.gather_objects(list(local.extras))))
        missing = [None] * len(local.statuses_NF)
        return {name: self._world.gather_objects(local.extras.get(name, missing)) for name in names}

    def _metrics(self, local: LocalRewards) -> dict[str, float]:
        merged: dict[str, Mean] = {}
        for name, mean in self._world.gather_objects(sorted(local.metrics.items())):
            merged[name] = merged[name].merge(mean) if name in merged else mean
        return {name: merged[name].value() for name in sorted(merged)}
