"""The head: from hidden states to the log-prob of each token and the entropy, never holding all logits.

    z = softcap(head(h) · scale) / temperature        logprob = z[y] − lse(z)        entropy = lse(z) − Σ softmax(z)·z

The first `KEPT_ELEMENTS` logits are kept for the backward pass, which turns them into their own gradient in place and
then needs three matrix products in all. Tokens beyond that go through in blocks (`block_size`) that are made again,
which is a fourth. So memory is bounded whatever the vocabulary and the number of tokens. The projection runs in the
autocast type, everything after it in float32 (float64 for float64 hidden states).

There are two ways through the head. A plain linear layer takes `_LinearScore`, which sums gradients in float32, and
adds the weight's to a `weight.grad` that is there already: another matrix of that size for each forward would take
longer to allocate and to add than to compute. Anything else (an adapter on the head, a quantised or sharded head) is
called as a module under activation checkpointing, and so trains as it would in the model's own forward.

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

BLOCK_ELEMENTS = 2**23
"""Logits per block that is not kept (32 MiB in float32), unless `BLOCK_TOKENS` are more."""

BLOCK_TOKENS = 256
"""Fewer rows would make thin matrix products, and each block costs a pass over the weight's gradient."""

KEPT_ELEMENTS = 2**26
"""Logits of a forward that are kept for its backward pass; those beyond are computed twice."""

