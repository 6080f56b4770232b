"""Evaluation on held-out prompts: the same steps as training, without an update.

Every prompt gets `num_generations_eval` completions with the evaluation's own sampling settings (greedy too); rewards
and advantages as in training; a forward without gradient gives the loss and the entropy. Metrics are means over
batches, as TRL's are; `loss` is weighted by rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gruppo.algorithm.advantages import AdvantageTable
from gruppo.algorithm.losses import LossInputs, LossSettings, loss_metrics, policy_loss, row_weights
from gruppo.algorithm.masks import top_entropy
from gruppo.algorithm.reduce import RowCounts
from gruppo.algorithm.row_stats import RowStats
from gruppo.metrics import Mean, Stats
from gruppo.round_metrics import RoundLengths, length_metrics, pass_metrics, reward_metrics
from gruppo.types import Group, Prompt, RewardTable, SamplingParams, TrainBatch

if TYPE_CHECKING:
    from gruppo.collect import Collector
    from gruppo.distributed.world import World
    from gruppo.forwards import Forwards
    from gruppo.plan import BatchPlan
    from gruppo.scoring import GlobalScorer


@dataclass(slots=True)
class EvaluatedBatch:
    """One evaluation batch: this rank's groups, everybody's rewards."""

    groups: list[Group]
    rewards: RewardTable
    advantages: AdvantageTable


@dataclass(slots=True)
class Evaluation:
    """What an evaluation found. `metrics` have plain names (`reward`, `loss`, ...)."""

    metrics: dict[str, float]
    seconds: float
    num_prompts: int
    batches: list[EvaluatedBatch] = field(default_factory=list)


def whole_groups(batches: Sequence[EvaluatedBatch], world: World) -> list[Group]:
    """The groups of all ranks, in the order of the prompts. A group that spans ranks is one again."""
    groups: list[Group] = []
    for batch in batches:
        first = len(groups)
        for part in world.gather_objects(batch.groups):
            if len(groups) > first and groups[-1].prompt.id == part.prompt.id:
                groups[-1] = Group(part.prompt, groups[-1].completions + part.completions)
            else:
                groups.append(part)
    return groups


class Evaluator:
    """Holds what does not change from one evaluation to the next."""

    def __init__(
        self,
        *,
        rollout: Collector,
        scorer: GlobalScorer,
        advantage: Callable[[RewardTable, int], AdvantageTable],
        assemble: Callable[[Sequence[Group], AdvantageTable], TrainBatch],
        forwards: Forwards,
        loss_settings: LossSettings,
        max_completion_length: int,
        plan: BatchPlan,
        world: World,
    ) -> None:
        self._rollout, self._scorer, self._advantage, self._assemble = rollout, scorer, advantage, assemble
        self._forwards, self._world, self._plan = forwards, world, plan
        # The entropy bonus and the sampler correction belong to the update, not to the measured loss.
        self._loss, self._max_completion_length = loss_settings, max_completion_length

    def run(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        *,
        trainer_state: object,
        after_batch: Callable[[], None],
    ) -> Evaluation:
        """Evaluate all of `prompts`, in batches of `per_device_eval_batch_size` completions per device."""
        start = time.perf_counter()
        size, group_size = self._plan.eval_prompts_per_batch, self._plan.eval_group_size
        stats, batches = Stats(), []
        for first in range(0, len(prompts), size):
            groups = self._rollout.generate(prompts[first : first + size], group_size, sampling)
            rewards = self._scorer.score(groups, trainer_state=trainer_state)
            advantages = self._advantage(rewards, group_size)
            lengths = RoundLengths.gather(groups, self._world)
            values = length_metrics(lengths) | reward_metrics(rewards, advantages, group_size)
            values |= pass_metrics(rewards, group_size)
            loss, loss_values = self._measure(self._assemble(groups, advantages))
            num_rows = len(advantages.advantages_N)
            stats.add({"loss": Mean(loss * num_rows, num_rows)})
            stats.add({name: Mean.of([value]) for name, value in (values | loss_values).items()})
            batches.append(EvaluatedBatch(groups, rewards, advantages))
            after_batch()
        return Evaluation(stats.values(), time.perf_counter() - start, len(prompts), batches)

    @torch.no_grad()
    def _measure(self, batch: TrainBatch) -> tuple[float, dict[str, float]]:
        """The loss of the batch, over all ranks, and its per-token metrics."""
        batch = replace(batch, row_weights_N=self._weights(batch))
        if self._forwards.has_reference:
            batch = replace(batch, ref_logprobs_NT=self._forwards.reference(batch))
        rows = RowStats.unstack(self._world.gather_rows(self._loss_rows(batch).stack()))
        by_slice = loss_metrics(rows, torch.zeros(len(rows.loss), dtype=torch.long), self._loss)
        return rows.loss.sum().item(), {name: values[0] for name, values in by_slice.items()}

    def _weights(self, batch: TrainBatch) -> Tensor:
        """Row weights, counted over all ranks' rows as one slice: ranks may hold different numbers of them."""
        num_tokens_N = self._world.gather_rows(batch.num_trained_tokens_N)
        num_rows = len(num_tokens_N)
        counts = RowCounts(
            num_tokens_N=num_tokens_N,
            slice_ids_N=torch.zeros(num_rows, dtype=torch.long, device=num_tokens_N.device),
            num_rows_per_slice=num_rows,
            num_slices_in_window=1,
            num_slices_per_generation=1,
            num_generation_tokens=int(num_tokens_N.sum()),
            world_size=1,
            max_completion_length=self._max_completion_length,
            is_training=False,
        )
        first = self._world.rank * num_rows // self._world.size
        return row_weights(self._loss.loss_type, counts)[first : first + len(batch)]

    def _loss_rows(self, batch: TrainBatch) -> RowStats:
        assert batch.row_weights_N is not None
        forward = self._forwards.frozen(batch)
        assert forward.entropy_NT is not None
        entropy_mask_NT = None
        if self._loss.top_entropy_quantile < 1.0:
            entropy_mask_NT = top_entropy(
                forward.entropy_NT,
                batch.trained_NT,
                quantile_keep=self._loss.top_entropy_quantile,
                all_entropies=self._world.gather_rows(forward.entropy_NT[batch.trained_NT]),
            )
        inputs = LossInputs(
            logprobs_NT=forward.logprobs_NT,
            entropy_NT=forward.entropy_NT,
            advantages_N=batch.advantages_N,
            trained_NT=batch.trained_NT,
            row_weights_N=batch.row_weights_N,
            ref_logprobs_NT=batch.ref_logprobs_NT,
            sampler_logprobs_NT=batch.sampler_logprobs_NT,
            entropy_mask_NT=entropy_mask_NT,
        )
        return policy_loss(inputs, self._loss).rows
