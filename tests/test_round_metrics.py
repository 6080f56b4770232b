"""Metrics of a generation round, by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from gruppo.algorithm.advantages import group_relative
from gruppo.distributed.world import World
from gruppo.metrics import Last, Mean
from gruppo.round_metrics import RoundLengths, as_round_values, length_metrics, pass_metrics, reward_metrics
from gruppo.types import Completion, Group, Prompt, RewardTable

NAN = math.nan


def one_process():
    return World(SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu")))


def completion(sample, num_tokens, reason="stop", **fields):
    return Completion(sample, list(range(num_tokens)), reason, **fields)


def table(columns, metrics=None):
    rewards_NF = torch.tensor(list(columns.values())).T
    statuses = [["ok"] * len(columns)] * len(rewards_NF)
    return RewardTable(list(columns), rewards_NF, statuses, metrics=metrics or {})


def advantages(rewards, group_size=2):
    weights = torch.ones(rewards.rewards_NF.shape[1])
    return group_relative(
        rewards.rewards_NF, weights, group_size=group_size, scale="group", aggregation="sum_then_normalize"
    )


def lengths():
    prompt, other = Prompt(0, "a", [1, 2, 3]), Prompt(1, "b", [1])
    groups = [
        Group(prompt, [completion(0, 4), completion(1, 6, "length")]),
        Group(
            other,
            [completion(0, 5, trained=[True, False, False, True, True]), completion(1, 2, prompt_token_ids=[1, 1])],
        ),
    ]
    return RoundLengths.gather(groups, one_process())


def test_lengths_count_what_the_model_made():
    found = lengths()
    assert found.num_prompt_tokens_N.tolist() == [3, 3, 1, 2]
    assert found.num_tokens_N.tolist() == [4, 6, 5, 2]
    assert found.num_model_tokens_N.tolist() == [4, 6, 3, 2]
    assert found.is_truncated_N.tolist() == [False, True, False, False]
    assert found.num_processed == 9 + 15


def test_length_metrics():
    assert length_metrics(lengths()) == {
        "completions/mean_length": 3.75,
        "completions/min_length": 2.0,
        "completions/max_length": 6.0,
        "completions/clipped_ratio": 0.25,
        "completions/mean_terminated_length": 3.0,
        "completions/min_terminated_length": 2.0,
        "completions/max_terminated_length": 4.0,
    }


def test_where_none_ended_the_terminated_lengths_are_0():
    groups = [Group(Prompt(0, "a", [1]), [completion(0, 4, "length"), completion(1, 4, "abort")])]
    metrics = length_metrics(RoundLengths.gather(groups, one_process()))
    assert metrics["completions/clipped_ratio"] == 1.0
    assert metrics["completions/mean_terminated_length"] == 0.0


def test_reward_metrics():
    rewards = table({"a": [1.0, 0.0, 1.0, 1.0], "b": [0.5, NAN, NAN, NAN]}, {"extra": 7.0})
    metrics = reward_metrics(rewards, advantages(rewards), 2)
    assert metrics["rewards/a/mean"] == 0.75
    assert metrics["rewards/a/std"] == pytest.approx(0.5)
    assert metrics["rewards/b/mean"] == 0.5
    assert math.isnan(metrics["rewards/b/std"])
    # Sums: 1.5, 0, 1, 1.
    assert metrics["reward"] == 0.875
    assert metrics["reward_std"] == pytest.approx(torch.tensor([1.5, 0.0, 1.0, 1.0]).std().item())
    assert metrics["frac_reward_zero_std"] == 0.5
    assert (metrics["groups/frac_solved"], metrics["groups/frac_failed"]) == (0.5, 0.0)
    assert metrics["extra"] == 7.0


def test_groups_that_all_fail_are_told_from_those_that_all_succeed():
    rewards = table({"a": [0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]})
    metrics = reward_metrics(rewards, advantages(rewards), 2)
    assert (metrics["groups/frac_solved"], metrics["groups/frac_failed"]) == (0.25, 0.5)


def test_pass_at_k_by_hand():
    rewards = table({"exact": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, NAN, 0.0]})
    metrics = pass_metrics(rewards, 4)
    # First group: 1 - C(3,2)/C(4,2) = 1/2 and 1; second: 0 and 0.
    assert metrics == {"pass@2/exact": 0.25, "pass@4/exact": 0.5}


def test_pass_at_k_is_for_binary_rewards_only():
    rewards = table({"graded": [0.5, 0.0], "exact": [1.0, 0.0]})
    assert pass_metrics(rewards, 2) == {"pass@2/exact": 1.0}
    assert pass_metrics(rewards, 1) == {}


def test_round_values_are_one_per_round_and_tokens_the_latest():
    values = as_round_values({"reward": 0.5}, num_tokens=12)
    assert list(values) == ["num_tokens", "reward"]
    assert values == {"num_tokens": Last(12.0), "reward": Mean(0.5, 1)}
    assert list(as_round_values({"x": 1.0})) == ["x"]
