"""DecoderLayout: where the weights of a recognised family lie, copied out in the order that `fused_forward` reads.

The families of the table share one shape: norm, q/k/v, rotary embedding, attention, o, norm, gated MLP, all without
twists that the table does not name. Query heads are reordered to group-major ([r, k] instead of k·R + r, see
`attention`), in the rows of q and in the columns of o, so nothing is transposed at run time. The two halves of each
query and key head are interleaved: what rotary embedding turns together then lies together, as one complex number.

This reads transformers' modules by their names. That they mean what we think is not assumed: `support` compares
logits before a layout is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from gruppo.rollout.attention import AttentionTraits
from gruppo.rollout.linear import FrozenLinear, answer_dtype, effective_weight

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between the recognised families."""

    norm_offset: float = 0.0
    """Gemma's norms multiply by 1 + weight."""
    has_qk_norm: bool = False
    has_sandwich_norms: bool = False
    """Gemma 2 and 3 norm the outputs of attention and MLP too."""
    has_softcap: bool = False
    is_windowed_everywhere: bool = False
    """Mistral's sliding window holds for every layer; others say so layer by layer."""
    has_rope_per_type: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "qwen2": Family(),
    "qwen3": Family(has_qk_norm=True),
    "mistral": Family(is_windowed_everywhere=True),
    "gemma": Family(norm_offset=1.0),
    "gemma2": Family(norm_offset=1.0, has_sandwich_norms=True, has_softcap=True),
    "gemma3_text": Family(norm_offset=1.0, has_sandwich_norms=True, has_qk_norm=True, has_rope_per_type=True),
}
"""By `model_type`."""

_STATIC_ROPES = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings whose frequencies do not change with the length of the sequence."""


@dataclass(frozen=True, slots=True)
class Layer:
    norm_attention_D: Tensor
    qkv: FrozenLinear
    qk_norm: Tensor | None
    """(R·K + K, head dim): the weight of each query and key head."""
    out: FrozenLinear
    norm_after_attention_D: Tensor | None
    norm_mlp_D: Tensor
    gate_up: FrozenLinear
    down: FrozenLinear
    norm_after_mlp_D: Tensor | None
    traits: AttentionTraits
    rope: str
    """Which rotary table."""


@dataclass(frozen=True, slots=True)
class DecoderLayout:
    embed: Callable[[Tensor], Tensor]
    layers: list[Layer]
    norm_D: Tensor
    head: FrozenLinear
    activation: Callable[[Tensor], Tensor]
    ropes: dict[str, Tensor]
    """cos + i·sin, (positions, 1, head dim / 2), for interleaved heads. As exact as the model's own."""
    eps: float
    """Of every norm."""
    eps_tensor: Tensor
    """The same beside the weights, in float32 or wider: a number that an operation on tensors can take without asking
    the host."""
    final_softcap: float | None
    num_kv: int
    repeats: int
    head_dim: int


def is_recognised(lm: Any) -> bool:
    """Whether the family is in the table, with a rotary embedding that a table of positions can hold."""
    config = lm.config
    if config.model_type not in FAMILIES:
        return False
    parameters = config.rope_parameters
    by_type = parameters.values() if FAMILIES[config.model_type].has_rope_per_type else [parameters]
    return all(p["rope_type"] in _STATIC_ROPES for p in by_type)


@torch.no_grad()
def residual_dtype(lm: Any) -> torch.dtype:
    """The type that the embedding gives. Its weight may be wider: a head in float32 that is tied to it makes it so."""
    dtype: torch.dtype = lm.get_input_embeddings()(torch.zeros(1, dtype=torch.int64, device=lm.device)).dtype
    return dtype


@torch.no_grad()
def read_layout(lm: Any, dtype: torch.dtype, num_positions: int) -> DecoderLayout:
    """Copies the weights of a recognised model.

    Args:
        dtype: of the matrix products, but of a head that has a type of its own. The residual stream keeps the type that
            the embedding gives.
        num_positions: longest sequence to come.
    """
    config, base = lm.config, lm.base_model
    family = FAMILIES[config.model_type]
    head_dim = base.layers[0].self_attn.head_dim
    wide = residual_dtype(lm)
    head = lm.get_output_embeddings()
    head_weight, head_bias = effective_weight(head, config.hidden_size)
    head_dtype = answer_dtype(head, config.hidden_size, dtype)
    return DecoderLayout(
        embed=lm.get_input_embeddings(),
        layers=[_layer(layer, i, config=config, dtype=dtype, wide=wide) for i, layer in enumerate(base.layers)],
        norm_D=_norm(base.norm, family, wide),
        head=FrozenLinear(head_weight.to(head_dtype), None if head_bias is None else head_bias.to(head_dtype)),
        # A module's call costs as much as a small activation itself.
        activation=functional.silu if config.to_dict().get("hidden_act") == "silu" else base.layers[0].mlp.act_fn,
        ropes=_ropes(base, config, family, wide, num_positions),
        eps=config.rms_norm_eps,
        eps_tensor=torch.tensor(
            config.rms_norm_eps, dtype=torch.promote_types(wide, torch.float32), device=base.norm.weight.device
        ),
        final_softcap=config.to_dict().get("final_logit_softcapping"),
        num_kv=config.num_key_value_heads,
        repeats=config.num_attention_heads // config.num_key_value_heads,
        head_dim=head_dim,
    )


