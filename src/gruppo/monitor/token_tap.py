"""What the training pass computed of each token, kept until the round is used up. No forward of its own.

The learner hands over what every forward and its loss gave (`keep`); `take` puts it together with what the batch
knows. A round whose rows are used several times (`num_iterations`) leaves the values of the last use. Not here: which
rows are written (select.py), and in what form (token_table.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gruppo.algorithm.losses import LossOutput
from gruppo.types import TrainBatch

Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PassValues:
    """(N, T) arrays of a round's rows on this rank. NaN where a token is not trained, or a value was not computed."""

    mask: NDArray[np.bool_]
    logp_infer: Floats32
    """The sampler's; known for tokens that are not trained too."""
    delta: Floats32
    """Trainer minus sampler, both of the policy that sampled."""
    delta_ref: Floats32
    """Policy at the recorded pass minus reference."""
    entropy: Floats32
    ratio: Floats32
    """Policy at the recorded pass / policy that sampled; at sequence level all tokens of a row have the row's."""
    clip: Floats32
    """1 where the loss clipped the ratio, else 0."""
    num_passes: list[int]
    """How often each row had been used by then, the recorded pass included."""


class TokenForward(Protocol):
    """The part of `policy.logprobs.Forward` that is recorded."""

    @property
    def logprobs_NT(self) -> Tensor: ...
    @property
    def entropy_NT(self) -> Tensor | None: ...


class _Part(NamedTuple):
    logprobs_NT: Tensor
    entropy_NT: Tensor | None
    ratio: Tensor
    is_clipped: Tensor | None


@final
class TokenTap:
    """Collects one round at a time."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, ...], _Part] = {}
        self._num_passes: Counter[int] = Counter()
        self._on_policy: set[int] = set()

    def keep(self, rows: Sequence[int], forward: TokenForward, output: LossOutput, is_on_policy: bool) -> None:
        """What one forward of `rows` (places in the round's batch) gave. Keeps references only, no graph."""
        key = tuple(rows)
        self._parts.pop(key, None)  # what comes last must also stand last: cuts may differ from pass to pass
        entropy_NT = None if forward.entropy_NT is None else forward.entropy_NT.detach()
        self._parts[key] = _Part(forward.logprobs_NT.detach(), entropy_NT, output.ratio, output.is_clipped)
        self._num_passes.update(key)
        if is_on_policy:
            self._on_policy.update(key)

    def forget(self, rows: Sequence[int]) -> None:
        """The latest `keep` of just these rows does not count: they go through once more, maybe cut differently."""
        self._parts.pop(tuple(rows), None)
        self._num_passes.subtract(rows)

    def take(self, batch: TrainBatch, *, is_old_from_sampler: bool = False) -> PassValues | None:
        """The values of the round, and an empty tap. None if nothing was kept.

        `is_old_from_sampler`: old log-probs of rows that were never on-policy are copies of the sampler's, so that
        there is no gap to tell.
        """
        parts, passes, on_policy = self._parts, self._num_passes, self._on_policy
        self._parts, self._num_passes, self._on_policy = {}, Counter(), set()
        if not parts:
            return None
        trained_NT = batch.trained_NT
        nothing_NT = torch.full(trained_NT.shape, torch.nan, device=trained_NT.device)
        logprobs_NT, entropy_NT, ratio_NT, clip_NT = (nothing_NT.clone() for _ in range(4))
        for rows, part in parts.items():
            place, width = list(rows), part.logprobs_NT.shape[1]
            logprobs_NT[place, :width] = part.logprobs_NT.float()
            ratio_NT[place, :width] = part.ratio.float().expand(-1, width)
            if part.entropy_NT is not None:
                entropy_NT[place, :width] = part.entropy_NT.float()
            if part.is_clipped is not None:
                clip_NT[place, :width] = part.is_clipped.float().expand(-1, width)
        sampler_NT = nothing_NT if batch.sampler_logprobs_NT is None else batch.sampler_logprobs_NT
        old_NT = nothing_NT if batch.old_logprobs_NT is None else batch.old_logprobs_NT
        if is_old_from_sampler:
            copies = [row for row in range(len(batch)) if row not in on_policy]
            old_NT = old_NT.index_fill(0, torch.tensor(copies, dtype=torch.long, device=old_NT.device), torch.nan)
        ref_NT = nothing_NT if batch.ref_logprobs_NT is None else batch.ref_logprobs_NT

        def trained(values_NT: Tensor) -> Floats32:
            return _array(values_NT.masked_fill(~trained_NT, torch.nan))

        return PassValues(
            mask=trained_NT.cpu().numpy(),
            logp_infer=_array(sampler_NT),
            delta=trained(old_NT - sampler_NT),
            delta_ref=trained(logprobs_NT - ref_NT),
            entropy=trained(entropy_NT),
            ratio=trained(ratio_NT),
            clip=trained(clip_NT),
            num_passes=[passes[row] for row in range(len(batch))],
        )


def _array(values_NT: Tensor) -> Floats32:
    array: Floats32 = values_NT.float().cpu().numpy()
    return array
