"""The built-in rewards by name, for the command line and its help.

Not a registry: users add nothing here, they pass their functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gruppo.rewards.builtin import (
    exact_match_reward,
    format_reward,
    get_repetition_penalty_reward,
    get_soft_overlong_punishment,
    length_reward,
    think_format_reward,
)
from gruppo.rewards.math import accuracy_reward, get_cosine_scaled_reward, reasoning_accuracy_reward
from gruppo.rewards.tasks import reasoning_gym_reward

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "accuracy_reward": accuracy_reward,
    "exact_match_reward": exact_match_reward,
    "reasoning_accuracy_reward": reasoning_accuracy_reward,
    "reasoning_gym_reward": reasoning_gym_reward,
    "think_format_reward": think_format_reward,
}
"""Reward functions, used as they are."""

FACTORIES: dict[str, Callable[..., Any]] = {
    "format_reward": format_reward,
    "get_cosine_scaled_reward": get_cosine_scaled_reward,
    "get_repetition_penalty_reward": get_repetition_penalty_reward,
    "get_soft_overlong_punishment": get_soft_overlong_punishment,
    "length_reward": length_reward,
}
"""Functions that make a reward from their settings."""

BUILTINS: dict[str, Callable[..., Any]] = {**FUNCTIONS, **FACTORIES}
