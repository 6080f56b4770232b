"""Advantages: how much better a completion is than its siblings. Also what a reward table says about a batch.

All functions take the rows of ALL ranks, groups contiguous, and are pure; every rank computes the same table and
keeps its rows. Not here: running reward functions, masks, anything per token.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gruppo.errors import ConfigError

SCALE_EPSILON = 1e-4
"""Added to a standard deviation before dividing by it, as in TRL."""

Scale = Literal["group", "batch", "none"]
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]


@dataclass(frozen=True, slots=True)
class AdvantageTable:
    """One entry per completion, all ranks. NaN rewards mark completions that nobody could score."""

    advantages_N: Tensor
    """0 for unscorable rows, and exactly 0 for a group whose rewards are all equal."""
    rewards_N: Tensor
    """Weighted sum over reward functions, before any normalisation; NaN where all functions abstained."""
    group_mean_N: Tensor
    """Mean of `rewards_N` over the row's group, NaN left out."""
    group_std_N: Tensor
    """Standard deviation (ddof 1) of `rewards_N` over the row's group; NaN if fewer than two rows are scored."""
    is_zero_std_N: Tensor
    """bool. The standard deviation that scaling looks at is ~0: the group's own for `group` and `none`, the whole
    batch's for `batch` and for `normalize_then_sum` (TRL's `frac_reward_zero_std` is its mean)."""
    is_unscorable_N: Tensor
    """bool. Every reward function abstained."""


def group_relative(
    rewards_NF: Tensor,
    reward_weights_F: Tensor,
    *,
    group_size: int,
    scale: Scale,
    aggregation: Aggregation,
) -> AdvantageTable:
    """Advantages relative to the group (GRPO, arXiv 2402.03300), by TRL's `scale_rewards` and
    `multi_objective_aggregation`.

    `sum_then_normalize`: r = sum_k w_k r_k;  A = (r - group mean) / (std + 1e-4), where std is the group's
    (`group`), the batch's (`batch`, arXiv 2508.08221), or A is not divided (`none`, Dr. GRPO, arXiv 2503.20783).
    `normalize_then_sum` (GDPO, arXiv 2601.05242): each reward function is normalised inside its group first, the
    weighted sum is then normalised over the batch; `scale` plays no part.

    Args:
        rewards_NF: float32, NaN where a function abstained. N = P * group_size, groups contiguous.
        reward_weights_F: float32.
        group_size: G, at least 1; with 1, every advantage is 0.

    NaN is left out of every mean and deviation. A deviation that does not exist (fewer than two scored rows)
    gives advantage 0. Differs from TRL only by rounding: there a group of equal rewards such as 0.1 keeps a
    remainder of about 1e-5, here it is exactly 0.
    """
    num_rows = rewards_NF.shape[0]
    assert rewards_NF.ndim == 2, f"rewards_NF has shape {tuple(rewards_NF.shape)}"
    assert group_size >= 1, group_size
    assert num_rows % group_size == 0, f"{num_rows} rows are not groups of {group_size}"
    is_unscorable_N = rewards_NF.isnan().all(dim=1)
    rewards_N = _weighted_sum(rewards_NF, reward_weights_F, is_unscorable_N)
    rewards_PG = rewards_N.view(-1, group_size)
    group_std_P1 = nan_std(rewards_PG) if group_size > 1 else torch.zeros_like(rewards_PG)
    advantages_N, std_N = AGGREGATIONS[aggregation](rewards_NF, reward_weights_F, is_unscorable_N, group_size, scale)
    return AdvantageTable(
        advantages_N=advantages_N.nan_to_num(nan=0.0),
        rewards_N=rewards_N,
        group_mean_N=_spread(rewards_PG.nanmean(dim=1, keepdim=True), group_size),
        group_std_N=_spread(group_std_P1, group_size),
        is_zero_std_N=torch.isclose(std_N, torch.zeros_like(std_N)),
        is_unscorable_N=is_unscorable_N,
    )


def _sum_then_normalize(
    rewards_NF: Tensor, reward_weights_F: Tensor, is_unscorable_N: Tensor, group_size: int, scale: Scale
) -> tuple[Tensor, Tensor]:
    """-> (advantages_N, the std that scaling looks at, per row)."""
    rewards_N = _weighted_sum(rewards_NF, reward_weights_F, is_unscorable_N)
    rewards_PG = rewards_N.view(-1, group_size)
    if scale == "batch":
        std_N = _batch_std(rewards_N)
    elif group_size == 1:
        std_N = torch.zeros_like(rewards_N)
    else:
        std_N = _spread(nan_std(rewards_PG), group_size)
    centred_N = nan_centre(rewards_PG).view(-1)
    return (centred_N if scale == "none" else centred_N / (std_N + SCALE_EPSILON)), std_N


