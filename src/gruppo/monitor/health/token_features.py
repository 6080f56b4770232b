"""Per-completion numbers that need token ids and the sampler's log-probs: gibberish.

`gibberish_share` follows prime-rl's rule (PR 1746, from arXiv 2510.02387, section 5.2): a token counts if it is rare
in every text (an id in the last quarter of the vocabulary: byte-pair vocabularies are ordered by merge) and was
sampled against the odds. Not here: text (text_features.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RARE_FROM = 0.75
"""Token ids above this share of the vocabulary are rare ones."""

LOGPROB_MARGIN = 2.0
"""Nats below the log-prob of a blind draw, -ln V."""


def gibberish_share(
    token_ids: Sequence[int], sampler_logprobs: Sequence[float] | None, vocab_size: int
) -> float | None:
    """Share of tokens that are rare and were unlikelier than exp(-2) / V. None: no tokens, or no log-probs.

    >>> gibberish_share([3, 9], [-0.1, -9.0], vocab_size=10)
    0.5
    """
    if sampler_logprobs is None or not len(token_ids):
        return None
    logprobs = np.asarray(sampler_logprobs, dtype=np.float64)
    is_rare = np.asarray(token_ids) >= RARE_FROM * vocab_size
    return float((is_rare & (logprobs < -math.log(vocab_size) - LOGPROB_MARGIN)).mean())
