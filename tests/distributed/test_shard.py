"""Gradients are summed once per step over ranks that may run different numbers of backwards."""

from types import SimpleNamespace

import torch
from torch import nn

from gruppo.distributed.shard import _buckets, broadcast_parameters, sum_gradients
from gruppo.distributed.world import World


def test_gradients_are_summed_and_missing_ones_count_as_zero(two_ranks):
    both, mine, none, half, frozen = [3.0, 5.0, 7.0], [5.0, 6.0], None, [2.0, 2.0], None
    for rank in two_ranks:
        assert rank["gradients"] == [both, mine, none, half, frozen]
        assert rank["half_dtype"] == "torch.bfloat16"


def test_parameters_and_buffers_come_from_rank_0(two_ranks):
    torch.manual_seed(0)
    weight = nn.Linear(3, 2).weight
    assert two_ranks[0]["model"] == two_ranks[1]["model"]
    assert two_ranks[1]["model"]["0.weight"] == weight.tolist()
    assert two_ranks[1]["model"]["1.running_mean"] == [0.0, 0.0]
    assert two_ranks[1]["model"]["1.num_batches_tracked"] == 3


def test_two_ranks_with_one_and_three_backwards_equal_one_process(two_ranks):
    weight = nn.Parameter(torch.tensor([0.5, -0.25]))
    for row in torch.arange(8.0).reshape(4, 2):
        ((row * weight).sum() ** 2 / 4).backward()
    for rank in two_ranks:
        torch.testing.assert_close(torch.tensor(rank["split_step"]), weight.grad, rtol=1e-6, atol=0)


def test_one_process_changes_nothing():
    world = World(SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu")))
    with_grad, without = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    with_grad.grad = torch.ones(2)
    sum_gradients([with_grad, without], world)
    broadcast_parameters(nn.Linear(1, 1), world)
    assert with_grad.grad.tolist() == [1.0, 1.0]
    assert without.grad is None


def test_buckets_stay_within_their_size_and_hold_one_type():
    f32 = [torch.zeros(4) for _ in range(3)]
    f16 = torch.zeros(4, dtype=torch.float16)
    large = torch.zeros(100)
    buckets = list(_buckets([*f32, f16, large, f32[0]], bucket_bytes=32))
    assert [[t.numel() for t in bucket] for bucket in buckets] == [[4, 4], [4], [4], [100], [4]]
    assert list(_buckets([], bucket_bytes=32)) == []
