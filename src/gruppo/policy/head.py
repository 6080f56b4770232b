"""The head: from hidden states to the log-prob of each token and the entropy, never holding all logits.

    z = softcap(head(h) · scale) / temperature        logprob = z[y] − lse(z)        entropy = lse(z) − Σ softmax(z)·z

Tokens go through in blocks of at most `BLOCK_ELEMENTS` logits; the backward pass makes each block again. The
projection runs in the autocast type, everything after it in float32 (float64 for float64 hidden states).

There are two ways through the head. A plain linear layer takes `_LinearScore`, which sums the gradients of the
blocks in float32. Anything else (an adapter on the head, a quantised or sharded head) is called as a module under
activation checkpointing, and so trains as it would in the model's own forward.

This is not a loss, and knows nothing of rows, prompts or masks: S is a plain list of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

BLOCK_ELEMENTS = 2**25
"""Logits per block: 128 MiB in float32, and a few such tensors live at once."""


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What some models do to the logits after the projection: multiply (Cohere, Granite), then softcap (Gemma 2)."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, logits: Tensor, temperature: float) -> Tensor:
        z = logits if self.scale == 1.0 else logits * self.scale
        if self.softcap is not None:
            z = self.softcap * torch.tanh(z / self.softcap)
        return z if temperature == 1.0 else z / temperature

    def backward(self, logits: Tensor, grad_z: Tensor, temperature: float) -> Tensor:
        """d loss / d logits, from d loss / d z."""
        grad = grad_z / temperature
        if self.softcap is not None:
            grad = grad * (1 - torch.tanh(logits * self.scale / self.softcap).square())
        return grad * self.scale


class Float32Head(nn.Linear):
    """A linear head that projects in float32 whatever the autocast type is (`cast_lm_head_to_fp32`)."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(input.float(), self.weight, self.bias)


def score_tokens(
    head: nn.Module,
    hidden_SD: Tensor,
    targets_S: Tensor,
    *,
    transform: LogitTransform,
    temperature: float,
    with_entropy: bool,
    entropy_needs_grad: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-prob of each target and (if asked) entropy, both (S,), in float32 or float64.

    Without `entropy_needs_grad` the entropy is detached. S = 0 gives empty tensors that are still connected to the
    hidden states, so that a backward pass through them finds its way.
    """
    if type(head) in (nn.Linear, Float32Head) and type(head.weight) is nn.Parameter:
        scored = _LinearScore.apply(
            hidden_SD, head.weight, head.bias, targets_S, temperature, transform, _compute_dtype(head, hidden_SD)
        )
        logprobs_S, entropy_S = scored
    else:
        logprobs_S, entropy_S = _score_by_module(head, hidden_SD, targets_S, transform, temperature)
    if not with_entropy:
        return logprobs_S, None
    return logprobs_S, entropy_S if entropy_needs_grad else entropy_S.detach()


def score_logits(
    logits_SV: Tensor, targets_S: Tensor, transform: LogitTransform, temperature: float
) -> tuple[Tensor, Tensor]:
    """The same numbers from logits that exist already, plainly. (S,) log-probs and entropies."""
    z_SV = transform(logits_SV.to(_wide(logits_SV.dtype)), temperature)
    log_p_SV = torch.log_softmax(z_SV, dim=-1)
    entropy_S = -(log_p_SV.exp() * log_p_SV).sum(dim=-1)
    return log_p_SV.gather(1, targets_S[:, None])[:, 0], entropy_S


def block_size(vocab_size: int) -> int:
    """How many tokens (rows of logits) one block holds."""
    return max(1, BLOCK_ELEMENTS // vocab_size)


class _LinearScore(torch.autograd.Function):
    """Projection, log-prob and entropy of a linear head, block by block, with its own backward pass."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd.Function.apply takes no keywords
        ctx: Any,
        hidden_SD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_S: Tensor,
        temperature: float,
        transform: LogitTransform,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        # The entropy is often for the log only; its missing gradient must not come back as zeros to compute with.
        ctx.set_materialize_grads(False)
        wide = _wide(hidden_SD.dtype)
        num_tokens = hidden_SD.shape[0]
        lse_S, target_S, entropy_S = (hidden_SD.new_empty(num_tokens, dtype=wide) for _ in range(3))
        with torch.autocast(hidden_SD.device.type, enabled=False):
            w_VD = weight_VD.to(dtype)
            for s in _blocks(num_tokens, weight_VD.shape[0]):
                z_SV = transform(_project(hidden_SD[s], w_VD, bias_V, dtype).to(wide), temperature)
                lse_S[s] = torch.logsumexp(z_SV, dim=-1)
                target_S[s] = z_SV.gather(1, targets_S[s][:, None])[:, 0]
                entropy_S[s] = lse_S[s] - (torch.exp(z_SV - lse_S[s][:, None]) * z_SV).sum(dim=-1)
        ctx.save_for_backward(hidden_SD, weight_VD, bias_V, targets_S, lse_S, entropy_S)
        ctx.settings = (temperature, transform, dtype)
        return target_S - lse_S, entropy_S

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs_S: Tensor | None, grad_entropy_S: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_SD, weight_VD, bias_V, targets_S, lse_S, entropy_S = ctx.saved_tensors
        temperature, transform, dtype = ctx.settings
        wide = lse_S.dtype
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden_SD, dtype=wide) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=wide) if wants_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=wide) if wants_bias else None
        with torch.autocast(hidden_SD.device.type, enabled=False):
            w_VD = weight_VD.to(dtype)
            for s in _blocks(hidden_SD.shape[0], weight_VD.shape[0]):
                h_SD = hidden_SD[s].to(dtype)
                logits_SV = _project(h_SD, w_VD, bias_V, dtype).to(wide)
                grad_z_SV = _grad_z(
                    transform(logits_SV, temperature),
                    targets_S[s],
                    lse_S=lse_S[s],
                    entropy_S=entropy_S[s],
                    grad_logprobs_S=None if grad_logprobs_S is None else grad_logprobs_S[s],
                    grad_entropy_S=None if grad_entropy_S is None else grad_entropy_S[s],
                )
                # Rounded to the projection's type, as the model's own backward pass would.
                g_SV = transform.backward(logits_SV, grad_z_SV, temperature).to(dtype)
                if grad_hidden is not None:
                    grad_hidden[s] = _matmul_wide(g_SV, w_VD, wide)
                if grad_weight is not None:
                    grad_weight += _matmul_wide(g_SV.t(), h_SD, wide)
                if grad_bias is not None:
                    grad_bias += g_SV.sum(dim=0, dtype=wide)
        return (
            None if grad_hidden is None else grad_hidden.to(hidden_SD.dtype),
            None if grad_weight is None else grad_weight.to(weight_VD.dtype),
            None if grad_bias is None else grad_bias.to(bias_V.dtype),
            *(None,) * 4,
        )


