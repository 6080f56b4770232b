"""choose: from logits to the next token, its log-probs and the entropy, in one visit.

Two distributions are meant and never mixed:

- the policy's, softmax(logits / score_temperature): `logprobs` and `entropy` are of this one, as in training;
- the sampler's, after repetition penalty, temperature, top-k, top-p and min-p in transformers' order: tokens are drawn
  from this one, and `sampled_logprobs` are of it.

Truncation looks at the most likely tokens only (64, then more where these do not decide), so no vocabulary is sorted
unless the distribution is so flat that it must be. As many tokens survive as after transformers' warpers; which of
equally likely ones survive top-p, torch leaves open there, and the highest ids do here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from gruppo.rollout.sampler import check_mass, draw_blockwise, locate, refuse, search
from gruppo.rollout.settings import RolloutSettings

if TYPE_CHECKING:
    from torch import Tensor

_FIRST_CUT: Final = 64
_GROWTH: Final = 8
_SMALLEST_FLOAT32: Final = 1e-30
"""Below, a probability has lost digits, and its log is taken from the logits instead."""


@dataclass(frozen=True, slots=True)
class Choice:
    tokens_N: Tensor
    logprobs_N: Tensor
    """Of the policy."""
    sampled_logprobs_N: Tensor
    """Of the distribution that was drawn from; 0 when greedy."""
    entropy_N: Tensor | None
    """Of the policy; only if asked for."""


@torch.inference_mode()
def choose(
    logits_NV: Tensor,
    uniforms_N: Tensor | None,
    settings: RolloutSettings,
    history_NT: Tensor | None = None,
    *,
    with_entropy: bool = False,
) -> Choice:
    """One token per row.

    Args:
        logits_NV: the model's; may be overwritten.
        uniforms_N: float64 in [0, 1); not needed when greedy.
        history_NT: the ids that the repetition penalty counts (prompt and completion so far); a row may name an id
            more than once. Needed only with a penalty.

    Raises:
        RolloutError: logits that are not finite.
    """
    raw_NV = logits_NV.float()
    probs_NV = torch.softmax(_tempered(raw_NV, settings.score_temperature), dim=-1)
    if settings.is_direct:
        if settings.is_greedy:
            tokens_N = raw_NV.argmax(dim=-1)
        else:
            assert uniforms_N is not None
            tokens_N = locate(probs_NV, uniforms_N)[0]
        sampled_N = None
    else:
        tokens_N, sampled_N = _draw_otherwise(raw_NV, uniforms_N, settings, history_NT)
    chosen_N = probs_NV.gather(1, tokens_N[:, None])[:, 0]
    # A logit that is not finite makes every probability of its row NaN, and so this: one look at the device for all.
    smallest = float(chosen_N.min())
    if math.isnan(smallest):
        refuse()
    logprobs_N = chosen_N.log()
    if smallest < _SMALLEST_FLOAT32:
        z_NV = _tempered(raw_NV, settings.score_temperature)
        logprobs_N = torch.log_softmax(z_NV, dim=-1).gather(1, tokens_N[:, None])[:, 0]
    if sampled_N is None:
        sampled_N = torch.zeros_like(logprobs_N) if settings.is_greedy else logprobs_N
    return Choice(tokens_N, logprobs_N, sampled_N, _entropy(probs_NV) if with_entropy else None)


@torch.no_grad()
def choose_direct(logits_NV: Tensor, uniforms_N: Tensor, settings: RolloutSettings) -> Choice:
    """`choose` for settings that are `is_direct`, with nothing that depends on values: the same operations every time.

    It checks nothing. Logits that are not finite give a log-prob that is not finite; the caller has to look.
    """
    assert settings.is_direct
    raw_NV = logits_NV.float()
    z_NV = _tempered(raw_NV, settings.score_temperature)
    probs_NV = torch.softmax(z_NV, dim=-1)
    tokens_N = raw_NV.argmax(dim=-1) if settings.is_greedy else locate(probs_NV, uniforms_N)[0]
    chosen_N = probs_NV.gather(1, tokens_N[:, None])[:, 0]
    exact_N = z_NV.gather(1, tokens_N[:, None])[:, 0] - torch.logsumexp(z_NV, dim=-1)
    logprobs_N = torch.where(chosen_N < _SMALLEST_FLOAT32, exact_N, chosen_N.log())
    return Choice(tokens_N, logprobs_N, torch.zeros_like(logprobs_N) if settings.is_greedy else logprobs_N, None)


def _draw_otherwise(
    raw_NV: Tensor, uniforms_N: Tensor | None, settings: RolloutSettings, history_NT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tokens and their log-probs where the sampler's distribution is not the policy's."""
    scores_NV = raw_NV
    if settings.repetition_penalty != 1.0:
        assert history_NT is not None
        scores_NV = _penalised(scores_NV, history_NT, settings.repetition_penalty)
    if settings.is_greedy:
        tokens_N = scores_NV.argmax(dim=-1)
        return tokens_N, torch.zeros_like(tokens_N, dtype=torch.float32)
    assert uniforms_N is not None
    scores_NV = _tempered(scores_NV, settings.temperature)
    if settings.is_truncated:
        return draw_truncated(scores_NV, uniforms_N, settings)
    probs_NV = torch.softmax(scores_NV, dim=-1)
    tokens_N = draw_blockwise(probs_NV, uniforms_N)
    return tokens_N, probs_NV.gather(1, tokens_N[:, None])[:, 0].log()


