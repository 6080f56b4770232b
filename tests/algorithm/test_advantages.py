"""Advantages by hand, by property, and what a reward table says about a batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gruppo.algorithm.advantages import group_relative, nan_centre, nan_std, pass_at_k, zero_variance_split
from gruppo.errors import ConfigError

NAN = math.nan
ONE = torch.ones(1)
EPS = 1e-4


def column(*rewards: float) -> torch.Tensor:
    return torch.tensor(rewards, dtype=torch.float64).unsqueeze(1)


def advantages(rewards_NF, weights_F=ONE, *, group_size=3, scale="group", aggregation="sum_then_normalize"):
    return group_relative(rewards_NF, weights_F, group_size=group_size, scale=scale, aggregation=aggregation)


def test_group_scaling_by_hand():
    # Group 0: mean 2, deviations (-1, 0, 1), std 1. Group 1: mean 4, deviations (-4, 2, 2), std sqrt(24 / 2).
    table = advantages(column(1, 2, 3, 0, 6, 6))
    a, b = 1 / (1 + EPS), math.sqrt(12) + EPS
    assert table.advantages_N.tolist() == pytest.approx([-a, 0, a, -4 / b, 2 / b, 2 / b], rel=1e-12)
    assert table.group_mean_N.tolist() == [2, 2, 2, 4, 4, 4]
    assert table.group_std_N.tolist() == pytest.approx([1, 1, 1] + [math.sqrt(12)] * 3, rel=1e-12)
    assert table.rewards_N.tolist() == [1, 2, 3, 0, 6, 6]
    assert not table.is_zero_std_N.any()
    assert not table.is_unscorable_N.any()


def test_no_scaling_by_hand():
    table = advantages(column(1, 2, 3, 0, 6, 6), scale="none")
    assert table.advantages_N.tolist() == [-1, 0, 1, -4, 2, 2]


def test_batch_scaling_divides_by_the_batch_and_subtracts_the_group():
    # All six: mean 3, squared deviations 4 + 1 + 0 + 9 + 9 + 9 = 32, std sqrt(32 / 5).
    table = advantages(column(1, 2, 3, 0, 6, 6), scale="batch")
    std = math.sqrt(32 / 5) + EPS
    assert table.advantages_N.tolist() == pytest.approx([-1 / std, 0, 1 / std, -4 / std, 2 / std, 2 / std], rel=1e-12)
    assert table.group_std_N.tolist() == pytest.approx([1, 1, 1] + [math.sqrt(12)] * 3, rel=1e-12)


def test_weights_sum_functions_before_normalising():
    rewards_NF = torch.tensor([[1.0, 10.0], [0.0, 10.0], [1.0, 40.0]], dtype=torch.float64)
    table = advantages(rewards_NF, torch.tensor([1.0, 0.1]), scale="none")
    assert table.rewards_N.tolist() == pytest.approx([2, 1, 5], rel=1e-7)
    assert table.advantages_N.tolist() == pytest.approx([-2 / 3, -5 / 3, 7 / 3], rel=1e-6)


def test_normalize_then_sum_by_hand():
    # Function 0: deviations (-1, 1), std sqrt(2). Function 1: the same, a hundred times larger: equal say after
    # normalisation. Group 1 is flat in both. Sums: (-2x, 2x, 0, 0) with x = 1 / (sqrt(2) + eps), ...
    rewards_NF = torch.tensor([[0.0, 0.0], [2.0, 200.0], [5.0, 7.0], [5.0, 7.0]], dtype=torch.float64)
    table = advantages(rewards_NF, torch.ones(2), group_size=2, aggregation="normalize_then_sum")
    s = 1 / (math.sqrt(2) + EPS) + 100 / (100 * math.sqrt(2) + EPS)
    std = math.sqrt(2 * s**2 / 3) + EPS
    assert table.advantages_N.tolist() == pytest.approx([-s / std, s / std, 0, 0], rel=1e-12)
    assert table.rewards_N.tolist() == [0, 202, 12, 12]
    assert table.group_std_N.tolist() == pytest.approx([202 / math.sqrt(2)] * 2 + [0, 0])
    assert not table.is_zero_std_N.any()  # of the batch, in this mode


def test_abstentions_are_left_out_of_the_sum_and_of_the_group():
    rewards_NF = torch.tensor([[1.0, NAN], [NAN, NAN], [3.0, 2.0]], dtype=torch.float64)
    table = advantages(rewards_NF, torch.ones(2), scale="none")
    assert table.is_unscorable_N.tolist() == [False, True, False]
    assert table.rewards_N[0] == 1
    assert table.rewards_N[1].isnan()
    assert table.rewards_N[2] == 5
    assert table.advantages_N.tolist() == [-2, 0, 2]
    assert table.group_mean_N.tolist() == [3, 3, 3]
    scaled = advantages(rewards_NF, torch.ones(2))
    assert scaled.advantages_N.tolist() == pytest.approx(
        [-2 / (math.sqrt(8) + EPS), 0, 2 / (math.sqrt(8) + EPS)], rel=1e-12
    )


def test_a_lone_scored_row_has_no_deviation_and_no_advantage():
    table = advantages(column(5, NAN, NAN))
    assert table.advantages_N.tolist() == [0, 0, 0]
    assert table.group_std_N.isnan().all()
    assert not table.is_zero_std_N.any()
    everything_unscorable = advantages(column(NAN, NAN, NAN), scale="batch")
    assert everything_unscorable.advantages_N.tolist() == [0, 0, 0]


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_groups_of_one_have_no_advantage(scale, aggregation):
    table = advantages(column(1, 2, 5), group_size=1, scale=scale, aggregation=aggregation)
    assert table.advantages_N.tolist() == [0, 0, 0]
    assert table.group_std_N.tolist() == [0, 0, 0]


def test_zero_std_looks_at_the_batch_when_scaling_does():
    rewards = column(1, 1, 1, 2, 2, 2)
    assert advantages(rewards).is_zero_std_N.all()
    assert advantages(rewards, scale="none").is_zero_std_N.all()
    assert not advantages(rewards, scale="batch").is_zero_std_N.any()
    assert advantages(column(1, 1, 1, 1, 1, 1), scale="batch").is_zero_std_N.all()


@pytest.mark.parametrize("reward", [0.1, 0.7, 1 / 3, 1e6 + 0.1])
def test_equal_rewards_give_exactly_zero_in_float32(reward):
    rewards_NF = torch.full((14, 1), reward, dtype=torch.float32)
    for scale in ("group", "batch", "none"):
        table = advantages(rewards_NF, group_size=7, scale=scale)
        assert (table.advantages_N == 0).all()
        assert table.is_zero_std_N.all()


def test_ragged_groups_are_our_mistake():
    with pytest.raises(AssertionError, match="4 rows are not groups of 3"):
        advantages(column(1, 2, 3, 4))


def test_nan_std_is_the_sample_deviation():
    values = torch.tensor([[1.0, NAN, 4.0, 7.0], [2.0, NAN, NAN, NAN]], dtype=torch.float64)
    std = nan_std(values)
    assert std[0].item() == 3
    assert std[1].isnan()
    assert nan_centre(values)[0, [0, 2, 3]].tolist() == [-3, 0, 3]


rewards_of_two_groups = st.lists(st.integers(-20, 20), min_size=8, max_size=8)
modes = st.sampled_from(["group", "batch", "none"])
aggregations = st.sampled_from(["sum_then_normalize", "normalize_then_sum"])


@settings(deadline=None, max_examples=50)
@given(rewards_of_two_groups, st.permutations(range(4)), modes, aggregations)
def test_permuting_a_group_permutes_its_advantages(rewards, order, scale, aggregation):
    order_N = [*order, *range(4, 8)]
    args = {"group_size": 4, "scale": scale, "aggregation": aggregation}
    plain = advantages(column(*rewards), **args).advantages_N
    permuted = advantages(column(*rewards)[order_N], **args).advantages_N
    torch.testing.assert_close(permuted, plain[order_N], rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=50)
@given(rewards_of_two_groups, st.integers(-1000, 1000), modes, aggregations)
def test_shifting_a_group_changes_nothing(rewards, shift, scale, aggregation):
    # A shift of one group's rewards leaves that group's deviations; the batch's std sees it, so `batch` shifts all.
    shifted = [r + shift if scale == "batch" or i < 4 else r for i, r in enumerate(rewards)]
    args = {"group_size": 4, "scale": scale, "aggregation": aggregation}
    plain = advantages(column(*rewards), **args).advantages_N
    torch.testing.assert_close(advantages(column(*shifted), **args).advantages_N, plain, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=50)
@given(rewards_of_two_groups, st.floats(1.0, 1000.0), st.sampled_from(["group", "batch"]), aggregations)
def test_scaling_rewards_changes_nothing_but_the_epsilon(rewards, factor, scale, aggregation):
    args = {"group_size": 4, "scale": scale, "aggregation": aggregation}
    plain = advantages(column(*rewards), **args).advantages_N
    scaled = advantages(column(*rewards) * factor, **args).advantages_N
    # The smallest deviation of four unequal integers is 0.5, so epsilon = 1e-4 shows by at most 2e-4, twice.
    torch.testing.assert_close(scaled, plain, rtol=5e-4, atol=1e-9)
    unscaled = advantages(column(*rewards), group_size=4, scale="none").advantages_N
    torch.testing.assert_close(
        advantages(column(*rewards) * factor, group_size=4, scale="none").advantages_N, unscaled * factor
    )


@settings(deadline=None, max_examples=50)
@given(st.floats(-100, 100, width=32), st.lists(st.integers(0, 5), min_size=4, max_size=4), modes)
def test_a_zero_variance_group_gets_zero_whatever_its_neighbour(reward, neighbour, scale):
    rewards_NF = torch.tensor([reward] * 4 + neighbour, dtype=torch.float32).unsqueeze(1)
    assert (advantages(rewards_NF, group_size=4, scale=scale).advantages_N[:4] == 0).all()


@settings(deadline=None, max_examples=50)
@given(rewards_of_two_groups, modes)
def test_advantages_of_a_group_sum_to_zero(rewards, scale):
    advantages_PG = advantages(column(*rewards), group_size=4, scale=scale).advantages_N.view(2, 4)
    torch.testing.assert_close(advantages_PG.sum(dim=1), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("rewards", "solved", "failed"),
    [
        ([1, 1, 0, 0, 0, 1, 0, 0], 0.25, 0.5),  # all right, all wrong, mixed, all wrong
        ([1, 1, 1, 1], 1.0, 0.0),  # one value everywhere, above 0
        ([0, 0, 0, 0], 0.0, 1.0),
        ([1, NAN, 0, 1, NAN, NAN, 0, 0], 0.0, 0.25),  # one scored row is no evidence
        ([1, 1, 0.5, 0.5, 0, 0, 0, 1], 0.25, 0.5),  # the midpoint itself is a failure
        ([NAN, NAN, NAN, NAN], 0.0, 0.0),
        ([0.5, 1, 0, 1, 1, 0, 0.2, 0], 0.0, 0.0),
    ],
)
def test_zero_variance_split(rewards, solved, failed):
    assert zero_variance_split(torch.tensor(rewards, dtype=torch.float32), 2) == (solved, failed)


def test_pass_at_k_by_hand():
    assert pass_at_k(1, 4, 1) == 0.25
    assert pass_at_k(1, 4, 2) == 0.5
    assert pass_at_k(2, 4, 2) == pytest.approx(1 - 1 / 6)
    assert pass_at_k(0, 4, 4) == 0
    assert pass_at_k(3, 4, 2) == 1  # three right of four: two draws cannot both miss


def test_pass_at_k_refuses_what_it_cannot_estimate():
    with pytest.raises(ConfigError, match="pass@8 cannot be estimated from 4 samples"):
        pass_at_k(1, 4, 8)
    with pytest.raises(ConfigError, match="5 correct of 4 samples"):
        pass_at_k(5, 4, 1)
