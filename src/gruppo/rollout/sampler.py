"""Random numbers and the draw: which token comes next is a pure function of scores and (seed, ..., sample).

Every completion has its own stream of uniforms, from a counter-based generator (Philox) that is keyed by what the
completion is, not by when or beside whom it is made. So batch composition, order, retirement and the number of
ranks do not change its random numbers, and a resumed run draws what the unbroken run would have drawn.

It does not truncate or temper: scores come in as the engine wants to sample them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from gruppo.errors import RolloutError
from gruppo.types import SamplingParams

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_WORD = 2**64
_PHASES = {"train": 0, "eval": 1}


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
    total_N1 = cdf_NV[:, -1:].contiguous()
    if not bool(torch.isfinite(total_N1).all()):
        raise RolloutError(
            "The policy's logits hold NaN or infinity, so no token can be drawn. The weights have probably diverged: "
            "lower learning_rate, or look at grad_norm in the steps before."
        )
    token_N1 = torch.searchsorted(cdf_NV, uniforms_N[:, None] * total_N1, right=True)
    # u * total may round up to total itself: then the last token with any mass is meant.
    last_N1 = torch.searchsorted(cdf_NV, total_N1, right=False)
    return torch.minimum(token_N1, last_N1).squeeze(1).to(scores_NV.device)
