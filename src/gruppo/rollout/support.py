"""Support: what the embedded engine can run, found out before it is relied on.

Two questions. Does the model rule itself out (`unsupported_reason`)? And do the logits of one of our forwards agree
with the model's own on a small rollout with two prompts, a shared prefix and several decoding steps (`probe`)? A
window longer than that rollout cannot be probed; that layers hand it over is checked by `modules_forward`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

from gruppo.rollout.batches import Slots, prefill_batch
from gruppo.rollout.generation import Forward
from gruppo.rollout.kv_cache import KVCache
from gruppo.rollout.scheduler import Scheduler
from gruppo.rollout.sequence import Sequences
from gruppo.types import Prompt, RolloutRequest, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

PROBE_POSITIONS: Final = 16
_PROMPT_LENGTHS = (7, 4)
_NUM_STEPS = 4

_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Of the largest logit, by the type of the products and of the logits, whichever is coarser."""
_COARSE = 0.05

_ATTENTIONS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class Finding:
    """Of a probe."""

    fault: str | None
    """None: the logits agree."""
    bytes_per_token: int


def unsupported_reason(lm: Any) -> str | None:
    """Why no forward of ours can run this causal LM, as the end of a sentence; None if one may."""
    parameters = list(lm.parameters())
    text: dict[str, Any] = lm.config.get_text_config().to_dict()
    kinds = set(text.get("layer_types") or []) - _ATTENTIONS
    checks: list[tuple[bool, str]] = [
        (lm.config.is_encoder_decoder, "it is an encoder-decoder"),
        (not lm._supports_attention_backend, "it does not take its attention from transformers' AttentionInterface"),
        (bool(kinds), f"it has layers of kind {sorted(kinds)}"),
        ("logits_to_keep" not in inspect.signature(type(lm).forward).parameters, "it has no logits_to_keep"),
        (
            any(type(p) is not nn.Parameter or p.numel() == 0 for p in parameters),
            "its weights are sharded or quantised",
        ),
        (len({p.device for p in parameters}) > 1, "it is spread over several devices"),
    ]
    return next((reason for is_so, reason in checks if is_so), None)


def probe(lm: Any, make_forward: Callable[[], Forward], dtype: torch.dtype) -> Finding:
    """Compares logits on a small forced rollout. The model must be in eval mode.

    Args:
        dtype: of the forward's matrix products.
    """
    try:
        ours, cache = _forced_rollout(make_forward(), lm)
        worst = _worst_gap(lm, ours, dtype)
    # Models are foreign code: whatever it raises here means that this forward does not suit it.
    except Exception as error:
        return Finding(f"{type(error).__name__}: {error}", 0)
    return Finding(worst, cache.bytes_per_token)


def _forced_rollout(forward: Forward, lm: Any) -> tuple[list[tuple[list[int], Tensor]], KVCache]:
    """(ids so far, our logits after them), for several rows and steps."""
    device = next(lm.parameters()).device
    ids = np.random.Generator(np.random.Philox(0)).integers(0, lm.config.get_text_config().vocab_size, size=64).tolist()
    prompts = [Prompt(i, "", [ids.pop() for _ in range(length)]) for i, length in enumerate(_PROMPT_LENGTHS)]
    requests = [RolloutRequest(prompts[0], range(2)), RolloutRequest(prompts[1], range(1))]
    sequences = Sequences(requests, SamplingParams(_NUM_STEPS), max_tokens=_NUM_STEPS, needs_uniforms=False)
    scheduler = Scheduler(
        sequences.prompt_N.tolist(), sequences.prompt_lengths_P.tolist(), max_tokens=_NUM_STEPS, budget=None
    )
    scheduler.admit()
    cache = KVCache(num_prompts=2, prefix_tokens=max(_PROMPT_LENGTHS), num_rows=3, max_tail_tokens=_NUM_STEPS)
    logits_PV = forward(prefill_batch(sequences, [0, 1], first_slot=0, cache=cache, device=device), cache)
    seen = [(prompt.token_ids, logits_V) for prompt, logits_V in zip(prompts, logits_PV, strict=True)]
    slots = Slots.of(scheduler, sequences, device)
    for _ in range(_NUM_STEPS):
        forced = np.array([ids.pop() for _ in slots.rows])
        sequences.append(slots.rows, forced, np.zeros(len(forced), dtype=np.float32))
        logits_NV = forward(slots.decode_batch(sequences, cache), cache)
        seen += [(sequences.history(row), logits_V) for row, logits_V in zip(slots.rows, logits_NV, strict=True)]
    return seen, cache


@torch.no_grad()
def _worst_gap(lm: Any, ours: list[tuple[list[int], Tensor]], dtype: torch.dtype) -> str | None:
    device = next(lm.parameters()).device
    for ids, logits_V in ours:
        ids_NT = torch.tensor([ids], device=device)
        own_V = lm(input_ids=ids_NT, attention_mask=torch.ones_like(ids_NT), use_cache=False).logits[0, -1]
        gap = float((own_V.double() - logits_V.double()).abs().max() / own_V.double().abs().max())
        # A head of its own type gives finer logits than what comes to it. (Written so that NaN is a fault.)
        if not gap <= max(_TOLERANCES.get(kind, _COARSE) for kind in (logits_V.dtype, dtype)):
            return f"its logits differ from the model's own by {gap:.1e} of the largest"
    return None
