"""Stops: which rows have just said their last token. EOS ids, stop strings (transformers' own criterion), the limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.generation.stopping_criteria import StopStringCriteria

from gruppo.errors import RolloutError
from gruppo.rollout.sequence import Sequences
from gruppo.rollout.settings import RolloutSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Stops:
    """Asks after every token.

    Raises:
        RolloutError: stop strings without a tokenizer.
    """

    def __init__(self, settings: RolloutSettings, tokenizer: Any) -> None:
        # One place more than the highest id, for all tokens above it.
        eos = [id_ for id_ in settings.eos_token_ids if id_ >= 0]
        self._is_eos_V = np.zeros(max(eos, default=-1) + 2, dtype=np.bool_)
        self._is_eos_V[eos] = True
        self._pad = settings.pad_token_id
        self._max_tokens = settings.max_tokens
        self._strings: StopStringCriteria | None = None
        if settings.stop_strings:
            if tokenizer is None:
                raise RolloutError("stop_strings in generation_kwargs need a tokenizer: give the engine one.")
            self._strings = StopStringCriteria(tokenizer, list(settings.stop_strings))

    def finished(self, sequences: Sequences, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of `rows` end with their last token; notes the reason in `sequences`."""
        is_stop: NDArray[np.bool_] = self._is_eos_V[np.minimum(sequences.last_tokens(rows), len(self._is_eos_V) - 1)]
        if self._strings is not None:
            is_stop |= self._match(self._strings, sequences, rows)
        for row in rows[is_stop]:
            sequences.reasons[row] = "stop"
        return is_stop | (sequences.length_N[rows] >= self._max_tokens)

    def _match(self, criterion: StopStringCriteria, sequences: Sequences, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        # A token is at least one character, so that many tokens decide; before the prompt stands padding.
        width = criterion.maximum_token_len
        recent = [sequences.history(row)[-width:] for row in rows]
        ids_NT = torch.tensor([[self._pad] * (width - len(ids)) + ids for ids in recent])
        is_match: NDArray[np.bool_] = criterion(ids_NT, None).numpy()
        return is_match
