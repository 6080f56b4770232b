"""Where a run stands: epoch, generation round, and how much of the round is used up. Saved in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gruppo.plan import BatchPlan


@dataclass(slots=True)
class Position:
    """Counts from 0. `segment` counts the parts of the present round that are done (see `plan.Segment`)."""

    epoch: int = 0
    round_in_epoch: int = 0
    round: int = 0
    """Over the whole run: with the seed it decides every random number of the round."""
    segment: int = 0

    def next_round(self) -> None:
        self.round_in_epoch += 1
        self.round += 1
        self.segment = 0

    def next_epoch(self, plan: BatchPlan) -> None:
        """The rest of the epoch, if any, is skipped."""
        self.epoch += 1
        self.round = self.epoch * plan.rounds_per_epoch
        self.round_in_epoch = self.segment = 0

    def epochs_done(self, plan: BatchPlan) -> float:
        """transformers' `state.epoch`: epochs, and the share of micro-steps done of the present one."""
        done = sum(len(segment.micro_steps) for segment in plan.segments(self.round_in_epoch)[: self.segment])
        return self.epoch + (self.round_in_epoch * plan.slices_per_round + done) / plan.slices_per_epoch

    def state(self) -> dict[str, int]:
        return asdict(self)
