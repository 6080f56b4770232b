"""What a generation round says about itself: the metrics of steps 1 to 3, over all ranks. Pure.

TRL's names with TRL's meaning, then ours (`groups/...`, `pass@k/...`). Each is one value per round, so a logging
window averages rounds without weights, as TRL does; `num_tokens` is cumulative. Not here: loss metrics
(`algorithm.losses`), timing (`trainer`), and where numbers are written (`monitor/`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gruppo.algorithm.advantages import AdvantageTable, nan_std, pass_at_k, zero_variance_split
from gruppo.metrics import Last, Mean, Metric
from gruppo.types import Group, RewardTable

if TYPE_CHECKING:
    from gruppo.distributed.world import World


@dataclass(frozen=True, slots=True)
class RoundLengths:
    """Counts of every completion of a round, all ranks: (N,) tensors."""

    num_prompt_tokens_N: Tensor
    num_tokens_N: Tensor
    """All tokens of the completion, EOS included."""
    num_model_tokens_N: Tensor
    """Those that the model made (no tool results): TRL's completion length."""
    is_truncated_N: Tensor

    @classmethod
    def gather(cls, groups: Sequence[Group], world: World) -> RoundLengths:
        rows = [
            (
                len(group.prompt_ids(completion)),
                len(completion.token_ids),
                len(completion.token_ids) if completion.trained is None else sum(completion.trained),
                int(completion.is_truncated),
            )
            for group in groups
            for completion in group.completions
        ]
        table = world.gather_rows(torch.tensor(rows, dtype=torch.long, device=world.device).view(-1, 4)).cpu()
        return cls(table[:, 0], table[:, 1], table[:, 2], table[:, 3].bool())

    @property
    def num_processed(self) -> int:
        """Prompt and model tokens, the prompt counted once for each completion: TRL's `num_tokens` grows by it."""
        return int(self.num_prompt_tokens_N.sum() + self.num_model_tokens_N.sum())


def length_metrics(lengths: RoundLengths) -> dict[str, float]:
    """completions/*: lengths in tokens. `terminated` counts completions that ended by themselves (0 if none did)."""
    all_N = lengths.num_model_tokens_N.float()
    terminated_N = all_N[~lengths.is_truncated_N]
    if len(terminated_N) == 0:
        terminated_N = torch.zeros(1)
    return {
        "completions/mean_length": all_N.mean().item(),
        "completions/min_length": all_N.min().item(),
        "completions/max_length": all_N.max().item(),
        "completions/clipped_ratio": lengths.is_truncated_N.float().mean().item(),
        "completions/mean_terminated_length": terminated_N.mean().item(),
        "completions/min_terminated_length": terminated_N.min().item(),
        "completions/max_terminated_length": terminated_N.max().item(),
    }


def reward_metrics(rewards: RewardTable, advantages: AdvantageTable, group_size: int) -> dict[str, float]:
    """rewards/<name>/mean and /std, reward, reward_std, frac_reward_zero_std; groups/frac_solved and /frac_failed."""
    values: dict[str, float] = {}
    for column, name in enumerate(rewards.names):
        rewards_N = rewards.rewards_NF[:, column]
        values[f"rewards/{name}/mean"] = rewards_N.nanmean().item()
        values[f"rewards/{name}/std"] = nan_std(rewards_N).item()
    solved, failed = zero_variance_split(advantages.rewards_N, group_size)
    return values | {
        "reward": advantages.rewards_N.nanmean().item(),
        "reward_std": nan_std(advantages.rewards_N).item(),
        "frac_reward_zero_std": advantages.is_zero_std_N.float().mean().item(),
        "groups/frac_solved": solved,
        "groups/frac_failed": failed,
        **rewards.metrics,
    }


def pass_metrics(rewards: RewardTable, group_size: int) -> dict[str, float]:
    """pass@k/<name> for k = 2, 4, 8, ... up to G, of every reward function that gave only 0 and 1 in this round.

    A row without a reward counts as not correct. (pass@1 is `rewards/<name>/mean`.)
    """
    values: dict[str, float] = {}
    sizes = [2**power for power in range(1, int(math.log2(group_size)) + 1)] if group_size > 1 else []
    for column, name in enumerate(rewards.names):
        rewards_N = rewards.rewards_NF[:, column].nan_to_num(nan=0.0)
        if not bool(((rewards_N == 0) | (rewards_N == 1)).all()):
            continue
        num_correct_P = rewards_N.view(-1, group_size).sum(dim=1).int().tolist()
        for k in sizes:
            rates = [pass_at_k(num_correct, group_size, k) for num_correct in num_correct_P]
            values[f"pass@{k}/{name}"] = sum(rates) / len(rates)
    return values


def as_round_values(values: Mapping[str, float], *, num_tokens: float | None = None) -> dict[str, Metric]:
    """One unweighted value per name and round; `num_tokens` is cumulative and comes first, as in TRL's lines."""
    head: dict[str, Metric] = {} if num_tokens is None else {"num_tokens": Last(float(num_tokens))}
    return head | {name: Mean.of([value]) for name, value in values.items()}
