"""Log-probs and entropy by one packed forward in which each prompt is computed once for all its completions.

A drop-in for `logprobs.token_logprobs`, with the same arguments and, up to summation order, the same numbers and
gradients. What it saves: the prompt of G - 1 siblings, all padding, and every token that nothing trained depends on.

Models that cannot be packed take `token_logprobs` instead, with one warning: those without transformers' attention
interface, with recurrent or convolutional layers, with attention sinks or masks of another kind. Whether a model can
is found out by trying: once for each model, a small packed batch is compared with the padded forward.

Dropout inside attention falls back in training mode (`disable_dropout=True` avoids it). Other dropout (adapters have
it) acts as usual, except that siblings share the noise on their prompt.

It does not choose train or eval mode, autocast, or gradients. It does not cut a batch into forwards: memory grows
with the packed size of what it is given (see `packing.cut_by_tokens`).
"""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from gruppo.errors import ModelError, boundary
from gruppo.modes import eval_mode
from gruppo.policy.attention_switch import ROW_ARGUMENT, Visit, packed_attention
from gruppo.policy.head import score_tokens
from gruppo.policy.logprobs import (
    Forward,
    causal_lm,
    decoder,
    head_transform,
    load_balancing_loss,
    router_request,
    scattered,
    takes_positions,
    token_logprobs,
)
from gruppo.policy.packing import PackedRow, pack
from gruppo.types import TrainBatch

logger = logging.getLogger(__name__)

_LAYER_TYPES = {"full_attention", "sliding_attention"}

# Why a model seen cannot be packed, by its mode (True: training); None: it can.
_OBSTACLES: WeakKeyDictionary[nn.Module, dict[bool, str | None]] = WeakKeyDictionary()


def packed_logprobs(
    model: nn.Module,
    batch: TrainBatch,
    *,
    temperature: float,
    pad_token_id: int,
    with_entropy: bool,
    entropy_needs_grad: bool = False,
    with_aux_loss: bool = False,
) -> Forward:
    """Log-prob (and entropy) of every trained completion token, (N, T). See `token_logprobs` for all arguments.

    Rows share their prompt if their group id and their prompt ids are equal. Prompts must not be empty.
    """
    lm = causal_lm(model)
    visit = None
    if len(batch) > 0 and not obstacle(lm, pad_token_id):
        visit = Visit(pack(batch, is_whole=with_aux_loss).to(lm.device))
        random_state = _random_state(lm.device)
        output = _run(lm, visit, with_aux_loss)
        if visit.refusals:
            # The refused forward must leave no trace: a resumed run meets its first forward elsewhere.
            _set_random_state(lm.device, random_state)
            _OBSTACLES[lm][lm.training] = _sentence(visit.refusals)
            _warn(lm, _sentence(visit.refusals))
    if visit is None or visit.refusals:
        return token_logprobs(
            model,
            batch,
            temperature=temperature,
            pad_token_id=pad_token_id,
            with_entropy=with_entropy,
            entropy_needs_grad=entropy_needs_grad,
            with_aux_loss=with_aux_loss,
        )
    transform = head_transform(lm)
    assert transform is not None
    logprobs_M, entropy_M = score_tokens(
        lm.get_output_embeddings(),
        output.last_hidden_state[0].index_select(0, visit.row.sources_M),
        visit.row.targets_M,
        transform=transform,
        temperature=temperature,
        with_entropy=with_entropy,
        entropy_needs_grad=entropy_needs_grad,
    )
    trained_NT = batch.trained_NT.to(logprobs_M.device)
    return Forward(
        scattered(logprobs_M, trained_NT),
        None if entropy_M is None else scattered(entropy_M, trained_NT),
        load_balancing_loss(lm.config, output.router_logits, visit.row.copies_S) if with_aux_loss else None,
    )


def obstacle(model: nn.Module, pad_token_id: int = 0) -> str | None:
    """Why this model cannot be packed in its present mode; None if it can. Found out at the first call for a model."""
    lm = causal_lm(model)
    if lm not in _OBSTACLES:
        reason = _known_obstacle(lm) or _tried_obstacle(lm, pad_token_id)
        _OBSTACLES[lm] = {True: reason, False: reason}
        if reason is not None:
            _warn(lm, reason)
    return _OBSTACLES[lm][lm.training]


