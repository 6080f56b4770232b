"""Attention of a rollout: causal within a prompt, and one new token of each row over (its prompt, its own tail).

The prompt's keys and values exist once for the whole group. Its G · (query heads / kv heads) query rows meet them in
one matrix product per (prompt, kv head); each row's own tail is a small product of its own; the two parts are joined
by their log-sum-exp, which is exact (Hydragen, arXiv 2402.05099).

Shapes: queries (n, R, K, D) with K kv heads and R query heads to each of them ("group-major": query head k·R + r of
the model is [r, k] here). This order lets prefix and tail read the same memory without a copy. Keys and values
(n, K, D). Query groups are folded into the query length, never repeated, in decoding.

In decoding a product goes through torch's CPU flash kernel, which gives the log-sum-exp, or through plain matmuls for
what that cannot do: logit softcap, other devices. In a prefill, torch's kernel takes short prompts and blocks of plain
products the long ones.

Scores of half precision are held in float32, but not in plain products on a CPU: there is no such product there, and
by wider queries and keys the blocks took 1.3 to 1.6 times as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from gruppo.rollout.half import HALF

if TYPE_CHECKING:
    from torch import Tensor

    from gruppo.rollout.kv_cache import LayerKV

_QUERY_BLOCK: Final = 64
"""Query tokens per block of a prefill on the CPU; bounds the scores that are held."""

_WIDENING = ("cuda", "meta")
"""Devices whose products of half precision can come out in float32 (the meta device shows what CUDA would do)."""


@dataclass(frozen=True, slots=True)
class AttentionTraits:
    """What a layer's attention does besides softmax(q·k·scaling)·v."""

    scaling: float
    softcap: float | None = None
    window: int | None = None
    """A token sees itself and the `window` - 1 before it; None is all."""
    sinks: Tensor | None = None
    """(query heads,): one more logit per head, which takes probability and gives nothing (gpt-oss)."""


@dataclass(slots=True)
class PrefillBatch:
    """Prompts of one prefill, packed without padding: S tokens of p prompts in consecutive prefix slots."""

    ids_S: Tensor
    positions_S: Tensor
    last_P: Tensor
    """Where each prompt's last token is."""
    slots_S: Tensor
    """Flat place of each token in the prefix buffers."""
    lengths: list[int]
    cells_S: Tensor
    """Place of each token in the padded rectangle (p, longest), flat."""

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def is_even(self) -> bool:
        return min(self.lengths) == self.longest


