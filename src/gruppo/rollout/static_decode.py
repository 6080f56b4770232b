"""StaticDecode and StaticSteps: decoding steps that are recorded once for each bucket of shapes, then replayed.

`StaticDecode` is the step itself, from the newest tokens to the next ones: a pure function of tensors that stay in
place (`StaticBatch`, the cache, the weights). Nothing in it asks the host for a value, and all shapes are the
bucket's, so that whoever can record what the device does (`cuda_graphs`) may replay it.

`StaticSteps` is its use in one rollout: it finds the bucket, has a step recorded the first time that bucket is met,
and replays it after that. Live rows only grow fewer between admissions and tails only longer, so a rollout meets few
buckets. When tails get new buffers, what was recorded on the old ones is dropped.

How a step is recorded is not known here. Prefills, and draws other than `is_direct` ones, stay outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gruppo.rollout.choose import Choice, choose_direct
from gruppo.rollout.sampler import check_mass
from gruppo.rollout.static_batch import Bucket, StaticBatch

if TYPE_CHECKING:
    from torch import Tensor

    from gruppo.rollout.batches import Slots
    from gruppo.rollout.generation import Forward
    from gruppo.rollout.kv_cache import KVCache
    from gruppo.rollout.sequence import Sequences
    from gruppo.rollout.settings import RolloutSettings


@dataclass(frozen=True, slots=True)
class StepOutput:
    logits_NV: Tensor
    choice: Choice | None
    """None: the draw is for the caller."""


Record = Callable[[Callable[[], StepOutput]], Callable[[], StepOutput] | None]
"""From a step to its replay: the same operations on the same tensors, into the same outputs. None: it cannot be."""


@dataclass(frozen=True, slots=True)
class StaticDecode:
    """One decoding step, with the draw where the settings let it be made without the host."""

    forward: Forward
    settings: RolloutSettings

    @torch.no_grad()
    def __call__(self, batch: StaticBatch, cache: KVCache) -> StepOutput:
        logits_NV = self.forward(batch.decode_batch(cache), cache)
        is_direct = self.settings.is_direct
        return StepOutput(logits_NV, choose_direct(logits_NV, batch.uniforms_N, self.settings) if is_direct else None)


@dataclass(slots=True)
class _Recorded:
    batch: StaticBatch
    replay: Callable[[], StepOutput]
    placed: Slots | None = None


class StaticSteps:
    """The decoding steps of one rollout.

    Args:
        width: the largest number of rows of one prompt.
    """

    def __init__(self, decode: StaticDecode, record: Record, *, width: int) -> None:
        self._decode = decode
        self._record = record
        self._width = width
        self._recorded: dict[Bucket, _Recorded] = {}

    def step(self, slots: Slots, sequences: Sequences, cache: KVCache) -> StepOutput | None:
        """The next tokens of the live rows, on the CPU if drawn; None if this step could not be recorded.

        Raises:
            RolloutError: logits that are not finite.
        """
        cache.reserve_tail(int(sequences.length_N[slots.rows].max()))
        bucket = Bucket.of(slots, cache, self._width)
        recorded = self._recorded.get(bucket)
        if recorded is None:
            recorded = self._new(bucket, slots, sequences, cache)
            if recorded is None:
                return None
        else:
            _fill(recorded, slots, sequences)
        output = recorded.replay()
        num_live = len(slots.rows)
        choice = None if output.choice is None else _fetched(output.choice, num_live)
        return StepOutput(output.logits_NV[:num_live], choice)

    def _new(self, bucket: Bucket, slots: Slots, sequences: Sequences, cache: KVCache) -> _Recorded | None:
        self._recorded = {old: kept for old, kept in self._recorded.items() if old.tail_tokens == bucket.tail_tokens}
        batch = StaticBatch(bucket, slots.device)
        batch.place(slots)
        # Recording runs the step, so it needs a real one.
        batch.load(slots, sequences)
        replay = self._record(lambda: self._decode(batch, cache))
        if replay is None:
            return None
        self._recorded[bucket] = _Recorded(batch, replay, slots)
        return self._recorded[bucket]


def _fill(recorded: _Recorded, slots: Slots, sequences: Sequences) -> None:
    if recorded.placed is not slots:
        recorded.batch.place(slots)
        recorded.placed = slots
    recorded.batch.load(slots, sequences)


def _fetched(choice: Choice, num_live: int) -> Choice:
    """What was drawn for the live rows, on the host: the one place of a step that waits for the device."""
    tokens_N, logprobs_N = choice.tokens_N[:num_live].cpu(), choice.logprobs_N[:num_live].cpu()
    check_mass(logprobs_N)
    return Choice(tokens_N, logprobs_N, logprobs_N, None)
