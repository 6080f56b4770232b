"""FusedForward: logits of a recognised family by a short decoder of our own, over packed copies of the weights.

A transformers layer costs 0.3 to 0.65 ms of Python and dispatch per step on a CPU, whatever its size; this one makes
about 25 calls into torch, in place where that saves one. q, k, v are one product, gate and up another, rotary
embedding is one complex product, and the prompt's last layer goes on with the last tokens alone. The copies are made
when a rollout begins and dropped when it ends, so they are never stale, and adapters are merged into them without
touching the model.

The residual stream has the type of the model's parameters; matrix products have `dtype`. This is no replacement for
the model's forward in training, and is used only after its logits were compared with the model's (`support`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from gruppo.rollout.attention import DecodeBatch, PrefillBatch, attend_decode, attend_prefill
from gruppo.rollout.decoder_layout import DecoderLayout, Layer, read_layout
from gruppo.rollout.half import HALF

if TYPE_CHECKING:
    from torch import Tensor

    from gruppo.rollout.kv_cache import KVCache


class FusedForward:
    """See `decoder_layout.read_layout` for the arguments."""

    name = "fused"

    def __init__(self, lm: Any, *, dtype: torch.dtype, num_positions: int) -> None:
        self._layout = read_layout(lm, dtype, num_positions)
        self._dtype = dtype

    @torch.inference_mode()
    def __call__(self, batch: PrefillBatch | DecodeBatch, cache: KVCache) -> Tensor:
        """Logits of the next token: (prompts, V) after a prefill, (rows, V) after a decoding step."""
        layout = self._layout
        if isinstance(batch, PrefillBatch):
            ids_S, positions_S, last_P = batch.ids_S, batch.positions_S, batch.last_P
        else:
            ids_S, positions_S, last_P = batch.ids_N, batch.positions_N, None
        x_SD = layout.embed(ids_S)
        ropes = {name: table.index_select(0, positions_S) for name, table in layout.ropes.items()}
        last = len(layout.layers) - 1
        for index, layer in enumerate(layout.layers):
            attended = self._attention(layer, x_SD, index=index, rope=ropes[layer.rope], batch=batch, cache=cache)
            if last_P is not None and index == last:
                attended, x_SD = attended.index_select(0, last_P), x_SD.index_select(0, last_P)
            x_SD = _add(x_SD, layer.out(attended), layer.norm_after_attention_D, layout)
            x_SD = _add(x_SD, self._mlp(layer, x_SD), layer.norm_after_mlp_D, layout)
        logits_NV = layout.head(_rms_norm(x_SD, layout.norm_D, layout))
        if layout.final_softcap is not None:
            logits_NV = torch.tanh(logits_NV / layout.final_softcap) * layout.final_softcap
        return logits_NV

    def _attention(
        self,
        layer: Layer,
        x_SD: Tensor,
        *,
        index: int,
        rope: Tensor,
        batch: PrefillBatch | DecodeBatch,
        cache: KVCache,
    ) -> Tensor:
        layout: DecoderLayout = self._layout
        num_queries, num_kv, head_dim = layout.repeats * layout.num_kv, layout.num_kv, layout.head_dim
        num_tokens = x_SD.shape[0]
        heads = layer.qkv(_rms_norm(x_SD, layer.norm_attention_D, layout)).view(num_tokens, -1, head_dim)
        if heads.dtype in HALF:
            # Complex numbers have no half precision.
            heads = heads.float()
        qk = heads[:, : num_queries + num_kv]
        if layer.qk_norm is not None:
            qk.mul_(_rms_scale(qk, layout)).mul_(layer.qk_norm)
        torch.view_as_complex(qk.view(num_tokens, -1, head_dim // 2, 2)).mul_(rope)
        if heads.dtype != self._dtype:
            heads = heads.to(self._dtype)
        query, key, value = heads.split_with_sizes((num_queries, num_kv, num_kv), 1)
        query = query.view(num_tokens, layout.repeats, num_kv, head_dim)
        kv = cache.layer(index, key, value)
        if isinstance(batch, PrefillBatch):
            return attend_prefill(query, key, value, kv=kv, batch=batch, traits=layer.traits).flatten(1)
        return attend_decode(query, key, value, kv=kv, batch=batch, traits=layer.traits).flatten(1)

    def _mlp(self, layer: Layer, x_SD: Tensor) -> Tensor:
        gate, up = layer.gate_up(_rms_norm(x_SD, layer.norm_mlp_D, self._layout)).chunk(2, dim=1)
        return layer.down(self._layout.activation(gate).mul_(up))


def _rms_norm(x: Tensor, weight: Tensor, layout: DecoderLayout) -> Tensor:
    """Over the last dimension. `F.rms_norm` takes twice as many passes on a CPU; it is for half precision only."""
    if x.dtype in HALF:
        return functional.rms_norm(x, x.shape[-1:], None, layout.eps) * weight
    return (x * _rms_scale(x, layout)).mul_(weight)


def _rms_scale(x: Tensor, layout: DecoderLayout) -> Tensor:
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(layout.eps_tensor, length, length, value=1 / x.shape[-1]).rsqrt_()


def _add(x_SD: Tensor, branch_SD: Tensor, norm_D: Tensor | None, layout: DecoderLayout) -> Tensor:
    """The residual stream is this forward's own, so it may be written to."""
    if norm_D is not None:
        branch_SD = _rms_norm(branch_SD.to(norm_D.dtype), norm_D, layout)
    return x_SD.add_(branch_SD)