def _random_state(device: torch.device) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(device: torch.device, state: list[torch.Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def _run(lm: Any, visit: Visit, with_aux_loss: bool) -> Any:
    row: PackedRow = visit.row
    with packed_attention(lm):
        return decoder(lm)(
            input_ids=row.token_ids_S[None],
            attention_mask=torch.ones_like(row.token_ids_S)[None],
            position_ids=row.positions_S[None],
            use_cache=False,
            **{ROW_ARGUMENT: visit},
            **router_request(with_aux_loss),
        )


def _known_obstacle(lm: PreTrainedModel) -> str | None:
    config = lm.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or _LAYER_TYPES)
    reasons = {
        "its attention does not go through transformers' attention interface": not lm._supports_attention_backend,
        "it takes no position ids": not takes_positions(lm),
        f"it has layers of type {', '.join(sorted(layer_types - _LAYER_TYPES))}": bool(layer_types - _LAYER_TYPES),
        "it has convolutions, which read across rows": any(isinstance(module, nn.Conv1d) for module in lm.modules()),
        "its logits are not a function of its decoder and head alone": head_transform(lm) is None,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def _tried_obstacle(lm: Any, pad_token_id: int) -> str | None:
    """Runs a small batch both ways, in eval mode, without gradient and autocast."""
    batch = _trial(lm.config.get_text_config().vocab_size)
    visit = Visit(pack(batch, is_whole=True).to(lm.device))
    settings: dict[str, Any] = {"temperature": 1.0, "pad_token_id": pad_token_id, "with_entropy": False}
    with torch.no_grad(), torch.autocast(lm.device.type, enabled=False), eval_mode(lm):
        padded_NT = token_logprobs(lm, batch, **settings).logprobs_NT
        try:
            with boundary(ModelError, "its packed forward"):
                output = _run(lm, visit, with_aux_loss=False)
        except ModelError as error:
            return str(error)
        if visit.refusals:
            return _sentence(visit.refusals)
        num_layers = lm.config.get_text_config().num_hidden_layers
        if visit.num_calls != num_layers:
            return f"{num_layers - visit.num_calls} of its {num_layers} layers do not attend by the interface"
        transform = head_transform(lm)
        assert transform is not None
        hidden_MD = output.last_hidden_state[0][visit.row.sources_M]
        packed_M, _ = score_tokens(
            lm.get_output_embeddings(), hidden_MD, visit.row.targets_M, transform=transform, temperature=1.0,
            with_entropy=False,
        )  # fmt: skip
    gap = (packed_M - padded_NT[batch.trained_NT.to(padded_NT.device)]).abs().max().item()
    is_close = gap <= (2e-3 if lm.dtype in (torch.float32, torch.float64) else 0.25)
    return None if is_close else f"its packed log-probs differ from the padded ones by up to {gap:.2g} nats"


def _trial(vocab_size: int) -> TrainBatch:
    """Two groups of different shapes, all of whose tokens differ from their neighbours."""
    tokens = [(7 * i * i + 3 * i + 1) % vocab_size for i in range(64)]
    prompts = [tokens[0:7], tokens[0:7], tokens[0:7], tokens[40:43], tokens[40:43]]
    completions = [tokens[7:12], tokens[12:14], tokens[14:20], tokens[43:47], tokens[50:51]]
    trained_NT = torch.zeros(len(prompts), 6, dtype=torch.bool)
    for i, ids in enumerate(completions):
        trained_NT[i, : len(ids)] = True
    return TrainBatch(
        prompt_ids=prompts,
        completion_ids=completions,
        trained_NT=trained_NT,
        advantages_N=torch.zeros(len(prompts)),
        group_ids=[0, 0, 0, 1, 1],
        slice_ids=[0] * len(prompts),
    )


def _sentence(refusals: set[str]) -> str:
    return f"its attention asks for {', '.join(sorted(refusals))}"


def _warn(lm: nn.Module, reason: str) -> None:
    logger.warning(
        "%s cannot share prompts between completions: %s. Each row is computed in full instead, which is slower.",
        type(lm).__name__,
        reason,
    )