STRIP_ELEMENTS = 2**18
"""Logits that the CPU takes through softmax at a time."""


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
        grad = grad_z
        if self.softcap is not None:
            grad = grad * (1 - torch.tanh(logits * self.scale / self.softcap).square())
        return grad if self.scale == temperature else grad * (self.scale / temperature)


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
            hidden_SD, head.weight, head.bias, targets_S, temperature, transform, _compute_dtype(head, hidden_SD),
            with_entropy, torch.is_grad_enabled(),
        )  # fmt: skip
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
    return max(BLOCK_TOKENS, BLOCK_ELEMENTS // vocab_size)


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
        with_entropy: bool,
        is_kept: bool,
    ) -> tuple[Tensor, Tensor]:
        # The entropy is often for the log only; its missing gradient must not come back as zeros to compute with.
        ctx.set_materialize_grads(False)
        num_tokens, vocab_size = hidden_SD.shape[0], weight_VD.shape[0]
        logprobs_S, entropy_S = (hidden_SD.new_zeros(num_tokens, dtype=_wide(hidden_SD.dtype)) for _ in range(2))
        scratch = _Scratch()
        ctx.kept_KV = None
        num_kept = min(num_tokens, KEPT_ELEMENTS // vocab_size) if is_kept else 0
        with torch.autocast(hidden_SD.device.type, enabled=False):
            w_VD = weight_VD.to(dtype)
            for s in _pieces(num_tokens, vocab_size, num_kept):
                size = (s.stop - s.start, vocab_size)
                out_SV = w_VD.new_empty(size) if s.stop <= num_kept else scratch.take(size, w_VD)
                logits_SV = _project(hidden_SD[s], w_VD, bias_V, out_SV)
                if s.stop <= num_kept:
                    ctx.kept_KV = logits_SV
                for r in _strips(s, vocab_size, hidden_SD.device):
                    z_SV = transform(logits_SV[_within(r, s)].to(logprobs_S.dtype), temperature)
                    log_p_SV = torch.log_softmax(z_SV, dim=-1)
                    logprobs_S[r] = log_p_SV.gather(1, targets_S[r][:, None])[:, 0]
                    if with_entropy:
                        entropy_S[r] = -log_p_SV.exp().mul_(log_p_SV).sum(dim=-1)
        ctx.save_for_backward(hidden_SD, weight_VD, bias_V, targets_S, entropy_S)
        ctx.settings = (temperature, transform, dtype)
        return logprobs_S, entropy_S

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs_S: Tensor | None, grad_entropy_S: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_SD, weight_VD, bias_V, targets_S, entropy_S = ctx.saved_tensors
        temperature, transform, dtype = ctx.settings
        vocab_size = weight_VD.shape[0]
        sums = _GradientSums(hidden_SD, weight_VD, bias_V, ctx.needs_input_grad[:3])
        scratch = _Scratch()
        # Taken out, so that memory is free again at once, and a second backward pass makes them anew.
        kept_KV, ctx.kept_KV = ctx.kept_KV, None
        with torch.autocast(hidden_SD.device.type, enabled=False):
            w_VD = weight_VD.to(dtype)
            for s in _pieces(hidden_SD.shape[0], vocab_size, 0 if kept_KV is None else len(kept_KV)):
                if kept_KV is not None:
                    logits_SV, kept_KV = kept_KV, None
                else:
                    size = (s.stop - s.start, vocab_size)
                    logits_SV = _project(hidden_SD[s], w_VD, bias_V, scratch.take(size, w_VD))
                for r in _strips(s, vocab_size, hidden_SD.device):
                    wide_SV = logits_SV[_within(r, s)].to(entropy_S.dtype)
                    grad_z_SV = _grad_z(
                        transform(wide_SV, temperature),
                        targets_S[r],
                        entropy_S=entropy_S[r],
                        grad_logprobs_S=None if grad_logprobs_S is None else grad_logprobs_S[r],
                        grad_entropy_S=None if grad_entropy_S is None else grad_entropy_S[r],
                    )
                    # Rounded to the projection's type, as the model's own backward pass would.
                    logits_SV[_within(r, s)] = transform.backward(wide_SV, grad_z_SV, temperature)
                sums.add(s, logits_SV, hidden_SD[s].to(dtype), w_VD)
        return (*sums.results(), *(None,) * 6)


class _Scratch:
    """A matrix that is allocated once and handed out block after block: fresh memory costs more than what fills it."""

    def __init__(self) -> None:
        self._matrix: Tensor | None = None

    def take(self, size: tuple[int, int], like: Tensor) -> Tensor:
        """Uninitialised; never more rows than the first time."""
        if self._matrix is None:
            self._matrix = like.new_empty(size)
        return self._matrix[: size[0]]


class _GradientSums:
    """Gradients of hidden states, weight and bias, summed over pieces in the wide type."""

    def __init__(self, hidden_SD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, wanted: tuple[bool, ...]) -> None:
        self._dtypes = [None if x is None else x.dtype for x in (hidden_SD, weight_VD, bias_V)]
        wants_hidden, self._wants_weight, wants_bias = wanted
        self._hidden = _zeros_like(hidden_SD) if wants_hidden else None
        self._bias = _zeros_like(bias_V) if wants_bias and bias_V is not None else None
        self._is_in_place = self._wants_weight and _may_add_to_grad(weight_VD)
        # The first product makes the matrix, unless there is none to come.
        is_empty = self._wants_weight and not len(hidden_SD)
        self._weight = weight_VD.grad if self._is_in_place else _zeros_like(weight_VD) if is_empty else None

    def add(self, s: slice, g_SV: Tensor, h_SD: Tensor, w_VD: Tensor) -> None:
        if self._hidden is not None:
            self._hidden[s] = g_SV @ w_VD
        if self._wants_weight:
            self._weight = _sum_with_product(self._weight, g_SV.t(), h_SD)
        if self._bias is not None:
            self._bias += g_SV.sum(dim=0, dtype=self._bias.dtype)

    def results(self) -> list[Tensor | None]:
        grads = (self._hidden, None if self._is_in_place else self._weight, self._bias)
        return [None if x is None else x.to(dtype) for x, dtype in zip(grads, self._dtypes, strict=True)]


def _zeros_like(x: Tensor) -> Tensor:
    return torch.zeros_like(x, dtype=_wide(x.dtype))


def _may_add_to_grad(weight: Tensor) -> bool:
    """Whether autograd would do nothing with a gradient but add it to `weight.grad`, which is there and wide enough."""
    grad = weight.grad if weight.is_leaf else None
    is_watched = bool(weight._backward_hooks) or bool(weight._post_accumulate_grad_hooks)
    return grad is not None and grad.dtype == _wide(weight.dtype) and grad.layout == torch.strided and not is_watched


def _grad_z(
    z_SV: Tensor,
    targets_S: Tensor,
    *,
    entropy_S: Tensor,
    grad_logprobs_S: Tensor | None,
    grad_entropy_S: Tensor | None,
) -> Tensor:
    """d logprob / d z_j = 1[j = y] − p_j;   d entropy / d z_j = −p_j (log p_j + entropy)."""
    if grad_entropy_S is None:
        if grad_logprobs_S is None:
            return torch.zeros_like(z_SV)
        grad_SV = torch.softmax(z_SV, dim=-1).mul_(-grad_logprobs_S[:, None])
    else:
        log_p_SV = torch.log_softmax(z_SV, dim=-1)
        weight_SV = (log_p_SV + entropy_S[:, None]).mul_(grad_entropy_S[:, None])
        if grad_logprobs_S is not None:
            weight_SV += grad_logprobs_S[:, None]
        grad_SV = log_p_SV.exp_().mul_(weight_SV).neg_()
    if grad_logprobs_S is not None:
        grad_SV.scatter_add_(1, targets_S[:, None], grad_logprobs_S[:, None])
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
        for s in _pieces(hidden_SD.shape[0], vocab_size, 0) or [slice(0, 0)]
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _project(h_SD: Tensor, w_VD: Tensor, bias_V: Tensor | None, out_SV: Tensor) -> Tensor:
    torch.mm(h_SD.to(w_VD.dtype), w_VD.t(), out=out_SV)
    return out_SV if bias_V is None else out_SV.add_(bias_V.to(w_VD.dtype))


def _sum_with_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a @ b, in place. What is added may be rounded to a's type; the sum never is, which would bias it."""
    wide = _wide(a.dtype)
    if a.dtype == wide:
        return a @ b if total is None else total.addmm_(a, b)
    if a.is_cuda:
        product = torch.mm(a, b, out_dtype=wide)
        return product if total is None else total.add_(product)
    product = a @ b
    if total is None:
        return product.to(wide)
    # Added a few rows at a time: torch makes a wide copy of what it adds.
    size = max(1, STRIP_ELEMENTS // b.shape[1])
    for rows, part in zip(total.split(size), product.split(size), strict=True):
        rows.add_(part)
    return total


def _pieces(num_tokens: int, vocab_size: int, num_kept: int) -> list[slice]:
    """What is kept, in one piece, and then blocks."""
    size = block_size(vocab_size)
    kept = [slice(0, num_kept)] if num_kept else []
    return kept + [slice(start, min(start + size, num_tokens)) for start in range(num_kept, num_tokens, size)]


def _strips(s: slice, vocab_size: int, device: torch.device) -> list[slice]:
    """Rows of a piece that fit into a core's cache together, where there is one: softmax makes several passes."""
    size = max(1, STRIP_ELEMENTS // vocab_size) if device.type == "cpu" else block_size(vocab_size)
    return [slice(start, min(start + size, s.stop)) for start in range(s.start, s.stop, size)]


def _within(r: slice, s: slice) -> slice:
    """Rows r of all, counted from the start of piece s."""
    return slice(r.start - s.start, r.stop - s.start)


def _compute_dtype(head: nn.Module, hidden_SD: Tensor) -> torch.dtype:
    device = hidden_SD.device.type
    if isinstance(head, Float32Head):
        return _wide(hidden_SD.dtype)
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_SD.dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
