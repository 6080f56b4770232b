"""How a model of transformers is made to run a packed row: by an attention function of its registry, for one forward.

The model's own code runs unchanged. While `packed_attention(lm, row)` is open, its configs name our attention function
and the row travels to it as a keyword argument. Activation checkpointing runs a layer again in the backward pass, when
the context is closed; so for its forwards the checkpoint function is wrapped, and opens the context again.

What a model asks for and this attention cannot do (dropout, sinks, a mask that is not causal) is noted in `Visit`, and
the caller must then throw the result away.

Models read their masks from transformers' mask functions. Ours returns no mask: it returns the window of the mask that
was asked for, as a (1, 1, 1, 1) tensor on the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from gruppo.policy.attention_kernels import Scores
from gruppo.policy.packing import PackedRow
from gruppo.policy.shared_attention import shared_attention

ATTENTION_NAME = "gruppo_shared_prefix"
ROW_ARGUMENT = "gruppo_packed_row"

_NO_WINDOW = 0
_NOT_CAUSAL = -1


@dataclass(slots=True)
class Visit:
    """A packed row on its way through a model, and what was seen there."""

    row: PackedRow
    num_calls: int = 0
    """Attention layers that the row went through."""
    refusals: set[str] = field(default_factory=set)
    """What some layer asked for that cannot be done; if any, the result is wrong."""


@contextmanager
def packed_attention(lm: PreTrainedModel) -> Iterator[None]:
    """Inside, `lm` takes a packed row: its forward needs `ROW_ARGUMENT`, position ids, and a 2-D mask of ones."""
    undo = [*_switched(lm), *_wrapped_checkpoints(lm)]
    try:
        yield
    finally:
        for restore in undo:
            restore()


def _switched(lm: PreTrainedModel) -> list[Callable[[], None]]:
    """Names our attention in every config of the model. Returns what takes it back."""
    configs = [module.config for module in lm.modules() if isinstance(module, PreTrainedModel)]
    configs += [config.get_text_config() for config in configs]
    undo: list[Callable[[], None]] = []
    for config in {id(config): config for config in configs}.values():
        # Not by the public setter: it would overwrite sub-configs, which may each have a choice of their own.
        undo.append(functools.partial(setattr, config, "_attn_implementation_internal", config._attn_implementation))
        config._attn_implementation_internal = ATTENTION_NAME
    return undo


def _wrapped_checkpoints(lm: PreTrainedModel) -> list[Callable[[], None]]:
    undo: list[Callable[[], None]] = []
    for module in lm.modules():
        own = vars(module).get("_gradient_checkpointing_func")
        if own is not None:
            undo.append(functools.partial(setattr, module, "_gradient_checkpointing_func", own))
            module._gradient_checkpointing_func = functools.partial(_checkpoint_packed, own, lm)
    return undo


def _checkpoint_packed(own: Callable[..., Any], lm: PreTrainedModel, function: Callable[..., Any], *args: Any) -> Any:
    def run(*inputs: Any) -> Any:
        undo = _switched(lm)
        try:
            return function(*inputs)
        finally:
            for restore in undo:
                restore()

    return own(run, *args)


def _attention(
    module: nn.Module,
    query_BHSE: Tensor,
    key_BJSE: Tensor,
    value_BJSE: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function, with the signature that transformers calls it by. B is 1."""
    visit: Visit = kwargs[ROW_ARGUMENT]
    visit.num_calls += 1
    window, refusals = _window(attention_mask)
    asked = {
        **refusals,
        "attention dropout": dropout > 0.0,
        "attention sinks": kwargs.get("s_aux") is not None,
        "a bias on the scores": kwargs.get("position_bias") is not None,
        "attention that is not causal": kwargs.get("is_causal") is False or not getattr(module, "is_causal", True),
        "another row": query_BHSE.shape[::2] != (1, len(visit.row)) or key_BJSE.shape[2] != len(visit.row),
    }
    refused = {what for what, is_asked in asked.items() if is_asked}
    if refused:
        visit.refusals |= refused
        num_batch, num_heads, num_tokens, _ = query_BHSE.shape
        return query_BHSE.new_zeros(num_batch, num_tokens, num_heads, value_BJSE.shape[-1]), None
    scale = query_BHSE.shape[-1] ** -0.5 if scaling is None else scaling
    dtype = _common_dtype(query_BHSE, value_BJSE)
    q_SHE, k_SJE, v_SJE = (x[0].transpose(0, 1).to(dtype) for x in (query_BHSE, key_BJSE, value_BJSE))
    scores = Scores(scale, softcap, window=window)
    return shared_attention(q_SHE, k_SJE, v_SJE, visit.row, scores)[None], None


def _common_dtype(query: Tensor, value: Tensor) -> torch.dtype:
    """Norms and rotations may leave queries and keys wider than values; the stock functions cast them back, too."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype


def _window(attention_mask: Tensor | None) -> tuple[int | None, dict[str, bool]]:
    if attention_mask is None or attention_mask.shape != (1, 1, 1, 1):
        return None, {"masks of its own making": True}
    number = int(attention_mask.item())
    return number if number > 0 else None, {"a mask that is neither causal nor a window": number == _NOT_CAUSAL}


def _mask(*, mask_function: Callable[..., Tensor], config: Any, **_: Any) -> Tensor:
    """What transformers calls to build a mask."""
    own_window = getattr(config, "sliding_window", None)
    for window in (None, own_window):
        if _is_causal_window(mask_function, window):
            return torch.full((1, 1, 1, 1), window or _NO_WINDOW)
    return torch.full((1, 1, 1, 1), _NOT_CAUSAL)


def _is_causal_window(mask_function: Callable[..., Tensor], window: int | None) -> bool:
    """Asks the mask about pairs of positions around the corners where masks differ."""
    edge = window or 1
    corners = sorted({max(0, base + step) for base in (0, edge, 2 * edge, 2**20) for step in (-2, -1, 0, 1, 2)})
    query, key = torch.tensor(corners)[:, None], torch.tensor(corners)[None]
    zero = torch.zeros((), dtype=torch.long)
    distance = query - key
    expected = (distance >= 0) & (distance < (2**40 if window is None else window))
    return bool(torch.equal(mask_function(zero, zero, query, key).expand_as(expected), expected))


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)
