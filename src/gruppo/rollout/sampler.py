"""Random numbers and the draw: which token comes next is a pure function of scores and (seed, ..., sample).

Every completion has its own stream of uniforms, from a counter-based generator (Philox) that is keyed by what the
completion is, not by when or beside whom it is made. So batch composition, order, retirement and the number of
ranks do not change its random numbers, and a resumed run draws what the unbroken run would have drawn.

It does not truncate or temper: scores come in as the engine wants to sample them (`choose` does both).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np
import torch

from gruppo.errors import RolloutError
from gruppo.types import SamplingParams

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_WORD = 2**64
_PHASES = {"train": 0, "eval": 1}
_BLOCK: Final = 256
"""Tokens per block of the two-level search: about the square root of a large vocabulary."""


def row_uniforms(sampling: SamplingParams, prompt_id: int, sample: int, num: int) -> NDArray[np.float64]:
    """The first `num` uniforms in [0, 1) of one completion, float64; token t uses the t-th.

    A longer `num` extends the stream and does not change its beginning.
    """
    key = np.array([sampling.seed % _WORD, (2 * sampling.step + _PHASES[sampling.phase]) % _WORD], dtype=np.uint64)
    # Philox counts up in the first word, which so stays free for the tokens.
    counter = np.array([0, sample % _WORD, prompt_id % _WORD, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(num)


def draw(scores_NV: Tensor, uniforms_N: Tensor) -> Tensor:
    """One token per row by inverse CDF: the first token whose cumulative probability exceeds the row's uniform.

    Args:
        scores_NV: unnormalised log-probabilities; -inf excludes a token.
        uniforms_N: float64 in [0, 1). Its device is where the sums are done (float64 must exist there).

    Returns: token ids (N,), int64, on the device of the scores. Never a token of probability zero.

    Raises:
        RolloutError: a row with NaN, or with no finite score at all.
    """
    probs_NV = torch.softmax(scores_NV.float(), dim=-1).to(uniforms_N.device)
    # A float32 sum over a large vocabulary loses the tail; in float64 every float32 probability counts.
    cdf_NV = probs_NV.double().cumsum(dim=-1)
    check_mass(cdf_NV[:, -1])
    return search(cdf_NV, uniforms_N).to(scores_NV.device)


def draw_blockwise(probs_NV: Tensor, uniforms_N: Tensor) -> Tensor:
    """The same draw from float32 probabilities, without a float64 copy of them: first the block, then the token in it.

    Equal to `draw` but for uniforms within a rounding error of the edge of a bin.
    """
    tokens_N, mass_N = locate(probs_NV, uniforms_N)
    check_mass(mass_N)
    return tokens_N


def locate(probs_NV: Tensor, uniforms_N: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and total masses of `draw_blockwise`, unchecked and without a word from the host.

    Where a mass is not finite, the token means nothing, but is one of the vocabulary.
    """
    num_tokens = probs_NV.shape[1]
    if num_tokens <= _BLOCK:
        cdf_NV = probs_NV.double().cumsum(dim=-1)
        return search(cdf_NV, uniforms_N).clamp_max_(num_tokens - 1), cdf_NV[:, -1]
    num_whole = num_tokens // _BLOCK
    sums = [probs_NV[:, : num_whole * _BLOCK].unflatten(1, (num_whole, _BLOCK)).sum(dim=-1)] if num_whole else []
    if num_tokens % _BLOCK:
        sums.append(probs_NV[:, num_whole * _BLOCK :].sum(dim=-1, keepdim=True))
    cdf_NB = torch.cat(sums, dim=1).double().cumsum(dim=-1)
    block_N1 = search(cdf_NB, uniforms_N)[:, None]
    below_N1 = torch.where(block_N1 > 0, cdf_NB.gather(1, (block_N1 - 1).clamp_min(0)), 0.0)
    token_NT = block_N1 * _BLOCK + torch.arange(_BLOCK, device=probs_NV.device)
    inside_NT = probs_NV.gather(1, token_NT.clamp_max(num_tokens - 1)).double()
    cdf_NT = inside_NT.masked_fill_(token_NT >= num_tokens, 0.0).cumsum(dim=-1)
    rest_N1 = uniforms_N[:, None] * cdf_NB[:, -1:] - below_N1
    within_N1 = _first_above(cdf_NT, rest_N1)
    return (block_N1 * _BLOCK + within_N1)[:, 0].clamp_max_(num_tokens - 1), cdf_NB[:, -1]


def search(cdf_NV: Tensor, uniforms_N: Tensor) -> Tensor:
    """Index of the first bin whose upper edge exceeds uniform · total mass, never an empty bin. float64, (N,)."""
    return _first_above(cdf_NV, uniforms_N[:, None] * cdf_NV[:, -1:])[:, 0]


def check_mass(total_N: Tensor) -> None:
    """
    Raises:
        RolloutError: a total probability that is not finite.
    """
    if not bool(torch.isfinite(total_N).all()):
        refuse()


def refuse() -> NoReturn:
    """
    Raises:
        RolloutError: always.
    """
    raise RolloutError(
        "The policy's logits hold NaN or infinity, so no token can be drawn. The weights have probably diverged: "
        "lower learning_rate, or look at grad_norm in the steps before."
    )


def _first_above(cdf_NV: Tensor, target_N1: Tensor) -> Tensor:
    index_N1 = torch.searchsorted(cdf_NV, target_N1, right=True)
    # u * total may round up to total itself: then the last bin with any mass is meant.
    last_N1 = torch.searchsorted(cdf_NV, cdf_NV[:, -1:].contiguous(), right=False)
    return torch.minimum(index_N1, last_N1)
