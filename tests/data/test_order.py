"""The order of prompts, rows and micro-batches: hand-made cases, laws, and TRL's sampler."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruppo.data.order import Share, epoch_permutation, round_prompts, rows_of_rank, slice_assignment


def test_epochs_are_different_permutations_and_each_is_reproducible():
    first, second = (epoch_permutation(9, seed=3, epoch=e) for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(9))
    assert first != second
    assert epoch_permutation(9, seed=3, epoch=1) == second
    assert epoch_permutation(9, seed=4, epoch=0) != first


def test_without_shuffle_the_order_is_the_datasets():
    assert epoch_permutation(4, seed=0, epoch=5, shuffle=False) == [0, 1, 2, 3]
    assert round_prompts(7, 3, seed=0, epoch=2, round_in_epoch=1, shuffle=False) == [3, 4, 5]


def test_rounds_cut_the_epoch_and_drop_the_incomplete_chunk():
    order = epoch_permutation(7, seed=1, epoch=2)
    assert [round_prompts(7, 3, 1, 2, r) for r in (0, 1)] == [order[:3], order[3:6]]
    with pytest.raises(AssertionError):
        round_prompts(7, 3, 1, 2, 2)


def test_changing_a_returned_order_changes_no_later_answer():
    before = epoch_permutation(5, seed=0, epoch=0)
    epoch_permutation(5, seed=0, epoch=0).reverse()
    assert epoch_permutation(5, seed=0, epoch=0) == before


def test_ranks_hold_consecutive_blocks_and_a_group_may_span_two():
    assert rows_of_rank(3, 4, rank=0, world_size=2) == [Share(0, range(0, 4)), Share(1, range(0, 2))]
    assert rows_of_rank(3, 4, rank=1, world_size=2) == [Share(1, range(2, 4)), Share(2, range(0, 4))]
    assert rows_of_rank(1, 8, rank=2, world_size=4) == [Share(0, range(4, 6))]
    assert rows_of_rank(1, 2, rank=0, world_size=4) == []


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
def test_ranks_together_hold_every_row_once_in_order(num_prompts, group_size, world_size):
    shares = [share for rank in range(world_size) for share in rows_of_rank(num_prompts, group_size, rank, world_size)]
    rows = [(share.position, sample) for share in shares for sample in share.samples]
    assert rows == [(p, g) for p in range(num_prompts) for g in range(group_size)]


def test_slices_are_equal_parts_and_a_function_of_their_arguments():
    assert slice_assignment(6, 1, seed=0, round_index=0, rank=0) == [0] * 6
    slices = slice_assignment(12, 3, seed=0, round_index=0, rank=0)
    assert sorted(slices) == [0] * 4 + [1] * 4 + [2] * 4
    assert slices == slice_assignment(12, 3, seed=0, round_index=0, rank=0)
    others = [slice_assignment(12, 3, *key) for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert slices not in others
    assert slices != sorted(slices)


@pytest.mark.parity
@pytest.mark.parametrize("shuffle", [True, False])
def test_three_epochs_equal_trls_sampler(shuffle):
    sampler_class = pytest.importorskip("trl.trainer.utils").RepeatSampler
    num_prompts, per_round, group_size, repeats = 23, 5, 3, 2
    sampler = sampler_class(range(num_prompts), group_size, per_round, repeats, shuffle, seed=42)
    for epoch in range(3):
        rounds = [
            round_prompts(num_prompts, per_round, 42, epoch, r, shuffle=shuffle)
            for r in range(num_prompts // per_round)
        ]
        ours = [index for chunk in rounds for _ in range(repeats) for index in chunk for _ in range(group_size)]
        assert ours == list(sampler)
