"""One rollout from the first prompt to the last token: admit, prefill, sample, decode, retire, until all rows are done.

It is the loop and nothing else: what is admitted is the scheduler's matter, logits are the forward's, tokens are
`choose`'s, ends are `stop`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch

from gruppo.rollout.attention import DecodeBatch, PrefillBatch
from gruppo.rollout.batches import Slots, prefill_batch
from gruppo.rollout.choose import Choice, choose
from gruppo.rollout.kv_cache import KVCache
from gruppo.rollout.scheduler import Scheduler
from gruppo.rollout.sequence import Sequences
from gruppo.rollout.settings import RolloutSettings
from gruppo.rollout.static_decode import StaticSteps, StepOutput
from gruppo.rollout.stop import Stops

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

PREFILL_TOKENS: Final = 8192
"""Prompt tokens per prefill forward; one prompt may be longer."""


class Forward(Protocol):
    """Logits of the next token for a prefill (prompts, V) or a decoding step (rows, V)."""

    @property
    def name(self) -> str: ...

    def __call__(self, batch: PrefillBatch | DecodeBatch, cache: KVCache) -> Tensor: ...


class Generation:
    """Fills `sequences`.

    Args:
        budget: places for tokens, see `Scheduler`.
        static: decoding steps that are replayed where that can be; None runs each by `forward`.
    """

    def __init__(
        self,
        forward: Forward,
        sequences: Sequences,
        settings: RolloutSettings,
        *,
        budget: int | None,
        tokenizer: Any,
        device: torch.device,
        static: StaticSteps | None = None,
    ) -> None:
        self._forward = forward
        self._sequences = sequences
        self._settings = settings
        self._device = device
        self._static = static
        self._stops = Stops(settings, tokenizer)
        self._scheduler = Scheduler(
            sequences.prompt_N.tolist(),
            sequences.prompt_lengths_P.tolist(),
            max_tokens=settings.max_tokens,
            budget=budget,
        )
        num_rows, num_prompts = self._scheduler.capacity()
        self._cache = KVCache(
            num_prompts=num_prompts,
            prefix_tokens=int(sequences.prompt_lengths_P[np.unique(sequences.prompt_N)].max()),
            num_rows=num_rows,
            max_tail_tokens=settings.max_tokens,
        )
        self._first_logits: dict[int, Tensor] = {}
        """After each live prompt's last token; kept for rows of the prompt that are admitted later."""

    def run(self) -> None:
        """
        Raises:
            RolloutError: logits that are not finite.
        """
        scheduler, slots = self._scheduler, None
        while not scheduler.is_done:
            first_slot = len(scheduler.prompts)
            admitted = scheduler.admit()
            if admitted.rows:
                self._prefill(admitted.prompts, first_slot)
                logits_NV = torch.stack([self._first_logits[self._sequences.prompt_N[row]] for row in admitted.rows])
                first = len(scheduler.rows) - len(admitted.rows)
                rows = np.array(admitted.rows, dtype=np.int64)
                self._advance(rows, first, self._choose(rows, logits_NV))
                slots = None
            if not scheduler.rows:
                continue
            if slots is None:
                slots = Slots.of(scheduler, self._sequences, self._device)
            if self._advance(slots.rows, 0, self._next(slots)):
                slots = None

    def _next(self, slots: Slots) -> Choice:
        """Keeps nothing of a recorded step's output: it lies in the graphs' pool, which could not be freed then."""
        output = self._step(slots)
        return self._choose(slots.rows, output.logits_NV) if output.choice is None else output.choice

    def _step(self, slots: Slots) -> StepOutput:
        output = None if self._static is None else self._static.step(slots, self._sequences, self._cache)
        if output is not None:
            return output
        # What cannot be recorded once is not tried again.
        self._static = None
        return StepOutput(self._forward(slots.decode_batch(self._sequences, self._cache), self._cache), None)

    def _prefill(self, prompts: list[int], first_slot: int) -> None:
        for chunk in _chunks(prompts, self._sequences.prompt_lengths_P):
            batch = prefill_batch(self._sequences, chunk, first_slot=first_slot, cache=self._cache, device=self._device)
            self._first_logits |= dict(zip(chunk, self._forward(batch, self._cache), strict=True))
            first_slot += len(chunk)

    def _choose(self, rows: NDArray[np.int64], logits_NV: Tensor) -> Choice:
        uniforms = self._sequences.uniforms(rows) if not self._settings.is_greedy else None
        return choose(
            logits_NV,
            # Apple's GPUs have no float64.
            None if uniforms is None else torch.from_numpy(uniforms).to(logits_NV.device),
            self._settings,
            self._history(rows) if self._settings.repetition_penalty != 1.0 else None,
        )

    def _advance(self, rows: NDArray[np.int64], first_slot: int, choice: Choice) -> bool:
        """One more token for `rows`, which lie in consecutive tail slots. Returns whether any row ended."""
        sequences = self._sequences
        sequences.append(rows, choice.tokens_N.cpu().numpy(), choice.logprobs_N.cpu().numpy())
        is_done = self._stops.finished(sequences, rows)
        if not is_done.any():
            return False
        ended = set(sequences.prompt_N[rows[is_done]].tolist())
        moves = self._scheduler.retire((first_slot + np.flatnonzero(is_done)).tolist())
        self._cache.move_tails(moves.rows, int(sequences.length_N[self._scheduler.rows].max(initial=1)))
        self._cache.move_prefixes(moves.prompts)
        for prompt in ended - set(self._scheduler.prompts):
            del self._first_logits[prompt]
        return True

    def _history(self, rows: NDArray[np.int64]) -> Tensor:
        histories = [self._sequences.history(row) for row in rows]
        longest = max(map(len, histories))
        # A row's own token fills up: naming it twice changes nothing.
        padded = [ids + [ids[0]] * (longest - len(ids)) for ids in histories]
        return torch.tensor(padded, device=self._device)


def _chunks(prompts: list[int], lengths_P: NDArray[np.int64]) -> list[list[int]]:
    chunks: list[list[int]] = []
    used = 0
    for prompt in prompts:
        length = int(lengths_P[prompt])
        if not chunks or used + length > PREFILL_TOKENS:
            chunks.append([])
            used = 0
        chunks[-1].append(prompt)
        used += length
    return chunks
