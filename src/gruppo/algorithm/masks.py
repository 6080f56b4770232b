"""Which tokens and rows take part in the policy gradient: truncation, off-policy rows, high-entropy tokens.

`trained_NT` is THE mask (built once, see `types.TrainBatch`); denominators are counted from it. The other masks
here multiply the token loss and leave denominators alone, as in TRL.
"""

import torch
from torch import Tensor


def drop_truncated(trained_NT: Tensor, is_truncated_N: Tensor) -> Tensor:
    """`trained_NT` without the rows that were cut at the length limit (DAPO's overlong filtering, arXiv 2503.14476;
    TRL's `mask_truncated_completions`). Such rows also leave every denominator that counts tokens."""
    return trained_NT & ~is_truncated_N.unsqueeze(1)


def off_policy_keep(
    advantages_N: Tensor,
    logprobs_NT: Tensor,
    behaviour_logprobs_NT: Tensor,
    trained_NT: Tensor,
    *,
    threshold: float,
) -> Tensor:
    """-> bool (N, 1). Off-policy sequence masking (DeepSeek-V3.2, arXiv 2512.02556; `off_policy_mask_threshold`).

    A row is dropped when its advantage is negative and the policy has moved away from it: the mean over trained
    tokens of behaviour - policy log-prob is above `threshold` (nats per token). `behaviour` is the sampler's
    log-prob where known, else old's. NaN tokens (unknown to the sampler) count as no difference. No gradient.
    """
    drift_NT = (behaviour_logprobs_NT - logprobs_NT.detach()).masked_fill(~trained_NT, 0.0).nan_to_num(nan=0.0)
    num_tokens_N1 = trained_NT.sum(dim=1, keepdim=True).clamp(min=1)
    is_near_N1 = drift_NT.sum(dim=1, keepdim=True) / num_tokens_N1 <= threshold
    return (advantages_N.unsqueeze(1) >= 0) | is_near_N1


def top_entropy(
    entropy_NT: Tensor, trained_NT: Tensor, *, quantile_keep: float, all_entropies: Tensor | None = None
) -> Tensor:
    """-> bool (N, T): the trained tokens among the `quantile_keep` share of highest entropy.

    "Beyond the 80/20 rule", arXiv 2506.01939 (TRL's `top_entropy_quantile`). The threshold is the (1 - keep)
    quantile of `all_entropies`: the entropies of the trained tokens of all ranks of one slice, 1-D. None means
    this tensor's own, which is the same thing only if it holds the whole slice.
    """
    entropy_NT = entropy_NT.detach()
    values = entropy_NT[trained_NT] if all_entropies is None else all_entropies.detach()
    if values.numel() == 0:
        return torch.zeros_like(trained_NT)
    threshold = quantile(values.float(), 1 - quantile_keep)
    return (entropy_NT >= threshold) & trained_NT


def quantile(values: Tensor, q: float) -> Tensor:
    """The q-quantile of a 1-D tensor with linear interpolation; `torch.quantile` without its limit of 2**24 values.

    The rank is rounded to the values' precision, as torch does, so that both name the same threshold.
    """
    last = values.numel() - 1
    rank = (torch.tensor(q, dtype=values.dtype) * last).clamp(max=last)
    below, above = int(rank.floor()), min(int(rank.ceil()), last)
    ascending = values.sort().values
    return torch.lerp(ascending[below], ascending[above], (rank - below).to(values.device))
