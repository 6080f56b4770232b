"""Data-parallel gradients: summed over ranks once per optimizer step, in flat buckets.

This is not `DistributedDataParallel`. DDP reduces during every backward and expects each rank to run the same
number of them. Our forwards are cut by a token budget, so one rank may need five where another needs four: DDP
would wait for a reduction that never comes. One reduction per optimizer step is also less traffic than one per
backward, and gradients are summed, not averaged, because the loss is already divided by denominators that were
counted over all ranks.

Weights that are sharded over ranks (FSDP, DeepSpeed) never come here: `launch` refuses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from gruppo.distributed.world import World

BUCKET_BYTES = 32 * 2**20
"""Large enough that latency does not count, small enough that the copy does not either."""


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter], world: World, bucket_bytes: int = BUCKET_BYTES) -> None:
    """Replace each `.grad` by its sum over ranks. `parameters` come in the same order on every rank.

    A parameter without gradient here counts as zero if another rank has one. Without any it keeps `None`, so that
    optimizers skip it just as they do on one process.
    """
    if world.size == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    has_grad = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32)
    grads: list[Tensor] = []
    for parameter, is_anywhere in zip(trained, world.max_(has_grad).tolist(), strict=True):
        if not is_anywhere:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        grads.append(parameter.grad)
    _in_buckets(grads, world.sum_, bucket_bytes)


@torch.no_grad()
def broadcast_parameters(model: nn.Module, world: World, bucket_bytes: int = BUCKET_BYTES) -> None:
    """Give every rank the parameters and buffers of rank 0: call once before the first step."""
    if world.size == 1:
        return
    tensors = [parameter.data for parameter in model.parameters()] + list(model.buffers())
    _in_buckets(tensors, world.broadcast_, bucket_bytes)


def _in_buckets(tensors: Sequence[Tensor], collective_: Callable[[Tensor], Tensor], bucket_bytes: int) -> None:
    """Apply an in-place collective to many tensors through few flat copies."""
    for bucket in _buckets(tensors, bucket_bytes):
        if len(bucket) == 1:
            collective_(bucket[0])
            continue
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        collective_(flat)
        for tensor, values in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(values.view_as(tensor))


def _buckets(tensors: Sequence[Tensor], bucket_bytes: int) -> Iterator[list[Tensor]]:
    """Cut into runs of one type and device that stay within `bucket_bytes` (a larger tensor has its own)."""
    bucket: list[Tensor] = []
    num_bytes = 0
    for tensor in tensors:
        is_alike = not bucket or (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not is_alike or num_bytes + tensor.nbytes > bucket_bytes):
            yield bucket
            bucket, num_bytes = [], 0
        bucket.append(tensor)
        num_bytes += tensor.nbytes
    if bucket:
        yield bucket