def draw_truncated(scores_NV: Tensor, uniforms_N: Tensor, settings: RolloutSettings) -> tuple[Tensor, Tensor]:
    """Draws after top-k, top-p and min-p. Returns tokens and log-probs of the truncated distribution, both (N,)."""
    num_rows, num_tokens = scores_NV.shape
    lse_N = torch.logsumexp(scores_NV, dim=-1)
    check_mass(lse_N)
    tokens_N = torch.empty(num_rows, dtype=torch.long, device=scores_NV.device)
    logprobs_N = torch.empty(num_rows, dtype=torch.float32, device=scores_NV.device)
    open_N = torch.arange(num_rows, device=scores_NV.device)
    # Elsewhere than on a CPU asking whether a cut decides costs more than a sort.
    cut = max(_FIRST_CUT, 2 * settings.top_k) if scores_NV.device.type == "cpu" else num_tokens
    while len(open_N):
        cut = min(cut, num_tokens)
        values_NK, ids_NK = _ordered_top(scores_NV[open_N], cut)
        is_kept_NK = _kept(values_NK, lse_N[open_N], settings)
        lowest_N = values_NK.gather(1, is_kept_NK.sum(dim=1, keepdim=True) - 1)[:, 0]
        # Where the last one kept ties with the last one seen, unseen ones may belong in as well.
        is_decided_N = (lowest_N > values_NK[:, -1]) | (cut == num_tokens)
        rows = open_N[is_decided_N]
        tokens_N[rows], logprobs_N[rows] = _draw_among(
            values_NK[is_decided_N], ids_NK[is_decided_N], is_kept_NK[is_decided_N], uniforms_N[rows]
        )
        open_N = open_N[~is_decided_N]
        cut *= _GROWTH
    return tokens_N, logprobs_N


def _ordered_top(scores_NV: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` highest scores and their ids, highest first; among equals the highest id first."""
    values_NK, ids_NK = torch.topk(scores_NV, num, dim=-1)
    ids_NK, by_id = ids_NK.sort(dim=-1, descending=True)
    values_NK, by_value = values_NK.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    return values_NK, ids_NK.gather(1, by_value)


def _kept(values_NK: Tensor, lse_N: Tensor, settings: RolloutSettings) -> Tensor:
    """Which of the ordered candidates survive: always a beginning of the row, and at least the first."""
    is_kept_NK = torch.ones_like(values_NK, dtype=torch.bool)
    if 0 < settings.top_k < values_NK.shape[1]:
        is_kept_NK = values_NK >= values_NK[:, settings.top_k - 1, None]
        lse_N = torch.logsumexp(values_NK.masked_fill(~is_kept_NK, -torch.inf), dim=-1)
    if settings.top_p < 1.0:
        probs_NK = torch.exp(values_NK - lse_N[:, None]).double()
        above_NK = probs_NK.cumsum(dim=-1) - probs_NK
        is_kept_NK &= above_NK < settings.top_p
    if settings.min_p > 0.0:
        is_kept_NK &= torch.exp(values_NK - values_NK[:, :1]) >= settings.min_p
    is_kept_NK[:, 0] = True
    return is_kept_NK


def _draw_among(values_NK: Tensor, ids_NK: Tensor, is_kept_NK: Tensor, uniforms_N: Tensor) -> tuple[Tensor, Tensor]:
    # In the order of the vocabulary, so that a uniform means the same token as in a draw over all of it.
    ids_NK, order = ids_NK.sort(dim=-1)
    mass_NK = torch.exp(values_NK - values_NK[:, :1]).masked_fill_(~is_kept_NK, 0.0).gather(1, order).double()
    cdf_NK = mass_NK.cumsum(dim=-1)
    at_N1 = search(cdf_NK, uniforms_N)[:, None] if len(ids_NK) else ids_NK[:, :1]
    logprobs_N = (mass_NK.gather(1, at_N1) / cdf_NK[:, -1:]).log()[:, 0].float()
    return ids_NK.gather(1, at_N1)[:, 0], logprobs_N


def _tempered(scores_NV: Tensor, temperature: float) -> Tensor:
    return scores_NV if temperature == 1.0 else scores_NV / temperature


def _penalised(scores_NV: Tensor, history_NT: Tensor, penalty: float) -> Tensor:
    seen_NT = scores_NV.gather(1, history_NT)
    return scores_NV.scatter(1, history_NT, torch.where(seen_NT < 0, seen_NT * penalty, seen_NT / penalty))


def _entropy(probs_NV: Tensor) -> Tensor:
    return torch.special.entr(probs_NV).sum(dim=-1)
