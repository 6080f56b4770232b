"""Reducers by hand: two slices of two rows, two ranks, one of two windows of a round."""

import pytest
import torch

from gruppo.algorithm.losses import LOSSES, row_weights
from gruppo.algorithm.reduce import REDUCERS, RowCounts, entropy_weights, slice_totals


def make_counts(**changes):
    base = {
        "num_tokens_N": torch.tensor([3, 0, 5, 1]),
        "slice_ids_N": torch.tensor([7, 7, 2, 2]),
        "num_rows_per_slice": 2,
        "num_slices_in_window": 2,
        "num_slices_per_generation": 4,
        "num_generation_tokens": 50,
        "world_size": 2,
        "max_completion_length": 10,
        "is_training": True,
    }
    return RowCounts(**(base | changes))


# b = 2, GA' = 2, W = 2: b * GA' * W = 8.
TRAINING = {
    "row_mean": [1 / 24, 1 / 8, 1 / 40, 1 / 8],
    "row_sum": [1 / 8] * 4,
    "slice_token_mean": [1 / 12, 1 / 12, 1 / 24, 1 / 24],
    "generation_token_mean": [1 / 25] * 4,
    "constant_length": [1 / 80] * 4,
}
# GA' = 1, and a round is one step.
EVALUATION = {
    "row_mean": [1 / 12, 1 / 4, 1 / 20, 1 / 4],
    "row_sum": [1 / 4] * 4,
    "slice_token_mean": [1 / 6, 1 / 6, 1 / 12, 1 / 12],
    "generation_token_mean": [1 / 50] * 4,
    "constant_length": [1 / 40] * 4,
}


@pytest.mark.parametrize("name", sorted(REDUCERS))
def test_weights_by_hand(name):
    weights_N = REDUCERS[name](make_counts())
    assert weights_N.dtype == torch.float32
    assert weights_N.tolist() == pytest.approx(TRAINING[name], rel=1e-7)
    assert REDUCERS[name](make_counts(is_training=False)).tolist() == pytest.approx(EVALUATION[name], rel=1e-7)


@pytest.mark.parametrize("name", sorted(REDUCERS))
def test_no_tokens_anywhere_is_finite(name):
    counts = make_counts(num_tokens_N=torch.zeros(4, dtype=torch.int64), num_generation_tokens=0)
    assert REDUCERS[name](counts).isfinite().all()


def test_no_rows_at_all():
    nothing = torch.zeros(0, dtype=torch.int64)
    for reducer in REDUCERS.values():
        assert reducer(make_counts(num_tokens_N=nothing, slice_ids_N=nothing)).shape == (0,)


def test_each_loss_has_its_reducer():
    assert {name: row.reducer for name, row in LOSSES.items()} == {
        "grpo": "row_mean",
        "sapo": "row_mean",
        "bnpo": "slice_token_mean",
        "dr_grpo": "constant_length",
        "dapo": "generation_token_mean",
        "cispo": "generation_token_mean",
        "vespo": "generation_token_mean",
        "luspo": "row_sum",
    }
    assert row_weights("dapo", make_counts()).tolist() == pytest.approx([1 / 25] * 4)


def test_row_mean_over_two_ranks_is_the_mean_over_all_rows():
    # Two ranks, one slice of two rows each: summed over ranks, the weights times token counts add up to 1.
    ranks = [torch.tensor([3, 2]), torch.tensor([4, 1])]
    total = sum(
        float(
            (row_mean_weights(n) * n).sum()  # each row's tokens together weigh 1 / 4
        )
        for n in ranks
    )
    assert total == pytest.approx(1, rel=1e-6)


def row_mean_weights(num_tokens_N):
    counts = make_counts(num_tokens_N=num_tokens_N, slice_ids_N=torch.tensor([0, 0]), num_slices_in_window=1)
    return REDUCERS["row_mean"](counts)


def test_entropy_weights_are_a_token_mean_over_the_active_tokens_of_the_slice():
    weights_N = entropy_weights(torch.tensor([2, 0, 1, 1]), make_counts())
    assert weights_N.tolist() == pytest.approx([1 / 8, 1 / 8, 1 / 8, 1 / 8])
    nothing = entropy_weights(torch.tensor([0, 0, 0, 4]), make_counts(is_training=False))
    assert nothing.tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 8, 1 / 8])


def test_slice_totals():
    totals = slice_totals(torch.tensor([3, 1, 5, 1]), torch.tensor([7, 2, 7, 4]))
    assert totals.tolist() == [8, 1, 8, 1]
