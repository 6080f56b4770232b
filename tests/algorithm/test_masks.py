"""Which tokens take part: by hand, and the quantile against torch's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gruppo.algorithm.masks import drop_truncated, off_policy_keep, quantile, top_entropy

TRAINED_NT = torch.tensor([[True, True, True], [True, True, False]])


def test_drop_truncated_empties_the_row():
    kept = drop_truncated(TRAINED_NT, torch.tensor([False, True]))
    assert kept.tolist() == [[True, True, True], [False, False, False]]


def test_off_policy_keep_drops_only_bad_rows_that_moved_away():
    advantages_N = torch.tensor([1.0, -1.0, -1.0, 0.0, -1.0])
    trained_NT = torch.tensor([[True, True]] * 4 + [[False, False]])
    # Mean behaviour - policy per row: 3, 3, 0.5, 3, nothing.
    behaviour_NT = torch.tensor([[3.0, 3.0], [6.0, 0.0], [0.5, 0.5], [3.0, 3.0], [9.0, 9.0]])
    keep_N1 = off_policy_keep(advantages_N, torch.zeros(5, 2), behaviour_NT, trained_NT, threshold=0.5)
    assert keep_N1.flatten().tolist() == [True, False, True, True, True]


def test_off_policy_keep_ignores_unknown_and_untrained_tokens():
    behaviour_NT = torch.tensor([[math.nan, 0.8, 100.0]])
    trained_NT = torch.tensor([[True, True, False]])
    logprobs_NT = torch.zeros(1, 3, requires_grad=True)
    keep = off_policy_keep(torch.tensor([-1.0]), logprobs_NT, behaviour_NT, trained_NT, threshold=0.4)
    assert keep.tolist() == [[True]]  # (0 + 0.8) / 2 = 0.4
    tighter = off_policy_keep(torch.tensor([-1.0]), logprobs_NT, behaviour_NT, trained_NT, threshold=0.39)
    assert tighter.tolist() == [[False]]


def test_top_entropy_keeps_the_share_of_highest_entropy():
    entropy_NT = torch.tensor([[1.0, 5.0, 3.0], [2.0, 4.0, 99.0]])
    # Trained entropies 1..5; the 0.6 quantile is 1 + 0.6 * 4 = 3.4.
    assert top_entropy(entropy_NT, TRAINED_NT, quantile_keep=0.4).tolist() == [
        [False, True, False],
        [False, True, False],
    ]
    assert top_entropy(entropy_NT, TRAINED_NT, quantile_keep=1.0).equal(TRAINED_NT)


def test_top_entropy_takes_its_threshold_from_all_ranks():
    entropy_NT = torch.tensor([[1.0, 5.0, 3.0], [2.0, 4.0, 99.0]])
    everywhere = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 10.0, 10.0, 10.0, 10.0])
    kept = top_entropy(entropy_NT, TRAINED_NT, quantile_keep=0.5, all_entropies=everywhere)  # threshold 7.5
    assert not kept.any()


def test_top_entropy_of_nothing_keeps_nothing():
    nothing_NT = torch.zeros(2, 3, dtype=torch.bool)
    assert not top_entropy(torch.ones(2, 3), nothing_NT, quantile_keep=0.5).any()


def test_top_entropy_ignores_nan_outside_the_mask():
    entropy_NT = torch.tensor([[1.0, 5.0, 3.0], [2.0, 4.0, math.nan]])
    assert top_entropy(entropy_NT, TRAINED_NT, quantile_keep=0.4).sum() == 2


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 300), st.floats(0, 1), st.integers(0, 10_000))
def test_quantile_equals_torch(count, q, seed):
    values = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    assert quantile(values, q) == torch.quantile(values, q)


@pytest.mark.parametrize("keep", [0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("count", [10, 11, 101])
def test_quantile_equals_torch_where_the_rank_is_whole(keep, count):
    values = torch.rand(count, generator=torch.Generator().manual_seed(0))
    assert quantile(values, 1 - keep) == torch.quantile(values, 1 - keep)


def test_quantile_has_no_limit_of_16_million_values():
    values = torch.zeros(2**24 + 2)
    values[-1] = 1
    assert quantile(values, 0.5) == 0
