"""StaticBatch: what one decoding step reads, in tensors that keep their shapes and addresses from step to step.

A step that is to be recorded once and replayed (`cuda_graphs`) may not depend on how many rows are live. So rows and
prompts are padded to a `Bucket`, attention goes over whole buffers with masks by length, and a step's numbers are
copied into tensors that stay where they are.

A padding row stands for a tail slot that no live row has. It reads the first prompt and writes to the first place of
that free tail, which a later row overwrites; nothing it computes is looked at.

This holds inputs and computes nothing (`static_decode`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from gruppo.rollout.attention import DecodeBatch

if TYPE_CHECKING:
    from gruppo.rollout.batches import Slots
    from gruppo.rollout.kv_cache import KVCache
    from gruppo.rollout.sequence import Sequences

_COLUMNS = ("ids", "positions", "slots", "tail_lengths")


@dataclass(frozen=True, slots=True)
class Bucket:
    """The shapes of a step. Everything that a recorded step takes from the host."""

    num_rows: int
    num_prompts: int
    width: int
    """Rows of a prompt at most."""
    tail_tokens: int
    """Places in each tail: the buffers of another number are other buffers."""

    @classmethod
    def of(cls, slots: Slots, cache: KVCache, width: int) -> Bucket:
        """The smallest bucket that holds the live rows: powers of two, and at most what the cache has slots for.

        Args:
            width: of the whole rollout.
        """
        return cls(
            num_rows=min(_power_of_two(len(slots.rows)), cache.num_rows),
            num_prompts=min(_power_of_two(len(slots.prompt_lengths_P)), cache.num_prompts),
            width=width,
            tail_tokens=cache.tail_tokens,
        )


class StaticBatch:
    """The inputs of one bucket. `place` when rows came or went, then `load` before every step."""

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self.bucket = bucket
        num_rows, num_cells = bucket.num_rows, bucket.num_prompts * bucket.width
        # One copy to the device for all columns; pinned, so that it need not wait.
        is_pinned = device.type == "cuda"
        self._host_CN = torch.zeros(len(_COLUMNS), num_rows, dtype=torch.int64, pin_memory=is_pinned)
        self._host_uniforms_N = torch.zeros(num_rows, dtype=torch.float64, pin_memory=is_pinned)
        self._columns_CN = torch.zeros(len(_COLUMNS), num_rows, dtype=torch.int64, device=device)
        self.uniforms_N = torch.zeros(num_rows, dtype=torch.float64, device=device)
        self._prompt_lengths_P = torch.zeros(bucket.num_prompts, dtype=torch.int64, device=device)
        self._cell_rows = torch.zeros(num_cells, dtype=torch.int64, device=device)
        self._row_cells = torch.zeros(num_rows, dtype=torch.int64, device=device)

    def place(self, slots: Slots) -> None:
        """Takes over who lies where."""
        bucket, grid, num_prompts = self.bucket, slots.grid, len(slots.prompt_lengths_P)
        # The grid is as wide as the largest live group, ours as the largest of all.
        row_cells = np.zeros(bucket.num_rows, dtype=np.int64)
        row_cells[: len(slots.rows)] = [cell // grid.width * bucket.width + cell % grid.width for cell in grid.places]
        cell_rows = np.zeros((bucket.num_prompts, bucket.width), dtype=np.int64)
        cell_rows[:num_prompts, : grid.width] = np.reshape(grid.cells, (num_prompts, grid.width))
        self._row_cells.copy_(torch.from_numpy(row_cells))
        self._cell_rows.copy_(torch.from_numpy(cell_rows.ravel()))
        self._prompt_lengths_P[:num_prompts] = slots.prompt_lengths_P
        self._prompt_lengths_P[num_prompts:] = 0

    def load(self, slots: Slots, sequences: Sequences) -> None:
        """The newest token of every live row, its place, and the random number of the next."""
        rows, num_rows = slots.rows, self.bucket.num_rows
        tails = sequences.length_N[rows]
        host_CN = self._host_CN.numpy()
        host_CN[:] = 0
        ids_N, positions_N, slots_N, tail_lengths_N = host_CN
        slots_N[:] = np.arange(num_rows) * self.bucket.tail_tokens
        tail_lengths_N[:] = 1
        num_live = len(rows)
        ids_N[:num_live] = sequences.last_tokens(rows)
        positions_N[:num_live] = slots.prompt_lengths + tails - 1
        slots_N[:num_live] += tails - 1
        tail_lengths_N[:num_live] = tails
        self._columns_CN.copy_(self._host_CN, non_blocking=True)
        uniforms = sequences.uniforms(rows)
        if uniforms is not None:
            self._host_uniforms_N.numpy()[:num_live] = uniforms
            self.uniforms_N.copy_(self._host_uniforms_N, non_blocking=True)

    def decode_batch(self, cache: KVCache) -> DecodeBatch:
        """Views of the inputs, with the numbers of the bucket where a batch of live rows has its own."""
        ids_N, positions_N, slots_N, tail_lengths_N = self._columns_CN
        return DecodeBatch(
            ids_N=ids_N,
            positions_N=positions_N,
            slots_N=slots_N,
            tail_lengths_N=tail_lengths_N,
            longest_tail=self.bucket.tail_tokens,
            is_even=False,
            longest_position=cache.prefix_tokens + self.bucket.tail_tokens,
            prompt_lengths_P=self._prompt_lengths_P,
            longest_prompt=cache.prefix_tokens,
            has_even_prompts=False,
            cell_rows=self._cell_rows,
            row_cells=self._row_cells,
            width=self.bucket.width,
        )


def _power_of_two(number: int) -> int:
    """The smallest that is not below `number`."""
    return 1 << (number - 1).bit_length()
