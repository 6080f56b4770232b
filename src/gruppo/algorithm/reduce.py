"""Reducers: from counts of trained tokens to one weight per row, known before the first forward.

Every loss of the family is  sum over rows of  weight * (sum over trained tokens of the token loss).  What tells
`grpo` from `dapo` or `dr_grpo` is the weight alone. So the rows of an optimizer step may be cut into forwards in
any way, and the gradients of all parts of all ranks are simply SUMMED: weights carry the 1 / world_size that an
averaging data-parallel wrapper would apply.

Where TRL's definition depends on its micro-batch (`bnpo`'s denominator, the mean over b rows), the micro-batch is
the slice: the rows with one slice id, `per_device_train_batch_size` of them on each rank.

Not here: the token losses themselves (losses.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowCounts:
    """What a reducer may look at. Rows are this rank's; only `num_generation_tokens` spans the ranks."""

    num_tokens_N: Tensor
    """Trained tokens of each local row."""
    slice_ids_N: Tensor
    """int; which slice (TRL micro-batch) each local row belongs to."""
    num_rows_per_slice: int
    """b: local rows of one slice, rows without trained tokens included."""
    num_slices_in_window: int
    """GA': slices that make up this optimizer step. Ignored (1) unless `is_training`."""
    num_slices_per_generation: int
    """S: slices that make up one generation round."""
    num_generation_tokens: int
    """N_gen: trained tokens of the whole generation round, all ranks."""
    world_size: int
    max_completion_length: int
    is_training: bool

    @property
    def window(self) -> int:
        """GA' in training; evaluation accumulates nothing."""
        return self.num_slices_in_window if self.is_training else 1


def row_mean(counts: RowCounts) -> Tensor:
    """1 / (max(n, 1) * b * GA' * W): mean over the row's tokens, then over the slice's rows. Short rows' tokens
    weigh more. Rows without trained tokens still count in b."""
    return _inverse(
        _at_least_one(counts.num_tokens_N) * (counts.num_rows_per_slice * counts.window * counts.world_size)
    )


def row_sum(counts: RowCounts) -> Tensor:
    """1 / (b * GA' * W): sum over the row's tokens, mean over the slice's rows."""
    return _constant(counts, counts.num_rows_per_slice * counts.window * counts.world_size)


def slice_token_mean(counts: RowCounts) -> Tensor:
    """1 / (max(sum of n over this rank's slice, 1) * GA' * W): mean over the tokens of each local slice. The one
    reducer that depends on how a step is split into slices, by definition."""
    tokens_N = slice_totals(counts.num_tokens_N, counts.slice_ids_N)
    return _inverse(_at_least_one(tokens_N) * (counts.window * counts.world_size))


def generation_token_mean(counts: RowCounts) -> Tensor:
    """1 / (max(N_gen, 1) * GA' / S) in training, 1 / max(N_gen, 1) in evaluation: mean over all tokens of the
    generation round, rescaled to the part of it that one optimizer step consumes. Every token weighs the same."""
    share = counts.num_slices_in_window / counts.num_slices_per_generation if counts.is_training else 1.0
    return _constant(counts, max(counts.num_generation_tokens, 1) * share)


def constant_length(counts: RowCounts) -> Tensor:
    """1 / (b * max_completion_length * GA' * W): a constant, so neither short nor long rows are favoured."""
    rows = counts.num_rows_per_slice * counts.window * counts.world_size
    return _constant(counts, rows * counts.max_completion_length)


REDUCERS: dict[str, Callable[[RowCounts], Tensor]] = {
    "row_mean": row_mean,
    "row_sum": row_sum,
    "slice_token_mean": slice_token_mean,
    "generation_token_mean": generation_token_mean,
    "constant_length": constant_length,
}
"""name -> function from counts to weights_N (float32). `losses.LOSSES` says which loss uses which."""


def entropy_weights(num_active_tokens_N: Tensor, counts: RowCounts) -> Tensor:
    """Weight of each row's summed entropy in the entropy bonus: slice_token_mean over the active tokens.

    `num_active_tokens_N`: trained tokens that the bonus acts on; fewer than `counts.num_tokens_N` only when
    `top_entropy_quantile` < 1, and then known only after the slice's forward.
    """
    tokens_N = slice_totals(num_active_tokens_N, counts.slice_ids_N)
    return _inverse(_at_least_one(tokens_N) * (counts.window * counts.world_size))


def slice_totals(values_N: Tensor, slice_ids_N: Tensor) -> Tensor:
    """For each row, the sum of `values_N` over all rows with its slice id."""
    _, position_N = slice_ids_N.unique(return_inverse=True)
    totals = values_N.new_zeros(int(position_N.max()) + 1 if position_N.numel() else 0)
    return totals.index_add(0, position_N, values_N)[position_N]


def _at_least_one(count_N: Tensor) -> Tensor:
    return count_N.clamp(min=1)


def _inverse(denominator_N: Tensor) -> Tensor:
    return denominator_N.to(torch.float32).reciprocal()


def _constant(counts: RowCounts, denominator: float) -> Tensor:
    return torch.full_like(counts.num_tokens_N, 1.0 / denominator, dtype=torch.float32)
