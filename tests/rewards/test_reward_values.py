"""Every form of return value, good and bad."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from gruppo.errors import RewardError
from gruppo.rewards.values import read_values


@pytest.mark.parametrize(
    "returned",
    [
        [1.0, 0.0, 0.5],
        (1, 0, 0.5),
        pytest.param((x for x in [1.0, 0.0, 0.5]), id="generator"),
        [True, False, Fraction(1, 2)],
        torch.tensor([1.0, 0.0, 0.5]),
        torch.tensor([1.0, 0.0, 0.5], dtype=torch.bfloat16, requires_grad=True),
        np.array([1.0, 0.0, 0.5]),
        [np.float32(1), np.bool_(False), np.float64(0.5)],
        [torch.tensor(1), torch.tensor([0.0]), np.array([[0.5]])],
    ],
    ids=str,
)
def test_accepted(returned):
    assert read_values("f", returned, 3) == ([1.0, 0.0, 0.5], ["ok"] * 3)


def test_statuses():
    values, statuses = read_values("f", [None, math.nan, math.inf, -1e39, 10**400, 1e30], 6)
    assert statuses == ["none", "nan", "inf", "inf", "inf", "ok"]
    assert values[2:] == [math.inf, -math.inf, math.inf, 1e30]
    assert all(math.isnan(value) for value in values[:2])


async def coroutine():
    return [1.0] * 3


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (1.0, "returned 1.0 of type float; return a list"),
        (None, "returned None; return a list"),
        ("abc", "returned 'abc' of type str; return a list"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, "of type dict; return a list"),
        ({1.0, 2.0, 3.0}, "of type set; return a list"),
        ([1.0], r"'f' returned 1 rewards, but 3 were expected \(one per completion; row 1 onward is missing\)"),
        ([1.0] * 5, r"returned 5 rewards, but 3 were expected \(one per completion; 2 too many\)"),
        ([1.0, "1.0", 0.0], "returned '1.0' of type str for row 1"),
        ([1.0, 0.0, [1.0]], r"returned \[1.0\] of type list for row 2"),
        ([1.0, 0.0, torch.ones(2)], "of type Tensor for row 2"),
        ([1.0, 1j, 0.0], "of type complex for row 1"),
        (torch.ones(3, 1), r"Tensor of shape \(3, 1\)"),
        (torch.tensor(1.0), r"Tensor of shape \(\)"),
        (np.ones((1, 3)), r"ndarray of shape \(1, 3\)"),
    ],
    ids=str,
)
def test_refused_by_function_and_row(returned, message):
    with pytest.raises(RewardError, match=message) as raised:
        read_values("f", returned, 3)
    assert "f" in str(raised.value)


def test_a_forgotten_await_is_named():
    with pytest.raises(RewardError, match="returned a coroutine"):
        read_values("f", coroutine(), 3)
