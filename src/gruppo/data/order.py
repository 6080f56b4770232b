"""Which prompts at which round, which rows on which rank, which micro-batch for each row.

Pure functions: the same arguments give the same answer in a fresh process, so a resumed run needs no stored position.
The order of prompts is TRL's, to the index. Nothing here touches a dataset.
"""

from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import torch


class Share(NamedTuple):
    """A rank's part of one group."""

    position: int
    """Which prompt of the round, 0..P-1."""
    samples: range
    """Which of its G completions."""


def epoch_permutation(num_prompts: int, seed: int, epoch: int, *, shuffle: bool = True) -> list[int]:
    """The order of all prompts in an epoch (0, 1, ...).

    Epoch e is the (e+1)-th permutation drawn from one generator seeded once: TRL's `RepeatSampler`.
    """
    return list(_order(num_prompts, seed, epoch, shuffle))


def round_prompts(
    num_prompts: int, prompts_per_round: int, seed: int, epoch: int, round_in_epoch: int, *, shuffle: bool = True
) -> list[int]:
    """Indices of the prompts of one generation round. An epoch has `num_prompts // prompts_per_round` rounds.

    The incomplete last chunk of an epoch is dropped, as in TRL.
    """
    assert 0 <= round_in_epoch < num_prompts // prompts_per_round, (num_prompts, prompts_per_round, round_in_epoch)
    first = round_in_epoch * prompts_per_round
    return list(_order(num_prompts, seed, epoch, shuffle)[first : first + prompts_per_round])


def rows_of_rank(num_prompts: int, group_size: int, rank: int, world_size: int) -> list[Share]:
    """This rank's rows: a consecutive block of the round's num_prompts * group_size rows, group after group.

    A group may span ranks. Where the rows do not divide by the world size, blocks differ by at most one row.

    >>> rows_of_rank(num_prompts=3, group_size=4, rank=1, world_size=2)
    [Share(position=1, samples=range(2, 4)), Share(position=2, samples=range(0, 4))]
    """
    assert 0 <= rank < world_size, (rank, world_size)
    num_rows = num_prompts * group_size
    first, last = rank * num_rows // world_size, (rank + 1) * num_rows // world_size
    shares = []
    for position in range(first // group_size, -(-last // group_size)):
        start = position * group_size
        samples = range(max(first - start, 0), min(last - start, group_size))
        if samples:
            shares.append(Share(position, samples))
    return shares


def slice_assignment(num_rows: int, num_slices: int, seed: int, round_index: int, rank: int) -> list[int]:
    """Which micro-batch, 0..num_slices-1, each of a rank's rows goes to: equal parts of a random permutation.

    `num_slices` is TRL's `steps_per_generation`. TRL draws from the global generator; here the draw is a function of
    (seed, round, rank), so nothing else that uses random numbers can change it.
    """
    assert num_rows % num_slices == 0, (num_rows, num_slices)
    if num_slices == 1:
        return [0] * num_rows
    digest = blake2b(f"slices {seed} {round_index} {rank}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    places = torch.empty(num_rows, dtype=torch.long)
    places[torch.randperm(num_rows, generator=generator)] = torch.arange(num_rows)
    return (places // (num_rows // num_slices)).tolist()


@lru_cache(maxsize=4)
def _order(num_prompts: int, seed: int, epoch: int, shuffle: bool) -> tuple[int, ...]:
    if not shuffle:
        return tuple(range(num_prompts))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epoch):
        torch.randperm(num_prompts, generator=generator)
    return tuple(torch.randperm(num_prompts, generator=generator).tolist())
