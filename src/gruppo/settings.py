"""From the user's config to what each part wants to know: loss, learner, sampling, precision. Pure but for precision,
which looks at the device. Defaults of derived values (`epsilon_high` None, `eval_temperature` None) are resolved here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from gruppo.algorithm.entropy import EntropyControl
from gruppo.algorithm.losses import LossSettings
from gruppo.algorithm.ratios import CorrectionMode
from gruppo.errors import ConfigError
from gruppo.types import SamplingParams

if TYPE_CHECKING:
    from gruppo.config import GRPOConfig

Precision = Literal["no", "bf16", "fp16"]

_OLD_GPU = "precision   float32: this GPU has no bfloat16 arithmetic (fp16=True computes in float16)"


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """What the learner needs to know beyond the loss's own settings. Names are GRPOConfig's where it has them."""

    max_grad_norm: float
    max_completion_length: int
    is_packed: bool
    """Forwards compute each prompt once for its group, so siblings belong together."""
    max_tokens_per_forward: int | None
    has_correction: bool
    correction_mode: CorrectionMode
    correction_clip_min: float | None
    correction_clip_max: float | None
    has_entropy_bonus: bool
    entropy_target: float | None
    """None: the coefficient is static."""
    entropy_coef_delta: float
    entropy_coef_min: float
    entropy_coef_max: float
    is_old_from_sampler: bool
    aux_loss_coef: float
    has_experts: bool
    """A mixture of experts: a row may move an expert that no other row does."""


def loss_settings(config: GRPOConfig) -> LossSettings:
    return LossSettings(
        loss_type=config.loss_type,
        importance_level=config.importance_sampling_level,
        epsilon_low=config.epsilon,
        epsilon_high=config.epsilon_upper,
        delta=config.delta,
        beta=config.beta,
        use_bias_correction_kl=config.use_bias_correction_kl,
        kl_estimator=config.kl_estimator,
        sapo_temperature_pos=config.sapo_temperature_pos,
        sapo_temperature_neg=config.sapo_temperature_neg,
        vespo_k_pos=config.vespo_k_pos,
        vespo_lambda_pos=config.vespo_lambda_pos,
        vespo_k_neg=config.vespo_k_neg,
        vespo_lambda_neg=config.vespo_lambda_neg,
        off_policy_mask_threshold=config.off_policy_mask_threshold,
        top_entropy_quantile=config.top_entropy_quantile,
    )


def learner_settings(config: GRPOConfig, *, aux_loss_coef: float, has_experts: bool) -> LearnerSettings:
    return LearnerSettings(
        max_grad_norm=config.max_grad_norm,
        max_completion_length=config.max_completion_length,
        is_packed=config.policy_forward == "packed",
        max_tokens_per_forward=config.max_tokens_per_forward,
        has_correction=config.vllm_importance_sampling_correction is True,
        correction_mode=config.vllm_importance_sampling_mode,
        correction_clip_min=config.vllm_importance_sampling_clip_min,
        correction_clip_max=config.vllm_importance_sampling_clip_max,
        has_entropy_bonus=config.use_adaptive_entropy or config.entropy_coef != 0.0,
        entropy_target=config.entropy_target if config.use_adaptive_entropy else None,
        entropy_coef_delta=config.entropy_coef_delta,
        entropy_coef_min=config.entropy_coef_min,
        entropy_coef_max=config.entropy_coef_max,
        is_old_from_sampler=config.old_logprobs == "sampler",
        aux_loss_coef=aux_loss_coef,
        has_experts=has_experts,
    )


def entropy_control(config: GRPOConfig) -> EntropyControl:
    return EntropyControl(coef=config.entropy_coef)


def train_sampling(
    config: GRPOConfig, *, eos_token_ids: tuple[int, ...], pad_token_id: int, step: int
) -> SamplingParams:
    """`step` is the number of the generation round: with the seed it decides the random numbers."""
    return SamplingParams(
        max_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        eos_token_ids=eos_token_ids,
        pad_token_id=pad_token_id,
        seed=config.seed,
        phase="train",
        step=step,
        generation_kwargs=dict(config.generation_kwargs or {}),
    )


def eval_sampling(
    config: GRPOConfig, *, eos_token_ids: tuple[int, ...], pad_token_id: int, step: int
) -> SamplingParams:
    """As in training, but for the `eval_*` fields that are set; temperature 0 takes the most likely token."""
    temperature = config.temperature if config.eval_temperature is None else config.eval_temperature
    return SamplingParams(
        max_tokens=config.eval_max_completion_length or config.max_completion_length,
        temperature=temperature or 1.0,
        top_p=config.top_p if config.eval_top_p is None else config.eval_top_p,
        top_k=config.top_k if config.eval_top_k is None else config.eval_top_k,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        is_greedy=temperature == 0.0,
        eos_token_ids=eos_token_ids,
        pad_token_id=pad_token_id,
        seed=config.seed,
        phase="eval",
        step=step,
        generation_kwargs=dict(config.generation_kwargs or {}),
    )


def precision(config: GRPOConfig) -> tuple[Precision, str | None]:
    """Mixed precision for this device, and a line for the user where it is not the one asked for.

    bfloat16 (TRL's default) falls back to float32 where the device is no good at it; float16 without a GPU is an error.
    """
    has_gpu = torch.cuda.is_available() and not config.use_cpu
    if config.fp16:
        if not has_gpu:
            raise ConfigError(
                "fp16=True needs a GPU, and this run is on the CPU. Set fp16=False (bf16=True, or neither)."
            )
        return "fp16", None
    if not config.uses_bf16:
        return "no", None
    if has_gpu:
        # T4 and V100 emulate bfloat16, slower than float32.
        is_able = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16", None) if is_able else ("no", _OLD_GPU)
    if config.bf16 is None:
        # The default is a wish, not an order: on a CPU, casting weights at each use costs more than bfloat16 saves.
        return "no", "precision   float32 (bf16 is the default on GPUs; set bf16=True to force it here)"
    if torch.cpu._is_avx512_bf16_supported():
        return "bf16", None
    return "no", "precision   float32: bf16=True was asked for, but this device has no bfloat16 arithmetic"