@dataclass(slots=True)
class DecodeBatch:
    """One step of n live rows: their newest tokens, and where everything lies."""

    ids_N: Tensor
    positions_N: Tensor
    slots_N: Tensor
    """Flat place of the newest token in the tail buffers."""
    tail_lengths_N: Tensor
    """Tokens in each tail, the newest included."""
    longest_tail: int
    is_even: bool
    """All tails are equally long."""
    longest_position: int
    prompt_lengths_P: Tensor
    longest_prompt: int
    has_even_prompts: bool
    cell_rows: Tensor | None
    """Row of each cell of the grid (prompts x width); None: cell i is row i."""
    row_cells: Tensor | None
    """Cell of each row."""
    width: int
    _masks: dict[tuple[object, ...], Tensor | None] = field(default_factory=dict)

    def tail_mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Added to the scores of (n, 1, 1, tokens)."""
        window = window if window is not None and self.longest_position >= window else None
        key = ("tail", window, dtype)
        if key not in self._masks:
            self._masks[key] = None if self.is_even and window is None else self._tail_mask(window, dtype)
        return self._masks[key]

    def prefix_mask(self, window: int | None, repeats: int, dtype: torch.dtype) -> Tensor | None:
        """Added to the scores of (prompts, 1, width · repeats or 1, tokens)."""
        window = window if window is not None and self.longest_position >= window else None
        key = ("prefix", window, repeats, dtype)
        if key not in self._masks:
            is_plain = self.has_even_prompts and window is None
            self._masks[key] = None if is_plain else self._prefix_mask(window, repeats, dtype)
        return self._masks[key]

    def _tail_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        token_T = torch.arange(self.longest_tail, device=self.ids_N.device)
        age_NT = (self.tail_lengths_N - 1)[:, None] - token_T
        is_hidden_NT = age_NT < 0
        if window is not None:
            is_hidden_NT |= age_NT >= window
        return _as_bias(is_hidden_NT[:, None, None, :], dtype)

    def _prefix_mask(self, window: int | None, repeats: int, dtype: torch.dtype) -> Tensor:
        token_T = torch.arange(self.longest_prompt, device=self.ids_N.device)
        is_hidden = (token_T >= self.prompt_lengths_P[:, None])[:, None, :]
        if window is not None:
            cell_positions = (
                self.positions_N if self.cell_rows is None else self.positions_N.index_select(0, self.cell_rows)
            )
            age = cell_positions.view(-1, self.width, 1) - token_T
            is_hidden = (is_hidden | (age >= window)).repeat_interleave(repeats, dim=1)
        return _as_bias(is_hidden[:, None], dtype)


def attend_prefill(
    query: Tensor, key: Tensor, value: Tensor, *, kv: LayerKV, batch: PrefillBatch, traits: AttentionTraits
) -> Tensor:
    """Causal attention within each prompt; stores keys and values. (S, R, K, D) -> (S, R, K, Dv)."""
    kv.write_prefix(batch.slots_S, key, value)
    q, k, v = (_padded(x, batch) for x in (query, key, value))
    is_short = batch.longest <= _QUERY_BLOCK or query.device.type != "cpu"
    attend = _attend_whole if is_short and traits.softcap is None and traits.sinks is None else _attend_blocks
    out = attend(q, k, v, traits).flatten(0, 1)
    return out if batch.is_even else out.index_select(0, batch.cells_S)


def attend_decode(
    query: Tensor, key: Tensor, value: Tensor, *, kv: LayerKV, batch: DecodeBatch, traits: AttentionTraits
) -> Tensor:
    """Attention of each row's newest token over its prompt and its tail; stores that token's keys and values first.

    (n, R, K, D) -> (n, R, K, Dv).
    """
    kv.write_tail(batch.slots_N, key, value)
    n, repeats, num_kv, _ = query.shape
    num_prompts = batch.prompt_lengths_P.shape[0]
    tail_out, tail_lse = _attend(
        query.transpose(1, 2),
        *kv.tails(n, batch.longest_tail),
        traits,
        batch.tail_mask(traits.window, query.dtype),
    )
    in_cells = query if batch.cell_rows is None else query.index_select(0, batch.cell_rows)
    out, lse = _attend(
        in_cells.reshape(num_prompts, batch.width * repeats, num_kv, -1).transpose(1, 2),
        *kv.prefixes(num_prompts, batch.longest_prompt),
        traits,
        batch.prefix_mask(traits.window, repeats, query.dtype),
    )
    out = out.reshape(num_prompts * batch.width, repeats, num_kv, -1)
    lse = lse.reshape(num_prompts * batch.width, repeats, num_kv)
    if batch.row_cells is not None:
        out, lse = out.index_select(0, batch.row_cells), lse.index_select(0, batch.row_cells)
    share = torch.sub(lse, tail_lse).sigmoid_().unsqueeze_(-1)
    joined = torch.lerp(tail_out, out, share if share.dtype == out.dtype else share.to(out.dtype))
    if traits.sinks is None:
        return joined
    both = torch.logaddexp(lse, tail_lse)
    sinks = traits.sinks.view(num_kv, repeats).t().to(both.dtype)
    return joined * torch.sigmoid(both - sinks)[..., None].to(joined.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, traits: AttentionTraits, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """One product, heads in dim 1: (B, K, Q, D) over (B, K, T, D). Returns (B, Q, K, Dv) and log-sum-exp (B, Q, K)."""
    if _can_flash(q, v, traits):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=mask, scale=traits.scaling
        )
        return out.transpose(1, 2), lse.transpose(1, 2)
    return _attend_plain(q, k, v, traits, mask)


def _attend_whole(q: Tensor, k: Tensor, v: Tensor, traits: AttentionTraits) -> Tensor:
    """Causal attention of whole prompts by torch's kernel: (p, T, R, K, D) over (p, T, K, D) -> (p, T, R, K, Dv)."""
    length, repeats, num_kv = q.shape[1:4]
    window = traits.window if traits.window is not None and traits.window < length else None
    mask = None if window is None else _causal_bias(0, 0, length, window, q)
    out = functional.scaled_dot_product_attention(
        q.flatten(2, 3).transpose(1, 2),
        # Once for each query head: is_causal needs the query length to be the tokens.
        k.repeat(1, 1, repeats, 1).transpose(1, 2),
        v.repeat(1, 1, repeats, 1).transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=traits.scaling,
    )
    return out.transpose(1, 2).unflatten(2, (repeats, num_kv))


