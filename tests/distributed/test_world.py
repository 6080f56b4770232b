"""World: ragged gathers and reductions on two gloo ranks, and no-ops on one process."""

from types import SimpleNamespace

import pytest
import torch

from gruppo.distributed.world import World
from gruppo.errors import ConfigError, RewardError


def one_process(num_processes=1):
    accelerator = SimpleNamespace(process_index=0, num_processes=num_processes, device=torch.device("cpu"))
    return World(accelerator)


def test_one_process_hands_back_the_very_objects():
    world = one_process()
    rows, items = torch.ones(2, 3), ["a"]
    assert (world.rank, world.size, world.is_main, world.device) == (0, 1, True, torch.device("cpu"))
    assert world.gather_rows(rows) is rows
    assert world.gather_objects(items) is items
    assert world.sum_(rows) is rows
    assert world.max_(rows) is rows
    assert world.broadcast_(rows) is rows
    assert world.broadcast_object(items) is items
    assert world.gather_outcomes(lambda: items, RewardError, "looking")[0] is items
    world.barrier()
    assert torch.equal(rows, torch.ones(2, 3))


def test_one_process_raises_what_was_raised():
    with pytest.raises(ZeroDivisionError):
        one_process().gather_outcomes(lambda: 1 // 0, RewardError, "dividing")


def test_a_failure_on_one_rank_is_raised_on_all(two_ranks):
    for rank in two_ranks:
        assert rank["outcomes"] == [5, 6]
        assert rank["raised"] == "dividing failed on 1 of 2 ranks. rank 1: ZeroDivisionError: by hand"
        assert rank["after"] == [0, 1]
    assert [rank["cause"] for rank in two_ranks] == ["NoneType", "ZeroDivisionError"]


def test_several_processes_without_a_group_are_refused():
    with pytest.raises(ConfigError, match="accelerate launch"):
        one_process(num_processes=2)


def test_ranks_know_their_place(two_ranks):
    assert [(r["rank"], r["size"], r["is_main"]) for r in two_ranks] == [(0, 2, True), (1, 2, False)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ragged", [[0.0, 1.0], [10.0, 11.0], [12.0, 13.0]]),
        ("empty_on_0", [[7, 7, 7]]),
        ("bools", [True, True, False]),
        ("bool_dtype", "torch.bool"),
        ("bfloat16", [1.5, 2.5]),
        ("objects", ["rank 0", "rank 1", {"n": 1}]),
        ("summed", [3.0, 6.0]),
        ("sum_is_in_place", True),
        ("strided", [[0.0, 9.0], [3.0, 12.0], [6.0, 15.0]]),
        ("max", [1, 1]),
        ("broadcast", {"from": 0}),
        ("broadcast_1", [1.0]),
    ],
)
def test_both_ranks_see_the_same(two_ranks, name, expected):
    assert [rank[name] for rank in two_ranks] == [expected, expected]
