"""Run by tests/distributed on two ranks: every collective once, results as JSON. Not a test by itself."""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from gruppo.distributed.shard import broadcast_parameters, sum_gradients
from gruppo.distributed.world import World
from gruppo.errors import RewardError


def collectives(world: World) -> dict[str, object]:
    rank = world.rank
    ragged = torch.arange(2 * (rank + 1), dtype=torch.float32).reshape(rank + 1, 2) + 10 * rank
    empty_on_0 = torch.full((rank, 3), 7, dtype=torch.int64)
    summed = torch.tensor([1.0, 2.0]) * (rank + 1)
    strided = torch.arange(6.0).reshape(2, 3).t() * (rank + 1)
    returned = world.sum_(summed)
    world.sum_(strided)
    world.barrier()
    return {
        "rank": rank,
        "size": world.size,
        "is_main": world.is_main,
        "ragged": world.gather_rows(ragged).tolist(),
        "empty_on_0": world.gather_rows(empty_on_0).tolist(),
        "bools": world.gather_rows(torch.tensor([rank == 0] * (2 - rank))).tolist(),
        "bool_dtype": str(world.gather_rows(torch.tensor([True])).dtype),
        "bfloat16": world.gather_rows(torch.full((1,), 1.5 + rank, dtype=torch.bfloat16)).tolist(),
        "objects": world.gather_objects([f"rank {rank}", {"n": rank}][: rank + 1]),
        "summed": summed.tolist(),
        "sum_is_in_place": returned is summed,
        "strided": strided.tolist(),
        "max": world.max_(torch.tensor([rank, 1 - rank])).tolist(),
        "broadcast": world.broadcast_object({"from": rank}),
        "broadcast_1": world.broadcast_(torch.tensor([float(rank)]), source=1).tolist(),
    }


def gradients(world: World) -> dict[str, object]:
    rank = world.rank
    both, mine, none, half, frozen = (nn.Parameter(torch.zeros(n)) for n in (3, 2, 4, 2, 1))
    half.data = half.data.to(torch.bfloat16)
    frozen.requires_grad = False
    both.grad = torch.tensor([1.0, 2.0, 3.0]) + rank
    half.grad = torch.ones(2, dtype=torch.bfloat16)
    if rank == 1:
        mine.grad = torch.tensor([5.0, 6.0])
    # 16 bytes: `both` fills a bucket, so there are several, and types are not mixed.
    sum_gradients([both, mine, none, half, frozen], world, bucket_bytes=16)
    kept = [None if p.grad is None else p.grad.tolist() for p in (both, mine, none, half, frozen)]
    return {"gradients": kept, "half_dtype": str(half.grad.dtype)}


def parameters(world: World) -> dict[str, object]:
    torch.manual_seed(world.rank)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    for name, buffer in model.named_buffers():
        buffer.fill_(world.rank + (3 if name.endswith("num_batches_tracked") else 0))
    broadcast_parameters(model, world)
    return {"model": {name: value.tolist() for name, value in model.state_dict().items()}}


def split_step(world: World) -> dict[str, object]:
    """One SGD step on four rows: rank 0 has one, rank 1 has three."""
    weight = nn.Parameter(torch.tensor([0.5, -0.25]))
    rows = torch.arange(8.0).reshape(4, 2)[slice(0, 1) if world.rank == 0 else slice(1, 4)]
    for row in rows:  # a different number of backwards per rank
        ((row * weight).sum() ** 2 / 4).backward()
    sum_gradients([weight], world)
    return {"split_step": weight.grad.tolist()}


def outcomes(world: World) -> dict[str, object]:
    """Rank 1 fails in the second one; after that all are together again."""

    def work() -> int:
        if world.rank == 1:
            raise ZeroDivisionError("by hand")
        return 3

    together = world.gather_outcomes(lambda: world.rank + 5, RewardError, "adding")
    raised, cause = "", None
    try:
        world.gather_outcomes(work, RewardError, "dividing")
    except RewardError as error:
        raised, cause = str(error), type(error.__cause__).__name__
    return {"outcomes": together, "raised": raised, "cause": cause, "after": world.gather_objects([world.rank])}


def main(out_dir: Path) -> None:
    world = World(Accelerator(cpu=True))
    results = collectives(world) | gradients(world) | parameters(world) | split_step(world) | outcomes(world)
    (out_dir / f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
