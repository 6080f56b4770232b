"""Flash attention on CUDA as a kernel of `attention_kernels`, by the ops that PyTorch brings along.

These ops are not public, and what they take differs between GPUs, types and head sizes. So before a combination is
used, both passes are compared with the plain kernel on a few random tokens; where they raise or differ, the plain
kernel is used, with a warning.

No windows, no softcap, no ragged batches: those are the plain kernel's, or the caller's.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor

from gruppo.errors import ModelError, boundary
from gruppo.policy.attention_kernels import PLAIN, QKV, Kernel, Scores

logger = logging.getLogger(__name__)

_forward_op = torch.ops.aten._flash_attention_forward
_backward_op = torch.ops.aten._flash_attention_backward


@functools.lru_cache(maxsize=64)
def cuda_kernel(device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]) -> Kernel:
    """Flash attention if it works here for `heads` = (J, R, E), else the plain kernel. Found out once."""
    if dtype not in (torch.float16, torch.bfloat16):
        return PLAIN
    gap = float("inf")
    try:
        # Mixed precision would round the plain kernel's products.
        with boundary(ModelError, "flash attention"), torch.autocast(device.type, enabled=False):
            gap = _gap(device, dtype, heads)
    except ModelError as error:
        logger.warning("%s; attention of packed rows takes the slower plain kernel.", error)
        return PLAIN
    if gap > 0.05:
        logger.warning("flash attention is off by %.2g; attention of packed rows takes the slower plain kernel.", gap)
        return PLAIN
    return FLASH_CUDA


def _gap(device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]) -> float:
    """Largest difference to the plain kernel, forward and backward, causal and not, merged and not."""
    num_kv, num_repeats, width = heads
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    gaps = []
    for is_causal, num_keys in ((True, 70), (False, 45)):
        q, k, v = random(2, 70, num_kv, num_repeats, width), *(random(2, num_keys, num_kv, width) for _ in range(2))
        scores = Scores(width**-0.5, is_causal=is_causal)
        out, lse = PLAIN.forward((q, k, v), scores)
        # An out and a log-sum-exp that are not its own, as after a merge.
        merged = (random(*q.shape), (q, k, v), out + out.mean(), lse + 0.5, scores)
        ours = (*FLASH_CUDA.forward((q, k, v), scores), *FLASH_CUDA.backward(*merged))
        theirs = (out, lse, *PLAIN.backward(*merged))
        gaps += [float((a.float() - b.float()).abs().max()) for a, b in zip(ours, theirs, strict=True)]
    return max(gaps)


def _forward(qkv: QKV, scores: Scores) -> tuple[Tensor, Tensor]:
    q, k, v = qkv
    out, lse, *_ = _forward_op(
        q.flatten(2, 3), k, v, None, None, q.shape[1], k.shape[1], 0.0, scores.is_causal, False, scale=scores.scale
    )
    return out.unflatten(2, q.shape[2:4]), lse.transpose(1, 2).unflatten(2, q.shape[2:4])


def _backward(grad_out: Tensor, qkv: QKV, out: Tensor, lse: Tensor, scores: Scores) -> QKV:
    q, k, v = qkv
    # Without dropout the random state is not read, but it must be there.
    state, unused = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.zeros(0, device=q.device)
    lse_BHL = lse.flatten(2, 3).transpose(1, 2).contiguous()
    grad_q, grad_k, grad_v = _backward_op(
        grad_out.flatten(2, 3), q.flatten(2, 3), k, v, out.flatten(2, 3), lse_BHL,
        None, None, q.shape[1], k.shape[1], 0.0, scores.is_causal, state, unused, scale=scores.scale,
    )  # fmt: skip
    return grad_q.unflatten(2, q.shape[2:4]), grad_k, grad_v


FLASH_CUDA = Kernel(_forward, _backward)
