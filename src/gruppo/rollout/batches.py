"""Builds the batches of a rollout: from the scheduler's slots and the sequences' tokens to the tensors of one forward.

It decides nothing. What does not change between two steps (who lies where) is made once, by `Slots`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from gruppo.rollout.attention import DecodeBatch, PrefillBatch
from gruppo.rollout.kv_cache import KVCache
from gruppo.rollout.scheduler import Grid, Scheduler
from gruppo.rollout.sequence import Sequences

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def prefill_batch(
    sequences: Sequences, prompts: list[int], *, first_slot: int, cache: KVCache, device: torch.device
) -> PrefillBatch:
    """The tokens of `prompts` (numbers of requests), whose prefix slots are consecutive from `first_slot`."""
    token_ids = [sequences.prompts[p].token_ids for p in prompts]
    lengths = [len(ids) for ids in token_ids]
    longest = max(lengths)
    positions_S = np.concatenate([np.arange(length) for length in lengths])
    row_S = np.repeat(np.arange(len(lengths)), lengths)
    return PrefillBatch(
        ids_S=_tensor(np.concatenate([np.asarray(ids, dtype=np.int64) for ids in token_ids]), device),
        positions_S=_tensor(positions_S, device),
        last_P=_tensor(np.cumsum(lengths) - 1, device),
        slots_S=_tensor((first_slot + row_S) * cache.prefix_tokens + positions_S, device),
        lengths=lengths,
        cells_S=_tensor(row_S * longest + positions_S, device),
    )


@dataclass(frozen=True, slots=True)
class Slots:
    """Who lies where, between two changes of the live rows."""

    rows: NDArray[np.int64]
    prompt_lengths: NDArray[np.int64]
    """Of each live row."""
    prompt_lengths_P: Tensor
    """Of each live prompt."""
    longest_prompt: int
    has_even_prompts: bool
    cell_rows: Tensor | None
    row_cells: Tensor | None
    grid: Grid
    device: torch.device

    @classmethod
    def of(cls, scheduler: Scheduler, sequences: Sequences, device: torch.device) -> Slots:
        grid = scheduler.grid()
        rows = np.array(scheduler.rows, dtype=np.int64)
        lengths = sequences.prompt_lengths_P[scheduler.prompts]
        return cls(
            rows=rows,
            prompt_lengths=sequences.prompt_lengths_P[sequences.prompt_N[rows]],
            prompt_lengths_P=_tensor(lengths, device),
            longest_prompt=int(lengths.max()),
            has_even_prompts=bool((lengths == lengths[0]).all()),
            cell_rows=None if grid.is_identity else torch.tensor(grid.cells, device=device),
            row_cells=None if grid.is_identity else torch.tensor(grid.places, device=device),
            grid=grid,
            device=device,
        )

    def decode_batch(self, sequences: Sequences, cache: KVCache) -> DecodeBatch:
        """The newest token of every live row. Its keys and values are not stored yet, but `cache` has room for them."""
        tails = sequences.length_N[self.rows]
        positions = self.prompt_lengths + tails - 1
        longest = int(tails.max())
        cache.reserve_tail(longest)
        return DecodeBatch(
            ids_N=_tensor(sequences.last_tokens(self.rows), self.device),
            positions_N=_tensor(positions, self.device),
            slots_N=_tensor(np.arange(len(tails)) * cache.tail_tokens + tails - 1, self.device),
            tail_lengths_N=_tensor(tails, self.device),
            longest_tail=longest,
            is_even=bool((tails == longest).all()),
            longest_position=int(positions.max()),
            prompt_lengths_P=self.prompt_lengths_P,
            longest_prompt=self.longest_prompt,
            has_even_prompts=self.has_even_prompts,
            cell_rows=self.cell_rows,
            row_cells=self.row_cells,
            width=self.grid.width,
        )


def _tensor(values: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)
