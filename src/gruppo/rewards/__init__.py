"""Rewards: TRL's protocol, checked before the run, scored with a status for every cell. Import names from here."""

from gruppo.rewards.builtin import (
    exact_match_reward,
    format_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    length_reward,
    text_reward,
    think_format_reward,
)
from gruppo.rewards.builtin_table import BUILTINS
from gruppo.rewards.math import accuracy_reward, get_cosine_scaled_reward, reasoning_accuracy_reward
from gruppo.rewards.prepare import prepare_rewards
from gruppo.rewards.protocol import RewardFunction, RewardSource, RewardSpec
from gruppo.rewards.resolve import resolve_reward
from gruppo.rewards.score import LocalRewards, Scorer
from gruppo.rewards.tasks import reasoning_gym_reward

__all__ = [
    # running them
    "prepare_rewards",
    "resolve_reward",
    "Scorer",
    "LocalRewards",
    "RewardSource",
    "RewardSpec",
    "RewardFunction",
    # built-in
    "BUILTINS",
    "accuracy_reward",
    "exact_match_reward",
    "format_reward",
    "get_cosine_scaled_reward",
    "get_repetition_penalty_reward",
    "get_soft_overlong_punishment",
    "length_reward",
    "reasoning_accuracy_reward",
    "reasoning_gym_reward",
    "text_reward",
    "think_format_reward",
]
