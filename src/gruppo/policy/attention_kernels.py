"""Attention of a batch of equal shapes, forward and backward, with the log-sum-exp of its scores.

    scores = softcap(scale · q kᵀ)      lse = logsumexp(scores)      out = exp(scores − lse) v

`backward` takes `out` and `lse` as arguments, and they need not be those of this call: where attention over several
sets of keys was merged, those of the whole give each set its share of the exact gradient.

`FLASH_CPU` is the flash attention that PyTorch has for the CPU. `PLAIN` is a few matrix products and a softmax: it can
do everything, and is the oracle of the others (`attention_cuda` has one more).

Shapes, beside the legend in `types`: B batch, L queries, K keys, J key/value heads, R query heads of each, E head
dimension. Queries (B, L, J, R, E), keys and values (B, K, J, E), log-sum-exp (B, L, J, R). Keys and values are never
repeated in memory for their query heads.

No dropout, no attention sinks, no rows or packing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**22
"""Scores that the plain kernel holds at a time."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What is done to the scores, and which of them count."""

    scale: float
    softcap: float | None = None
    is_causal: bool = False
    """Key k counts for query l only if k <= l; both start at the same token."""
    window: int | None = None
    """A key counts only if it is less than this many positions before the query."""
    query_positions_L: Tensor | None = None
    key_positions_K: Tensor | None = None
    """Needed for a window without `is_causal`."""


QKV = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """Two functions. A query without any key has lse -inf and out 0."""

    forward: Callable[[QKV, Scores], tuple[Tensor, Tensor]]
    """(qkv, scores) -> out, lse"""
    backward: Callable[[Tensor, QKV, Tensor, Tensor, Scores], QKV]
    """(grad_out, qkv, out, lse, scores) -> the gradients of qkv"""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums and log-sum-exps are held in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# -- flash attention on the CPU


# In half precision this kernel's backward pass takes three times as long as in float32, so it never sees any.


def _flash_cpu_forward(qkv: QKV, scores: Scores) -> tuple[Tensor, Tensor]:
    q, k, v = _widened(*qkv)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *_as_heads(q, k, v), 0.0, scores.is_causal, scale=scores.scale
    )
    return _as_tokens(out, q), _as_tokens(lse, q)


def _flash_cpu_backward(grad_out: Tensor, qkv: QKV, out: Tensor, lse: Tensor, scores: Scores) -> QKV:
    q, k, v = _widened(*qkv)
    grad_out, out, _ = _widened(grad_out, out, lse)
    q_heads, k_heads, v_heads = _as_heads(q, k, v)
    # The op reads the log-sum-exp of a head as one stretch of memory, in the layout that its forward makes.
    lse_heads = _query_heads(lse[..., None]).squeeze(-1).transpose(1, 2).contiguous().transpose(1, 2)
    grad_q, grad_k, grad_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _query_heads(grad_out), q_heads, k_heads, v_heads, _query_heads(out), lse_heads, 0.0, scores.is_causal,
        scale=scores.scale,
    )  # fmt: skip
    num_batch, _, num_kv = k.shape[:3]
    grad_k, grad_v = (grad.sum(dim=1).unflatten(0, (num_batch, num_kv)).transpose(1, 2) for grad in (grad_k, grad_v))
    return _as_tokens(grad_q, q), grad_k, grad_v


def _widened(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y, z = (tensor.to(wide_dtype(tensor.dtype)) for tensor in tensors)
    return x, y, z


def _query_heads(q: Tensor) -> Tensor:
    """(B, L, J, R, E) -> (B*J, R, L, E): a view where B or J is 1."""
    return q.permute(0, 2, 3, 1, 4).flatten(0, 1)


def _as_heads(q: Tensor, k: Tensor, v: Tensor) -> QKV:
    """To heads first; the R query heads of a key head see the same memory."""
    num_repeats = q.shape[3]
    k, v = (x.transpose(1, 2).flatten(0, 1)[:, None].expand(-1, num_repeats, -1, -1) for x in (k, v))
    return _query_heads(q), k, v


def _as_tokens(x: Tensor, q: Tensor) -> Tensor:
    """(B*J, R, L, ...) -> (B, L, J, R, ...), a view."""
    return x.unflatten(0, (q.shape[0], q.shape[2])).movedim(3, 1)


# -- plainly


def _plain_forward(qkv: QKV, scores: Scores) -> tuple[Tensor, Tensor]:
    q, k, v = qkv
    wide = wide_dtype(q.dtype)
    out, lse = q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=wide)
    for s, q_heads, k_heads, v_heads in _chunks(q, k, v):
        values, _ = _score(q_heads, k_heads, scores, s)
        lse_rows = torch.logsumexp(values, dim=-1, keepdim=True)
        p = values.sub_(lse_rows.masked_fill(lse_rows == -torch.inf, 0)).exp_()
        out[:, s] = _rows_as_tokens(p @ v_heads, q[:, s])
        lse[:, s] = _rows_as_tokens(lse_rows, q[:, s]).squeeze(-1)
    return out, lse