def _attend_blocks(q: Tensor, k: Tensor, v: Tensor, traits: AttentionTraits) -> Tensor:
    """The same by plain products over blocks of queries, which skip the keys that a block may not see.

    On a CPU this is 1.3 (float32) to 3 times (bfloat16) as fast as torch's kernel at 384 tokens and more.
    """
    length, repeats, num_kv = q.shape[1:4]
    is_wide = _comes_out_wide(q)
    # Scaled before, the scores need no pass of their own.
    q_BTRD = (q if is_wide else q * traits.scaling).permute(0, 3, 1, 2, 4).flatten(0, 1).contiguous()
    k_BDT = k.permute(0, 2, 3, 1).flatten(0, 1)
    v_BTD = v.transpose(1, 2).flatten(0, 1)
    out_BTRD = v.new_empty(*q_BTRD.shape[:3], v.shape[-1])
    for start in range(0, length, _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, length)
        first = 0 if traits.window is None else max(0, start - traits.window + 1)
        scores = _scores(q_BTRD[:, start:stop].flatten(1, 2), k_BDT[:, :, first:stop])
        scores = (scores.mul_(traits.scaling) if is_wide else scores).unflatten(1, (stop - start, repeats))
        if traits.softcap is not None:
            scores = scores.div_(traits.softcap).tanh_().mul_(traits.softcap)
        if traits.window is None:
            scores[..., start:] += _causal_bias(start, start, stop, None, scores).unsqueeze(1)
        else:
            scores += _causal_bias(start, first, stop, traits.window, scores).unsqueeze(1)
        probs = _softmax_with_sinks(scores, traits.sinks, num_kv).to(v.dtype)
        out = torch.bmm(probs.flatten(1, 2), v_BTD[:, first:stop])
        out_BTRD[:, start:stop] = out.unflatten(1, (stop - start, repeats))
    return out_BTRD.unflatten(0, (-1, num_kv)).permute(0, 2, 3, 1, 4)


def _softmax_with_sinks(scores_BTRS: Tensor, sinks: Tensor | None, num_kv: int) -> Tensor:
    if sinks is None:
        return torch.softmax(scores_BTRS, dim=-1)
    one_more = sinks.to(scores_BTRS.dtype).view(num_kv, 1, -1, 1).expand(num_kv, *scores_BTRS.shape[1:3], 1)
    one_more = one_more.repeat(scores_BTRS.shape[0] // num_kv, 1, 1, 1)
    return torch.softmax(torch.cat([scores_BTRS, one_more], dim=-1), dim=-1)[..., :-1]


def _attend_plain(
    q: Tensor, k: Tensor, v: Tensor, traits: AttentionTraits, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    scores = _scores(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).unflatten(0, k.shape[:2])
    scores = (scores if scores.dtype == torch.float64 else scores.float()) * traits.scaling
    if traits.softcap is not None:
        scores = torch.tanh(scores / traits.softcap) * traits.softcap
    if mask is not None:
        scores += mask
    lse = torch.logsumexp(scores, dim=-1)
    out = torch.matmul(torch.exp(scores - lse[..., None]).to(v.dtype), v)
    return out.transpose(1, 2), lse.transpose(1, 2)


def _scores(q_BQD: Tensor, k_BDT: Tensor) -> Tensor:
    """q·k, in float32 where the device can."""
    if _comes_out_wide(q_BQD):
        # Rounded to half precision, large scores lose what the softmax needs; float16 ends at 65,504.
        return torch.bmm(q_BQD, k_BDT, out_dtype=torch.float32)
    return torch.bmm(q_BQD, k_BDT)


def _comes_out_wide(q: Tensor) -> bool:
    return q.dtype in HALF and q.device.type in _WIDENING


def _can_flash(q: Tensor, v: Tensor, traits: AttentionTraits) -> bool:
    return q.device.type == "cpu" and traits.softcap is None and q.shape[-1] == v.shape[-1]


def _causal_bias(start: int, first: int, stop: int, window: int | None, like: Tensor) -> Tensor:
    """For queries start..stop over keys first..stop: (queries, keys)."""
    query_T = torch.arange(start, stop, device=like.device)
    age = query_T[:, None] - torch.arange(first, stop, device=like.device)
    is_hidden = age < 0
    if window is not None:
        is_hidden |= age >= window
    return _as_bias(is_hidden, like.dtype)


def _as_bias(is_hidden: Tensor, dtype: torch.dtype) -> Tensor:
    # Far below any score, but finite: a part of which nothing may be seen then has a log-sum-exp that takes no share,
    # where minus infinity would give NaN.
    bias = torch.zeros(is_hidden.shape, dtype=dtype, device=is_hidden.device)
    return bias.masked_fill_(is_hidden, torch.finfo(dtype).min / 4)


def _padded(x: Tensor, batch: PrefillBatch) -> Tensor:
    """(S, heads, D) -> (p, longest, heads, D). Padding stands behind, where no valid token looks."""
    if batch.is_even:
        return x.view(len(batch.lengths), batch.longest, *x.shape[1:])
    padded = x.new_zeros(len(batch.lengths) * batch.longest, *x.shape[1:])
    return padded.index_copy_(0, batch.cells_S, x).view(len(batch.lengths), batch.longest, *x.shape[1:])


def default_scaling(head_dim: int) -> float:
    return 1.0 / math.sqrt(head_dim)
