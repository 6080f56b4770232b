"""Importance ratios: policy / old (how far the policy has moved) and old / sampler (engine mismatch).

Log-probs are nats of softmax(logits / temperature). Values outside `trained_NT` never matter, not even NaN.
Not here: clipping of the policy ratio, which is part of each loss.
"""

import math
from typing import Literal

import torch
from torch import Tensor

RatioLevel = Literal["token", "sequence"]
CorrectionMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


def log_ratio(logprobs_NT: Tensor, old_logprobs_NT: Tensor, trained_NT: Tensor) -> Tensor:
    """log(policy / old) per token (N, T), 0 on tokens that are not trained."""
    return (logprobs_NT - old_logprobs_NT).masked_fill(~trained_NT, 0.0)


def importance_ratio(
    logprobs_NT: Tensor, old_logprobs_NT: Tensor, trained_NT: Tensor, level: RatioLevel = "token"
) -> Tensor:
    """policy / old. `token`: one ratio per token (N, T). `sequence`: the geometric mean over the row's trained
    tokens (N, 1), from GSPO (arXiv 2507.18071). Rows without trained tokens have ratio 1.
    """
    log_ratio_NT = log_ratio(logprobs_NT, old_logprobs_NT, trained_NT)
    if level == "token":
        return log_ratio_NT.exp()
    assert level == "sequence", level
    num_tokens_N1 = trained_NT.sum(dim=1, keepdim=True).clamp(min=1)
    return (log_ratio_NT.sum(dim=1, keepdim=True) / num_tokens_N1).exp()


def sampler_correction(
    old_logprobs_NT: Tensor,
    sampler_logprobs_NT: Tensor,
    trained_NT: Tensor,
    *,
    mode: CorrectionMode,
    clip_min: float | None,
    clip_max: float | None,
) -> Tensor:
    """old / sampler, kept within [clip_min, clip_max]; None leaves a side open. No gradient.

    `token_*`: per token (N, T). `sequence_*`: the product over the row's trained tokens (N, 1), not its geometric
    mean, so it drifts from 1 as rows grow longer. `*_truncate` moves a ratio to the nearer bound; `*_mask` sets it
    to 0, so that the token (the row) no longer counts. A sampler log-prob of NaN (unknown) means ratio 1.
    TRL's `vllm_importance_sampling_mode`, `_clip_min`, `_clip_max`.
    """
    level, action = mode.split("_")
    difference_NT = (old_logprobs_NT - sampler_logprobs_NT).detach().masked_fill(~trained_NT, 0.0)
    difference_NT = difference_NT.nan_to_num(nan=0.0)
    if level == "sequence":
        return _bounded(difference_NT.sum(dim=1, keepdim=True).exp(), action, clip_min, clip_max)
    assert level == "token", mode
    # Ratio 1 outside the trained tokens, whatever the bounds: nothing there may reach a sum over tokens.
    return _bounded(difference_NT.exp(), action, clip_min, clip_max).masked_fill(~trained_NT, 1.0)


def _bounded(ratio: Tensor, action: str, clip_min: float | None, clip_max: float | None) -> Tensor:
    low = -math.inf if clip_min is None else clip_min
    high = math.inf if clip_max is None else clip_max
    if action == "truncate":
        return ratio.clamp(low, high)
    assert action == "mask", action
    return torch.where((ratio < low) | (ratio > high), torch.zeros_like(ratio), ratio)
