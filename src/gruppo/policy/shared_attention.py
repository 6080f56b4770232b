"""Causal attention of a packed row: each segment to itself, each completion to its prompt, merged by log-sum-exp.

    out = Σ_i out_i · exp(lse_i − lse)        lse = log Σ_i exp(lse_i)        i: own segment, prompt

This is softmax over the union of both key sets, exactly. Backward calls the kernel of each part with the merged out
and log-sum-exp, which makes each part's gradient exact too (the idea of Hydragen, arXiv 2402.05099, with its backward
pass). There is no mask over the packed row, and no copy of a prompt's keys and values for its completions.

Shapes as in `attention_kernels`. Positions, embeddings and projections are the model's own matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gruppo.policy.attention_cuda import cuda_kernel
from gruppo.policy.attention_kernels import FLASH_CPU, PLAIN, QKV, Kernel, Scores, wide_dtype
from gruppo.policy.packing import Branch, Bucket, PackedRow


@dataclass(frozen=True, slots=True)
class _Part:
    """Attention of `queries` to `keys`, for a branch; of a bucket's segments to themselves otherwise."""

    scores: Scores
    bucket: Bucket | None
    queries: slice
    keys: slice

    def take_queries(self, x: Tensor) -> Tensor:
        return x[self.queries][None] if self.bucket is None else self.bucket.take(x)

    def take_qkv(self, q: Tensor, k: Tensor, v: Tensor) -> QKV:
        if self.bucket is None:
            return q[self.queries][None], k[self.keys][None], v[self.keys][None]
        return self.bucket.take(q), self.bucket.take(k), self.bucket.take(v)


def shared_attention(q_SHE: Tensor, k_SJE: Tensor, v_SJE: Tensor, row: PackedRow, scores: Scores) -> Tensor:
    """(S, H, E'): attention of a packed row. Query head h uses key/value head h // (H / J).

    Args:
        scores: scale, softcap and window of the model; what else it can say is decided here.
    """
    q_SJRE = q_SHE.unflatten(1, (k_SJE.shape[1], -1))
    out: Tensor = _SharedAttention.apply(q_SJRE, k_SJE, v_SJE, row, scores)
    return out.flatten(1, 2)


class _SharedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, row: PackedRow, scores: Scores) -> Tensor:  # noqa: PLR0917
        wide = wide_dtype(q.dtype)
        out = q.new_empty(*q.shape[:-1], v.shape[-1], dtype=wide)
        lse = q.new_empty(q.shape[:-1], dtype=wide)
        for part in _parts(row, scores):
            qkv = part.take_qkv(q, k, v)
            with _own_types(q):
                part_out, part_lse = _kernel(qkv, part.scores).forward(qkv, part.scores)
            if part.bucket is not None:
                part.bucket.put(out, part_out)
                part.bucket.put(lse, part_lse)
            else:
                _merge(out[part.queries], lse[part.queries], part_out[0], part_lse[0])
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.settings = (row, scores)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        # Every token lies in one bucket, and the buckets come first: they write, the branches add.
        grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=lse.dtype, device=x.device) for x in (q, k, v))
        for part in _parts(*ctx.settings):
            qkv = part.take_qkv(q, k, v)
            grad = part.take_queries(grad_out)
            grad = grad if part.bucket is None else part.bucket.without_padding(grad)
            with _own_types(q):
                part_q, part_k, part_v = _kernel(qkv, part.scores).backward(
                    grad, qkv, part.take_queries(out), part.take_queries(lse), part.scores
                )
            if part.bucket is not None:
                part.bucket.put(grad_q, part_q)
                part.bucket.put(grad_k, part_k)
                part.bucket.put(grad_v, part_v)
            else:
                grad_q[part.queries] += part_q[0]
                grad_k[part.keys] += part_k[0]
                grad_v[part.keys] += part_v[0]
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def _own_types(like: Tensor) -> torch.autocast:
    """Autocast would round the plain kernel's scores, and in the forward pass only."""
    return torch.autocast(like.device.type, enabled=False)


def _kernel(qkv: QKV, scores: Scores) -> Kernel:
    """The fastest kernel that can do this."""
    q, _, v = qkv
    is_special = scores.softcap is not None or scores.window is not None or q.shape[-1] != v.shape[-1]
    if is_special or q.device.type not in ("cpu", "cuda"):
        return PLAIN
    return FLASH_CPU if q.device.type == "cpu" else cuda_kernel(q.device, q.dtype, tuple(q.shape[2:]))


def _parts(row: PackedRow, scores: Scores) -> Iterator[_Part]:
    """Buckets first. A window that nothing is far enough to fall out of is dropped, since it costs the fast kernel."""
    for bucket in row.buckets:
        reach = scores.window if scores.window is not None and bucket.length > scores.window else None
        yield _Part(replace(scores, is_causal=True, window=reach), bucket, slice(0), slice(0))
    for branch in row.branches:
        part = _branch_part(row, branch, scores)
        if part is not None:
            yield part


def _branch_part(row: PackedRow, branch: Branch, scores: Scores) -> _Part | None:
    queries, keys = branch.completions.slice, branch.prompt.slice
    window = scores.window
    if window is None or len(branch.prompt) + branch.longest <= window:
        return _Part(replace(scores, window=None), None, queries, keys)
    # The first completion token stands right behind the prompt: what it cannot see, none of them can.
    keys = slice(max(keys.start, keys.stop - window + 1), keys.stop)
    if keys.start == keys.stop:
        return None
    placed = replace(scores, query_positions_L=row.positions_S[queries], key_positions_K=row.positions_S[keys])
    return _Part(placed, None, queries, keys)


def _merge(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> None:
    """Adds attention over other keys to (out, lse), in place."""
    merged = torch.logaddexp(lse, other_lse)
    out.mul_(torch.exp(lse - merged)[..., None])
    out.addcmul_(other_out.to(out.dtype), torch.exp(other_lse - merged)[..., None])
    lse.copy_(merged)
