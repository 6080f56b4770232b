"""Log-probs and entropy of completion tokens by a padded forward: the oracle that faster forwards are tested against.

A row is prompt ++ completion, padded on the right, with its positions 0, 1, 2, ... given explicitly: learned
absolute positions are right without further thought, and no left padding exists. Padding lies behind every real
token, where causal attention does not look; so the attention mask is all ones (a mask of the padding would change
nothing but leave its rows, under a sliding window, without any key: NaN in some kernels). The decoder runs once on
the batch; the head sees only the hidden states that predict a trained token (`policy.head`).

Everything is of softmax(z / temperature), z the model's final logits; top-p, top-k, min-p and penalties of the
sampler play no part (as in TRL).

It does not choose train or eval mode, autocast, or gradients: those are the caller's. It does not cut a batch into
micro-batches: memory grows with the padded size of what it is given.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gruppo.policy.head import LogitTransform, block_size, score_logits, score_tokens
from gruppo.types import TrainBatch

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

# What `head_transform` found for each model seen.
_SPLITS: WeakKeyDictionary[nn.Module, LogitTransform | None] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Forward:
    """What one forward gives the loss. Positions that are not trained hold 0."""

    logprobs_NT: Tensor
    """float32 (float64 for float64 models), nats."""
    entropy_NT: Tensor | None
    """Of the whole distribution at each position; detached unless its gradient was asked for."""
    aux_loss: Tensor | None
    """Scalar load-balancing loss of a mixture of experts over all tokens of the batch, without its coefficient."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """The batch as the model wants it, and where the trained tokens are."""

    inputs: dict[str, Any]
    mask_NT: Tensor
    """1 on tokens, 0 on padding."""
    targets_S: Tensor
    row_S: Tensor
    position_S: Tensor
    """Position whose hidden state predicts the target: one before it."""


LogprobFunction = Callable[..., Forward]
"""`token_logprobs` or a faster function with its arguments."""


def token_logprobs(
    model: nn.Module,
    batch: TrainBatch,
    *,
    temperature: float,
    pad_token_id: int,
    with_entropy: bool,
    entropy_needs_grad: bool = False,
    with_aux_loss: bool = False,
    pad_to_multiple_of: int | None = None,
) -> Forward:
    """Log-prob (and entropy) of every trained completion token, (N, T) with T as in `batch.trained_NT`.

    The model runs in the mode (train or eval) that it is in, under the caller's autocast and grad mode.

    Args:
        model: a causal LM of transformers or a PeftModel around one; not wrapped by DDP.
        batch: prompts must not be empty; completions may be.
        temperature: the sampling temperature.
        pad_token_id: fills the tails; its value has no influence.
        with_entropy: fill `Forward.entropy_NT`.
        entropy_needs_grad: let the entropy carry a gradient (an entropy bonus).
        with_aux_loss: fill `Forward.aux_loss`; the model must return router logits.
        pad_to_multiple_of: length of the padded rows; None: as long as the longest. Changes no number.

    A batch without rows gives empty tensors that are connected to nothing, and no aux loss: skip its backward pass.
    A batch of rows without trained tokens gives zeros that can be differentiated.
    """
    lm = causal_lm(model)
    wide = torch.float64 if lm.dtype == torch.float64 else torch.float32
    if len(batch) == 0:
        empty_NT = torch.zeros(batch.trained_NT.shape, dtype=wide, device=lm.device)
        return Forward(empty_NT, empty_NT if with_entropy else None, None)
    rows = _rows(batch, pad_token_id, lm, pad_to_multiple_of or 1)
    transform = head_transform(lm)
    if transform is not None:
        output = decoder(lm)(**rows.inputs, **router_request(with_aux_loss))
        hidden_SD = output.last_hidden_state[rows.row_S, rows.position_S]
        logprobs_S, entropy_S = score_tokens(
            lm.get_output_embeddings(),
            hidden_SD,
            rows.targets_S,
            transform=transform,
            temperature=temperature,
            with_entropy=with_entropy,
            entropy_needs_grad=entropy_needs_grad,
        )
    else:
        output = lm(**rows.inputs, **router_request(with_aux_loss))
        logprobs_S, entropy_S = _score_own_logits(output.logits, rows, temperature)
        entropy_S = entropy_S if entropy_needs_grad else entropy_S.detach()
    trained_NT = batch.trained_NT.to(logprobs_S.device)
    return Forward(
        scattered(logprobs_S, trained_NT),
        scattered(entropy_S, trained_NT) if with_entropy and entropy_S is not None else None,
        load_balancing_loss(lm.config, output.router_logits, rows.mask_NT) if with_aux_loss else None,
    )


def causal_lm(model: Any) -> Any:
    """The transformers model itself: a PeftModel has its adapters inside it."""
    return model if isinstance(model, PreTrainedModel) else model.get_base_model()


def logit_transform(config: PretrainedConfig) -> LogitTransform:
    """Scale and softcap of the logits, from the names that model families use for them."""
    text: dict[str, Any] = config.get_text_config().to_dict()
    multipliers = [text[name] for name in ("logit_scale", "output_multiplier", "lm_head_multiplier") if text.get(name)]
    scaling = text.get("logits_scaling")
    if multipliers:
        scale = multipliers[0]
    elif scaling:
        # Granite and MiniCPM3 divide by it, HyperCLOVA X multiplies.
        scale = scaling if text["model_type"] == "hyperclovax" else 1 / scaling
    else:
        scale = 1.0
    return LogitTransform(scale=float(scale), softcap=text.get("final_logit_softcapping"))


def _rows(batch: TrainBatch, pad_token_id: int, lm: Any, multiple: int) -> _Rows:
    """Right-padded ids, mask and positions, and the index of every trained token in them."""
    assert all(batch.prompt_ids), "the first completion token needs a prompt to be predicted from"
    sequences = [prompt + completion for prompt, completion in zip(batch.prompt_ids, batch.completion_ids, strict=True)]
    longest = max(len(ids) for ids in sequences)
    width = -(-longest // multiple) * multiple
    ids_NT = torch.full((len(sequences), width), pad_token_id, dtype=torch.long)
    mask_NT = torch.zeros((len(sequences), width), dtype=torch.long)
    for i, ids in enumerate(sequences):
        ids_NT[i, : len(ids)] = torch.tensor(ids)
        mask_NT[i, : len(ids)] = 1
    row_S, token_S = batch.trained_NT.cpu().nonzero(as_tuple=True)
    prompt_length_N = torch.tensor([len(ids) for ids in batch.prompt_ids])
    position_S = prompt_length_N[row_S] + token_S
    assert bool((position_S < mask_NT.sum(dim=1)[row_S]).all()), "a trained token lies behind its completion"
    on_device_NT = ids_NT.to(lm.device)
    inputs = {
        "input_ids": on_device_NT,
        "attention_mask": torch.ones_like(on_device_NT),
        "use_cache": False,
    }
    if takes_positions(lm):
        # Padding repeats the last position: a model of learned positions may have none beyond the longest row.
        positions_T = torch.arange(width, device=lm.device).clamp(max=longest - 1)
        inputs["position_ids"] = positions_T.expand(len(sequences), -1)
    return _Rows(
        inputs=inputs,
        mask_NT=mask_NT.to(lm.device),
        targets_S=ids_NT[row_S, position_S].to(lm.device),
        row_S=row_S.to(lm.device),
        position_S=(position_S - 1).to(lm.device),
    )


def takes_positions(lm: Any) -> bool:
    """Models without the argument (ALiBi, recurrent ones) derive what they need from the mask."""
    return "position_ids" in inspect.signature(type(lm).forward).parameters


def scattered(values_S: Tensor, trained_NT: Tensor) -> Tensor:
    # masked_scatter (unlike an indexed assignment into zeros) stays connected where nothing is trained.
    return values_S.new_zeros(trained_NT.shape).masked_scatter(trained_NT, values_S)


def _score_own_logits(logits_NTV: Tensor, rows: _Rows, temperature: float) -> tuple[Tensor, Tensor]:
    """Scores from a model's own logits, in blocks (the logits themselves exist in full: nothing to be done)."""
    size = block_size(logits_NTV.shape[-1])
    parts = [
        score_logits(logits_NTV[row_S, position_S], targets_S, LogitTransform(), temperature)
        for row_S, position_S, targets_S in zip(
            rows.row_S.split(size), rows.position_S.split(size), rows.targets_S.split(size), strict=True
        )
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def decoder(lm: Any) -> nn.Module:
    """The model without its head."""
    return lm.base_model


def head_transform(lm: Any) -> LogitTransform | None:
    """What comes after the head, if the model's logits are transform(head(decoder(x))). Checked once for each model.

    A family with a twist of its own (an unknown multiplier, a projection before the head) gives None, and is scored
    from the logits of its own forward: right, but with all logits in memory.
    """
    if lm not in _SPLITS:
        transform = logit_transform(lm.config)
        can_split = lm.get_output_embeddings() is not None and decoder(lm) is not lm and _agrees(lm, transform)
        if not can_split:
            logger.warning(
                "%s: its logits are not head(decoder(x)) in a form that gruppo knows, so log-probs are taken from the "
                "model's own full logits. This needs more memory.",
                type(lm).__name__,
            )
        _SPLITS[lm] = transform if can_split else None
    return _SPLITS[lm]


@torch.no_grad()
def _agrees(lm: Any, transform: LogitTransform) -> bool:
    """Compares both ways to the logits on a few tokens."""
    ids_NT = torch.arange(min(4, lm.config.get_text_config().vocab_size), device=lm.device)[None]
    inputs: dict[str, Any] = {"input_ids": ids_NT, "attention_mask": torch.ones_like(ids_NT), "use_cache": False}
    if takes_positions(lm):
        inputs["position_ids"] = torch.arange(ids_NT.shape[1], device=lm.device)[None]
    modes = [(module, module.training) for module in lm.modules()]
    lm.eval()
    own_NTV = lm(**inputs).logits.float()
    hidden_NTD = decoder(lm)(**inputs).last_hidden_state
    ours_NTV = transform(lm.get_output_embeddings()(hidden_NTD).float(), 1.0)
    for module, is_training in modes:
        module.training = is_training
    # Loose enough for bfloat16, and far below what a wrong multiplier does.
    return bool((own_NTV - ours_NTV).abs().max() <= 0.02 * own_NTV.abs().max())


def router_request(with_aux_loss: bool) -> dict[str, bool]:
    return {"output_router_logits": True} if with_aux_loss else {}


def load_balancing_loss(config: PretrainedConfig, router_logits: tuple[Tensor, ...], mask_NT: Tensor) -> Tensor:
    """The load-balancing loss (arXiv 2101.03961) that transformers' mixtures of experts share; padding is left out."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    text = config.get_text_config()
    return load_balancing_loss_func(router_logits, text.num_experts, text.num_experts_per_tok, mask_NT)