def _grad_z(
    z_SV: Tensor,
    targets_S: Tensor,
    *,
    lse_S: Tensor,
    entropy_S: Tensor,
    grad_logprobs_S: Tensor | None,
    grad_entropy_S: Tensor | None,
) -> Tensor:
    """d logprob / d z_j = 1[j = y] − p_j;   d entropy / d z_j = −p_j (log p_j + entropy)."""
    log_p_SV = z_SV - lse_S[:, None]
    p_SV = log_p_SV.exp()
    grad_SV = torch.zeros_like(z_SV)
    if grad_logprobs_S is not None:
        grad_SV -= grad_logprobs_S[:, None] * p_SV
        grad_SV.scatter_add_(1, targets_S[:, None], grad_logprobs_S[:, None])
    if grad_entropy_S is not None:
        grad_SV -= grad_entropy_S[:, None] * p_SV * (log_p_SV + entropy_S[:, None])
    return grad_SV


def _score_by_module(
    head: nn.Module, hidden_SD: Tensor, targets_S: Tensor, transform: LogitTransform, temperature: float
) -> tuple[Tensor, Tensor]:
    def score(h_SD: Tensor, y_S: Tensor) -> tuple[Tensor, Tensor]:
        return score_logits(head(h_SD), y_S, transform, temperature)

    # The width of an adapted or quantised head is known only by calling it.
    with torch.no_grad():
        vocab_size = head(hidden_SD.new_zeros(1, hidden_SD.shape[1])).shape[-1]
    parts = [
        checkpoint(score, hidden_SD[s], targets_S[s], use_reentrant=False)
        for s in _blocks(hidden_SD.shape[0], vocab_size) or [slice(0, 0)]
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _project(h_SD: Tensor, w_VD: Tensor, bias_V: Tensor | None, dtype: torch.dtype) -> Tensor:
    return functional.linear(h_SD.to(dtype), w_VD, None if bias_V is None else bias_V.to(dtype))


def _matmul_wide(a: Tensor, b: Tensor, wide: torch.dtype) -> Tensor:
    """a @ b without rounding to the inputs' type: many small rounded sums would bias the gradient."""
    if a.is_cuda and a.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(a, b, out_dtype=wide)
    return a.to(wide) @ b.to(wide)


def _blocks(num_tokens: int, vocab_size: int) -> list[slice]:
    size = block_size(vocab_size)
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


def _compute_dtype(head: nn.Module, hidden_SD: Tensor) -> torch.dtype:
    device = hidden_SD.device.type
    if isinstance(head, Float32Head):
        return _wide(hidden_SD.dtype)
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_SD.dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