def _plain_backward(grad_out: Tensor, qkv: QKV, out: Tensor, lse: Tensor, scores: Scores) -> QKV:
    q, k, v = qkv
    wide = wide_dtype(q.dtype)
    grad_q = torch.empty_like(q)
    grad_k, grad_v = (x.new_zeros(x.shape, dtype=wide).transpose(1, 2).flatten(0, 1) for x in (k, v))
    for s, q_heads, k_heads, v_heads in _chunks(q, k, v):
        values, slope = _score(q_heads, k_heads, scores, s)
        lse_rows = _rows(lse[:, s, ..., None])
        p = values.sub_(lse_rows.masked_fill(lse_rows == -torch.inf, 0)).exp_()
        grad_rows = _rows(grad_out[:, s]).to(wide)
        grad_v += p.transpose(1, 2) @ grad_rows
        delta = (grad_rows * _rows(out[:, s]).to(wide)).sum(dim=-1, keepdim=True)
        grad_scores = (grad_rows @ v_heads.transpose(1, 2)).sub_(delta).mul_(p).mul_(scores.scale)
        if slope is not None:
            grad_scores.mul_(slope)
        grad_q[:, s] = _rows_as_tokens(grad_scores @ k_heads, q[:, s]).to(q.dtype)
        grad_k += grad_scores.transpose(1, 2) @ q_heads
    num_batch, _, num_kv = k.shape[:3]
    grad_k, grad_v = (grad.unflatten(0, (num_batch, num_kv)).transpose(1, 2) for grad in (grad_k, grad_v))
    return grad_q, grad_k, grad_v


def _score(q_heads: Tensor, k_heads: Tensor, scores: Scores, s: slice) -> tuple[Tensor, Tensor | None]:
    """Scores (B*J, R*L, K), -inf where they do not count; and the slope of the softcap there."""
    values = (q_heads @ k_heads.transpose(1, 2)).mul_(scores.scale)
    slope = None
    if scores.softcap is not None:
        bent = torch.tanh(values.div_(scores.softcap))
        slope = 1 - bent.square()
        values = bent.mul_(scores.softcap)
    if scores.is_causal or scores.window is not None:
        hidden_LK = ~_counts(scores, s, k_heads.shape[1], values.device)
        values.unflatten(1, (-1, hidden_LK.shape[0])).masked_fill_(hidden_LK, -torch.inf)
    return values, slope


def _counts(scores: Scores, s: slice, num_keys: int, device: torch.device) -> Tensor:
    if scores.is_causal:
        query_L = torch.arange(s.start, s.stop, device=device)
        key_K = torch.arange(num_keys, device=device)
    else:
        assert scores.query_positions_L is not None
        assert scores.key_positions_K is not None
        query_L, key_K = scores.query_positions_L[s], scores.key_positions_K
    distance_LK = query_L[:, None] - key_K
    is_seen = distance_LK >= 0
    return is_seen if scores.window is None else is_seen & (distance_LK < scores.window)


def _chunks(q: Tensor, k: Tensor, v: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Queries a few at a time: (slice of L, q, k, v) with heads first, in the wide type."""
    wide = wide_dtype(q.dtype)
    k_heads, v_heads = (x.transpose(1, 2).flatten(0, 1).to(wide) for x in (k, v))
    num_batch, num_queries, num_kv, num_repeats, _ = q.shape
    size = max(1, CHUNK_ELEMENTS // max(1, num_batch * num_kv * num_repeats * k.shape[1]))
    for start in range(0, num_queries, size):
        s = slice(start, min(start + size, num_queries))
        yield s, _rows(q[:, s]).to(wide), k_heads, v_heads


def _rows(x: Tensor) -> Tensor:
    """(B, L, J, R, E) -> (B*J, R*L, E)."""
    return x.permute(0, 2, 3, 1, 4).flatten(2, 3).flatten(0, 1)


def _rows_as_tokens(x: Tensor, q: Tensor) -> Tensor:
    """(B*J, R*L, E) -> (B, L, J, R, E), a view; the sizes are those of q."""
    num_batch, num_queries, num_kv, num_repeats, _ = q.shape
    return x.view(num_batch, num_kv, num_repeats, num_queries, x.shape[-1]).permute(0, 3, 1, 2, 4)


FLASH_CPU = Kernel(_flash_cpu_forward, _flash_cpu_backward)
PLAIN = Kernel(_plain_forward, _plain_backward)