def _normalize_then_sum(
    rewards_NF: Tensor, reward_weights_F: Tensor, is_unscorable_N: Tensor, group_size: int, scale: Scale
) -> tuple[Tensor, Tensor]:
    """-> (advantages_N, the batch's std per row). `scale` has no effect, as in TRL."""
    num_rows, num_functions = rewards_NF.shape
    rewards_PFG = rewards_NF.view(-1, group_size, num_functions).transpose(1, 2)
    std_PF1 = nan_std(rewards_PFG) if group_size > 1 else torch.zeros_like(rewards_PFG)
    normalized_PFG = nan_centre(rewards_PFG) / (std_PF1 + SCALE_EPSILON)
    normalized_NF = normalized_PFG.transpose(1, 2).reshape(num_rows, num_functions)
    sums_N = _weighted_sum(normalized_NF, reward_weights_F, is_unscorable_N)
    std_N = _batch_std(sums_N)
    return nan_centre(sums_N) / (std_N + SCALE_EPSILON), std_N


AGGREGATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, int, Scale], tuple[Tensor, Tensor]]] = {
    "sum_then_normalize": _sum_then_normalize,
    "normalize_then_sum": _normalize_then_sum,
}
"""How several reward functions become one advantage. A new estimator is one function and one row."""


def zero_variance_split(rewards_N: Tensor, group_size: int) -> tuple[float, float]:
    """-> (frac_solved, frac_failed): the share of groups that teach nothing because they are all right, all wrong.

    A group has zero variance when it holds at least two scored rows and their rewards are all equal (NaN rows are
    ignored). It counts as solved when its reward is above the midpoint of the batch's smallest and largest reward,
    else as failed. A batch that is equal everywhere has no midpoint of its own: there a group is solved when its
    reward is above 0. Both shares are of all groups.
    """
    rewards_PG = rewards_N.view(-1, group_size)
    scored_PG = ~rewards_PG.isnan()
    if not bool(scored_PG.any()):
        return 0.0, 0.0
    lowest_P = rewards_PG.masked_fill(~scored_PG, math.inf).amin(dim=1)
    highest_P = rewards_PG.masked_fill(~scored_PG, -math.inf).amax(dim=1)
    is_flat_P = (scored_PG.sum(dim=1) >= 2) & (lowest_P == highest_P)
    low, high = rewards_PG[scored_PG].min(), rewards_PG[scored_PG].max()
    threshold = torch.zeros_like(low) if low == high else (low + high) / 2
    is_solved_P = is_flat_P & (highest_P > threshold)
    num_groups = rewards_PG.shape[0]
    return int(is_solved_P.sum()) / num_groups, int((is_flat_P & ~is_solved_P).sum()) / num_groups


def pass_at_k(num_correct: int, num_samples: int, k: int) -> float:
    """Chance that at least one of k draws without replacement is correct: 1 - C(n-c, k) / C(n, k).

    Unbiased for the pass rate of k independent samples (arXiv 2107.03374).
    Raises ConfigError if k is not in 1..num_samples or num_correct not in 0..num_samples.
    """
    if not 1 <= k <= num_samples:
        raise ConfigError(
            f"pass@{k} cannot be estimated from {num_samples} samples per prompt: k must be between 1 and the number "
            f"of samples. Use a smaller k, or sample at least {k} completions per prompt."
        )
    if not 0 <= num_correct <= num_samples:
        raise ConfigError(f"{num_correct} correct of {num_samples} samples: the first must be between 0 and the second")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def nan_centre(values: Tensor) -> Tensor:
    """values - mean over the last dim, NaN left out of the mean. Exactly 0 where all values are equal: the rounded
    mean of n equal numbers need not be that number, and Adam would turn the remainder into a full step."""
    is_nan = values.isnan()
    lowest = values.masked_fill(is_nan, math.inf).amin(dim=-1, keepdim=True)
    highest = values.masked_fill(is_nan, -math.inf).amax(dim=-1, keepdim=True)
    centred = values - values.nanmean(dim=-1, keepdim=True)
    return torch.where((lowest == highest) & ~is_nan, torch.zeros_like(centred), centred)


def nan_std(values: Tensor) -> Tensor:
    """Standard deviation (ddof 1) over the last dim, kept as size 1. NaN left out; NaN if fewer than two remain."""
    count = (~values.isnan()).sum(dim=-1, keepdim=True).to(values.dtype)
    bessel = torch.where(count > 1, count / (count - 1), math.nan)
    return (nan_centre(values).square().nanmean(dim=-1, keepdim=True) * bessel).sqrt()


def _weighted_sum(values_NF: Tensor, weights_F: Tensor, is_unscorable_N: Tensor) -> Tensor:
    """sum_k w_k * value_k over the functions that answered; NaN where none did."""
    return (values_NF * weights_F).nansum(dim=1).masked_fill(is_unscorable_N, math.nan)


def _batch_std(values_N: Tensor) -> Tensor:
    return nan_std(values_N).expand_as(values_N) if values_N.numel() > 1 else torch.zeros_like(values_N)


def _spread(values_P1: Tensor, group_size: int) -> Tensor:
    """One value per group (P, 1) -> one per row (N,). A (P, G) tensor is only flattened."""
    return values_P1.expand(-1, group_size).reshape(-1)
