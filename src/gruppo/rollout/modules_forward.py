"""ModulesForward: logits by the model's own forward, with our attention in place of its own. Any family, any adapter.

Tokens go in packed, (1, S), with explicit positions, no mask and no cache of transformers'. Each layer's queries, keys
and values come out at the function that is registered in transformers' AttentionInterface under `NAME`; the batch and
the key-value cache travel there as a keyword argument. The name is selected only while a forward runs.

It does not know which models honour the interface: `support` finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from gruppo.errors import RolloutError
from gruppo.rollout.attention import (
    AttentionTraits,
    DecodeBatch,
    PrefillBatch,
    attend_decode,
    attend_prefill,
    default_scaling,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gruppo.rollout.kv_cache import KVCache

NAME: Final = "gruppo_rollout"
"""Of the attention function, and of the keyword argument that carries the `Call` to it."""

_UNKNOWN_TRAITS = ("position_bias", "head_mask", "encoder_hidden_states")


@dataclass(slots=True)
class Call:
    """One forward, as the attention function sees it."""

    cache: KVCache
    batch: PrefillBatch | DecodeBatch
    windows: dict[int, int | None] = field(default_factory=dict)
    """The sliding window that each layer asked for, of the layers whose attention came by."""


class ModulesForward:
    """Calls `lm` (a causal LM of transformers, adapters inside it or not)."""

    name = "modules"

    def __init__(self, lm: Any, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        self._lm = lm
        self._autocast = autocast
        self._windows = _declared_windows(lm.config.get_text_config())

    def __call__(self, batch: PrefillBatch | DecodeBatch, cache: KVCache) -> Tensor:
        """Logits of the next token: (prompts, V) after a prefill, (rows, V) after a decoding step."""
        call = Call(cache, batch)
        keep = (
            batch.last_P
            if isinstance(batch, PrefillBatch)
            else torch.arange(len(batch.ids_N), device=batch.ids_N.device)
        )
        ids, positions = (
            (batch.ids_S, batch.positions_S) if isinstance(batch, PrefillBatch) else (batch.ids_N, batch.positions_N)
        )
        with _selected(self._lm.config), self._autocast(), torch.no_grad():
            output = self._lm(
                input_ids=ids[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=keep,
                **{NAME: call},
            )
        # A layer that did not come by has attended by other means, over the packed tokens of strangers; one that
        # keeps its window to itself (in its mask) would see too far.
        if call.windows != self._windows:
            raise RolloutError(f"attention was asked for with windows {call.windows}; declared are {self._windows}.")
        logits: Tensor = output.logits[0]
        return logits


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query (1, H, S, D), key and value (1, K, S, D) -> (1, S, H, Dv)."""
    call: Call = kwargs[NAME]
    if attention_mask is not None or any(kwargs.get(name) is not None for name in _UNKNOWN_TRAITS):
        raise RolloutError(f"{type(module).__name__} brings a mask or a bias of its own.")
    index: int = module.layer_idx  # type: ignore[assignment]
    call.windows[index] = sliding_window
    dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    if torch.is_autocast_enabled(query.device.type):
        # Rotary embeddings and norms may leave queries and keys wider than the type of the forward.
        dtype = torch.get_autocast_dtype(query.device.type)
    num_heads, num_kv = query.shape[1], key.shape[1]
    q = query[0].to(dtype).view(num_kv, num_heads // num_kv, *query.shape[2:]).permute(2, 1, 0, 3)
    k, v = (x[0].to(dtype).transpose(0, 1) for x in (key, value))
    traits = AttentionTraits(
        scaling=default_scaling(query.shape[-1]) if scaling is None else scaling,
        softcap=softcap,
        window=sliding_window,
        sinks=s_aux,
    )
    kv = call.cache.layer(index, k, v)
    if isinstance(call.batch, PrefillBatch):
        out = attend_prefill(q, k, v, kv=kv, batch=call.batch, traits=traits)
    else:
        out = attend_decode(q, k, v, kv=kv, batch=call.batch, traits=traits)
    return out.transpose(1, 2).reshape(1, -1, num_heads, v.shape[-1]), None


def _declared_windows(config: Any) -> dict[int, int | None]:
    """Each layer's window according to the config: by its layer type, or the same for all."""
    settings = config.to_dict()
    window, num_layers = settings.get("sliding_window"), config.num_hidden_layers
    types = settings.get("layer_types") or ["sliding_attention"] * num_layers
    return {i: window if types[i] == "sliding_attention" else None for i in range(num_layers)}


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    """Said on purpose: packed tokens need no mask, the batch knows who may see whom."""


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _no_mask)


@contextmanager
def _selected(config: Any) -> Iterator[None]:
    configs = {id(c): c for c in (config, config.get_text_config())}.values()
    names = [(c, c._attn_implementation) for c in configs]
    for c in configs:
        c._attn_implementation = NAME
    try:
        yield
    finally:
        for c, name in names:
            c._attn_implementation = name