def _layer(layer: Any, index: int, *, config: Any, dtype: torch.dtype, wide: torch.dtype) -> Layer:
    family = FAMILIES[config.model_type]
    attention, mlp = layer.self_attn, layer.mlp
    names = ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    if not family.has_sandwich_norms:
        names = ("", "post_attention_layernorm", "")
    after_attention, before_mlp, after_mlp = (
        _norm(layer.get_submodule(name), family, wide) if name else None for name in names
    )
    assert before_mlp is not None
    hidden, middle = config.hidden_size, config.intermediate_size
    return Layer(
        norm_attention_D=_norm(layer.input_layernorm, family, wide),
        qkv=_qkv(attention, config, dtype),
        qk_norm=_qk_norm(attention, config, family, wide) if family.has_qk_norm else None,
        out=_out(attention, config, dtype),
        norm_after_attention_D=after_attention,
        norm_mlp_D=before_mlp,
        gate_up=_stacked([effective_weight(mlp.gate_proj, hidden), effective_weight(mlp.up_proj, hidden)], dtype),
        down=_stacked([effective_weight(mlp.down_proj, middle)], dtype),
        norm_after_mlp_D=after_mlp,
        traits=AttentionTraits(
            scaling=attention.scaling,
            softcap=config.attn_logit_softcapping if family.has_softcap else None,
            window=_window(config, family, index),
        ),
        rope=config.layer_types[index] if family.has_rope_per_type else "",
    )


def _window(config: Any, family: Family, index: int) -> int | None:
    settings = config.to_dict()
    window: int | None = settings.get("sliding_window")
    layer_types = settings.get("layer_types")
    if family.is_windowed_everywhere:
        return window
    return window if layer_types and layer_types[index] == "sliding_attention" else None


def _norm(module: Any, family: Family, wide: torch.dtype) -> Tensor:
    return (module.weight.float() + family.norm_offset if family.norm_offset else module.weight.detach()).to(wide)


def _qkv(attention: Any, config: Any, dtype: torch.dtype) -> FrozenLinear:
    hidden, head_dim = config.hidden_size, attention.head_dim
    weight, bias = effective_weight(attention.q_proj, hidden)
    q = _heads_first(weight, config), None if bias is None else _heads_first(bias, config)
    k = effective_weight(attention.k_proj, hidden)
    q, k = (
        (_interleaved(weight, head_dim), None if bias is None else _interleaved(bias, head_dim))
        for weight, bias in (q, k)
    )
    return _stacked([q, k, effective_weight(attention.v_proj, hidden)], dtype)


def _out(attention: Any, config: Any, dtype: torch.dtype) -> FrozenLinear:
    weight, bias = effective_weight(attention.o_proj, config.num_attention_heads * attention.head_dim)
    return _stacked([(_heads_first(weight.t(), config).t(), bias)], dtype)


def _heads_first(x: Tensor, config: Any) -> Tensor:
    """Reorders dim 0 from (K, R, head dim) to (R, K, head dim)."""
    num_kv = config.num_key_value_heads
    by_head = x.reshape(num_kv, config.num_attention_heads // num_kv, -1, *x.shape[1:])
    return by_head.transpose(0, 1).reshape(x.shape)


def _interleaved(x: Tensor, head_dim: int) -> Tensor:
    """Reorders dim 0 within each head: 0, half, 1, half + 1, ..."""
    by_half = x.reshape(-1, 2, head_dim // 2, *x.shape[1:])
    return by_half.transpose(1, 2).reshape(x.shape)


def _qk_norm(attention: Any, config: Any, family: Family, wide: torch.dtype) -> Tensor:
    heads = (config.num_attention_heads, attention.q_norm), (config.num_key_value_heads, attention.k_norm)
    weights = [(num, _interleaved(_norm(module, family, wide), attention.head_dim)) for num, module in heads]
    return torch.cat([weight.expand(num, -1) for num, weight in weights])


def _stacked(parts: list[tuple[Tensor, Tensor | None]], dtype: torch.dtype) -> FrozenLinear:
    """One linear layer that gives the outputs of several, side by side."""
    weight = torch.cat([weight.to(dtype) for weight, _ in parts])
    if all(bias is None for _, bias in parts):
        return FrozenLinear(weight, None)
    biases = [weight.new_zeros(weight.shape[0]) if bias is None else bias for weight, bias in parts]
    return FrozenLinear(weight, torch.cat(biases).to(dtype))


def _ropes(base: Any, config: Any, family: Family, wide: torch.dtype, num_positions: int) -> dict[str, Tensor]:
    device = base.norm.weight.device
    positions = torch.arange(num_positions, device=device)[None]
    like = torch.zeros(1, dtype=wide, device=device)
    types: list[str] = sorted(set(config.layer_types)) if family.has_rope_per_type else [""]
    tables = {}
    for name in types:
        cos, sin = base.rotary_emb(like, positions, *([name] if name else []))
        # Both halves of a head turn alike.
        first = slice(None, cos.shape[-1] // 2)
        parts = [x[0, :, None, first].to(torch.promote_types(wide, torch.float32)) for x in (cos, sin)]
        tables[name] = torch.complex(*parts)
    return tables
