"""THE table of losses, and `policy_loss`: one forward's log-probs -> a scalar to differentiate, and sums per row.

A loss is a row: (surrogate, reducer). The surrogate says what one token contributes, the reducer (reduce.py) what
a row weighs. A new loss is one surrogate function and one row of `LOSSES`.

Nothing outside `trained_NT` can reach a loss or a statistic, not even NaN. Not here: the forward, gathering over
ranks, backward.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gruppo.algorithm.kl import KLEstimator, per_token_kl
from gruppo.algorithm.masks import off_policy_keep
from gruppo.algorithm.ratios import RatioLevel, importance_ratio, log_ratio
from gruppo.algorithm.reduce import REDUCERS, RowCounts
from gruppo.algorithm.row_stats import ClipStatistics, RowStats, slice_metrics

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]

LOG_RATIO_MIN, LOG_RATIO_MAX = math.log(1e-8), 20.0
"""VESPO's bounds on the log of the sequence ratio."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    """What the user chose about the objective: TRL's fields, resolved (`epsilon_high` None is already `epsilon`)."""

    loss_type: LossType = "dapo"
    importance_level: RatioLevel = "token"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    """`1 + epsilon_high` bounds the ratio; for `cispo` it is the bound itself."""
    delta: float | None = None
    """Upper bound of the unclipped ratio (two-sided clipping, INTELLECT-2, arXiv 2505.07291)."""
    beta: float = 0.0
    use_bias_correction_kl: bool = True
    kl_estimator: KLEstimator = "k3"
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    off_policy_mask_threshold: float | None = None
    top_entropy_quantile: float = 1.0
    """1.0 switches the entropy mask off."""


@dataclass(frozen=True, slots=True)
class LossInputs:
    """Rows of one forward (any subset of a step's rows). Tensors of other shape than (N, T) say so."""

    logprobs_NT: Tensor
    entropy_NT: Tensor
    """Needs a gradient only if `entropy_coef` is not 0."""
    advantages_N: Tensor
    trained_NT: Tensor
    """bool"""
    row_weights_N: Tensor
    """From `row_weights`."""
    old_logprobs_NT: Tensor | None = None
    """None: on-policy; the detached `logprobs_NT` are meant, and every ratio is exactly 1."""
    ref_logprobs_NT: Tensor | None = None
    """Needed if beta is not 0."""
    sampler_logprobs_NT: Tensor | None = None
    """NaN where unknown. Only the off-policy mask looks at them."""
    sampler_correction_NT: Tensor | None = None
    """(N, T) or (N, 1), from `ratios.sampler_correction`."""
    entropy_mask_NT: Tensor | None = None
    """bool, from `masks.top_entropy`; needed if `top_entropy_quantile` is below 1. It depends on the entropies of
    all rows of the slice on all ranks, so only the caller can make it."""
    entropy_coef: float = 0.0
    entropy_weights_N: Tensor | None = None
    """From `reduce.entropy_weights`; needed if `entropy_coef` is not 0."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    loss: Tensor
    """Scalar. Backward on it for every part on every rank, gradients summed, is the gradient of the objective."""
    rows: RowStats
    ratio: Tensor
    """policy / old before any clip, detached: (N, T), or (N, 1) at sequence level; 1 where not trained."""
    is_clipped: Tensor | None
    """bool, the ratio's shape: where the surrogate clipped it. None: a loss that does not clip."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a surrogate may look at; 0 (ratios: 1) wherever a token is not trained."""

    logprobs_NT: Tensor
    log_ratio_NT: Tensor
    ratio: Tensor
    """policy / old with gradient: (N, T), or (N, 1) at sequence level."""
    advantages_N1: Tensor
    sampler_correction: Tensor | None
    trained_NT: Tensor


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A token loss, (N, T) or (N, 1) if all tokens of a row share it, and what happened to the ratios on the way.
    The flags have the ratio's shape, `phi` is (N, 1); None where a loss has no such thing."""

    loss: Tensor
    is_clipped_low: Tensor | None = None
    is_clipped_high: Tensor | None = None
    is_cispo_clipped: Tensor | None = None
    phi: Tensor | None = None

    @property
    def is_clipped(self) -> Tensor | None:
        """On whichever side."""
        if self.is_clipped_low is not None and self.is_clipped_high is not None:
            return self.is_clipped_low | self.is_clipped_high
        return self.is_cispo_clipped


def clipped(terms: Terms, settings: LossSettings) -> Surrogate:
    """-min(min(r, delta) A, clip(r, 1 - eps_low, 1 + eps_high) A). PPO's surrogate (arXiv 1707.06347)."""
    low, high = 1 - settings.epsilon_low, 1 + settings.epsilon_high
    bounded = terms.ratio.clamp(low, high)
    free = terms.ratio if settings.delta is None else terms.ratio.clamp(max=settings.delta)
    advantages = terms.advantages_N1
    return Surrogate(
        loss=-torch.minimum(free * advantages, bounded * advantages),
        is_clipped_low=(free < low) & (advantages < 0),
        is_clipped_high=(free > high) & (advantages > 0),
    )


def clipped_weight(terms: Terms, settings: LossSettings) -> Surrogate:
    """-sg(min(r, eps_high)) A log pi. The ratio weighs the policy gradient and is no part of it."""
    weight = terms.ratio.clamp(max=settings.epsilon_high).detach()
    return Surrogate(
        loss=-weight * terms.advantages_N1 * terms.logprobs_NT,
        is_cispo_clipped=(terms.ratio > settings.epsilon_high) & (terms.advantages_N1 > 0),
    )


def soft_gate(terms: Terms, settings: LossSettings) -> Surrogate:
    """-(4 / tau) sigmoid(tau (r - 1)) A, tau by the sign of A. Slope 1 at r = 1, fading on both sides."""
    advantages = terms.advantages_N1
    tau = _by_sign(advantages > 0, settings.sapo_temperature_pos, settings.sapo_temperature_neg, like=advantages)
    return Surrogate(loss=-(4 / tau) * torch.sigmoid(tau * (terms.ratio - 1)) * advantages)


def gamma_weighted(terms: Terms, settings: LossSettings) -> Surrogate:
    """-phi(w) A log pi, phi detached and of the whole sequence's ratio w; see `gamma_weights`."""
    phi_N1 = gamma_weights(terms, settings)
    return Surrogate(loss=-phi_N1 * terms.advantages_N1 * terms.logprobs_NT, phi=phi_N1)


@torch.no_grad()
def gamma_weights(terms: Terms, settings: LossSettings) -> Tensor:
    """phi(w) = exp(lambda) w^k exp(-lambda w), (N, 1); phi(1) = 1, k and lambda by the sign of A.

    w is the product (not the mean) over the row's trained tokens of policy / old, times the sampler correction.
    """
    log_w_N1 = terms.log_ratio_NT.clamp(-20.0, 20.0).sum(dim=1, keepdim=True)
    if terms.sampler_correction is not None:
        log_correction = terms.sampler_correction.log().clamp(LOG_RATIO_MIN, LOG_RATIO_MAX)
        log_w_N1 = log_w_N1 + log_correction.sum(dim=1, keepdim=True)
    log_w_N1 = log_w_N1.clamp(LOG_RATIO_MIN, LOG_RATIO_MAX)
    is_good_N1 = terms.advantages_N1 >= 0
    k = _by_sign(is_good_N1, settings.vespo_k_pos, settings.vespo_k_neg, like=log_w_N1)
    rate = _by_sign(is_good_N1, settings.vespo_lambda_pos, settings.vespo_lambda_neg, like=log_w_N1).clamp(min=1e-4)
    phi_N1 = (rate + k * log_w_N1 - rate * log_w_N1.exp()).exp()
    return phi_N1.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(frozen=True, slots=True)
class LossRow:
    """One loss of the family. `advised_levels`: the ratio levels that its paper (or TRL) means it for; any other
    is computed as asked. `clip_statistics`: which statistics of clipping it leaves in RowStats."""

    surrogate: Callable[[Terms, LossSettings], Surrogate]
    reducer: str
    advised_levels: tuple[RatioLevel, ...]
    clip_statistics: ClipStatistics
    paper: str


LOSSES: dict[str, LossRow] = {
    # surrogate, reducer, advised levels, clip statistics, arXiv id
    "grpo": LossRow(clipped, "row_mean", ("token", "sequence"), "region", "2402.03300"),
    "bnpo": LossRow(clipped, "slice_token_mean", ("token",), "region", "2503.14476"),
    "dr_grpo": LossRow(clipped, "constant_length", ("token",), "region", "2503.20783"),
    "dapo": LossRow(clipped, "generation_token_mean", ("token",), "region", "2503.14476"),
    "luspo": LossRow(clipped, "row_sum", ("sequence",), "region", "2602.05261"),
    "cispo": LossRow(clipped_weight, "generation_token_mean", ("token",), "cispo", "2506.13585"),
    "sapo": LossRow(soft_gate, "row_mean", ("token", "sequence"), "none", "2511.20347"),
    "vespo": LossRow(gamma_weighted, "generation_token_mean", ("token",), "phi", "2602.10693"),
}
"""The family at a glance. GSPO (arXiv 2507.18071) is `grpo` at sequence level."""


def row_weights(loss_type: LossType, counts: RowCounts) -> Tensor:
    """weights_N (float32) of local rows: what each row's summed token loss is multiplied by."""
    return REDUCERS[LOSSES[loss_type].reducer](counts)


def policy_loss(inputs: LossInputs, settings: LossSettings) -> LossOutput:
    """The objective's share of these rows.

        sum over rows of  weight * sum over trained tokens of (surrogate * masks * correction + beta * kl)
                        - entropy_coef * entropy_weight * sum over active tokens of entropy

    Masks: off-policy rows, low-entropy tokens. The sampler correction multiplies the surrogate, except for `vespo`,
    where it is part of w. KL is added after, so neither masks nor correction touch it. Order and meaning are TRL's.
    """
    _check(inputs, settings)
    trained_NT = inputs.trained_NT
    terms = _terms(inputs, settings)
    surrogate = LOSSES[settings.loss_type].surrogate(terms, settings)
    token_loss = _masked_and_corrected(surrogate.loss, terms, inputs, settings)
    kl_NT = _kl(terms, inputs, settings) if settings.beta != 0.0 else None
    if kl_NT is not None:
        token_loss = token_loss + settings.beta * kl_NT
    policy_loss_N = inputs.row_weights_N.to(token_loss.dtype) * (token_loss * trained_NT).sum(dim=1)
    active_NT = trained_NT if inputs.entropy_mask_NT is None else trained_NT & inputs.entropy_mask_NT
    active_entropy_N = _sum_over(inputs.entropy_NT, active_NT)
    loss_N = policy_loss_N
    if inputs.entropy_coef != 0.0:
        assert inputs.entropy_weights_N is not None, "entropy_coef needs entropy_weights_N"
        loss_N = loss_N - inputs.entropy_coef * inputs.entropy_weights_N.to(loss_N.dtype) * active_entropy_N
    sums = {
        "loss": loss_N,
        "policy_loss": policy_loss_N,
        "entropy": _sum_over(inputs.entropy_NT, trained_NT),
        "num_active_tokens": active_NT.sum(dim=1),
        "active_entropy": active_entropy_N,
        "kl": torch.zeros_like(loss_N) if kl_NT is None else _sum_over(kl_NT, trained_NT),
    }
    sums |= _ratio_sums(terms, surrogate, settings)
    return LossOutput(
        loss=loss_N.sum(),
        rows=RowStats(**{name: x.detach().to(loss_N.dtype) for name, x in sums.items()}),
        ratio=terms.ratio.detach(),
        is_clipped=surrogate.is_clipped,
    )


def loss_metrics(
    rows: RowStats,
    slice_ids_N: Tensor,
    settings: LossSettings,
    *,
    num_slices_in_window: int = 1,
    has_entropy_bonus: bool = False,
) -> dict[str, list[float]]:
    """TRL's per-micro-batch metrics from the rows of ALL ranks: name -> one value per slice, ascending slice id.

    `entropy`, `kl` (beta not 0) are means over trained tokens. `clip_ratio/*`, `cispo_clip_ratio` are means over
    tokens, or over rows at sequence level; `clip_ratio/low_min` and `high_max` are extremes over completions, rows
    without tokens left out. `vespo/phi_seq_mean` is a mean over rows. `policy_loss` (with an entropy bonus only) is
    the mean over ranks of the slice's loss, before division by `num_slices_in_window` (GA'; 1 in evaluation) unless
    the loss is normalised over the generation round. Ours: `ratio/mean`, `ratio/max` of policy / old before clipping.

    The caller takes the unweighted mean over slices and steps, NaN left out, as TRL does.
    """
    row = LOSSES[settings.loss_type]
    scale = 1.0 if row.reducer == "generation_token_mean" else float(num_slices_in_window)
    return slice_metrics(
        rows,
        slice_ids_N,
        clip_statistics=row.clip_statistics,
        has_kl=settings.beta != 0.0,
        policy_loss_scale=scale if has_entropy_bonus else None,
    )


def _check(inputs: LossInputs, settings: LossSettings) -> None:
    shape = inputs.logprobs_NT.shape
    assert inputs.trained_NT.dtype == torch.bool, inputs.trained_NT.dtype
    assert inputs.trained_NT.shape == shape, (inputs.trained_NT.shape, shape)
    assert inputs.advantages_N.shape == inputs.row_weights_N.shape == shape[:1], inputs.advantages_N.shape
    assert settings.beta == 0.0 or inputs.ref_logprobs_NT is not None, "beta needs ref_logprobs_NT"
    assert settings.top_entropy_quantile == 1.0 or inputs.entropy_mask_NT is not None, (
        "top_entropy_quantile needs entropy_mask_NT (masks.top_entropy over the whole slice)"
    )


def _terms(inputs: LossInputs, settings: LossSettings) -> Terms:
    trained_NT = inputs.trained_NT
    old_NT = inputs.logprobs_NT.detach() if inputs.old_logprobs_NT is None else inputs.old_logprobs_NT
    correction = inputs.sampler_correction_NT
    if correction is not None and correction.shape == trained_NT.shape:
        correction = correction.masked_fill(~trained_NT, 1.0)
    return Terms(
        logprobs_NT=inputs.logprobs_NT.masked_fill(~trained_NT, 0.0),
        log_ratio_NT=log_ratio(inputs.logprobs_NT, old_NT, trained_NT),
        ratio=importance_ratio(inputs.logprobs_NT, old_NT, trained_NT, settings.importance_level),
        advantages_N1=inputs.advantages_N.unsqueeze(1),
        sampler_correction=correction,
        trained_NT=trained_NT,
    )


def _masked_and_corrected(token_loss: Tensor, terms: Terms, inputs: LossInputs, settings: LossSettings) -> Tensor:
    if settings.off_policy_mask_threshold is not None:
        behaviour_NT = inputs.sampler_logprobs_NT
        if behaviour_NT is None:
            behaviour_NT = inputs.logprobs_NT.detach() if inputs.old_logprobs_NT is None else inputs.old_logprobs_NT
        token_loss = token_loss * off_policy_keep(
            inputs.advantages_N,
            inputs.logprobs_NT,
            behaviour_NT,
            inputs.trained_NT,
            threshold=settings.off_policy_mask_threshold,
        )
    if inputs.entropy_mask_NT is not None:
        token_loss = token_loss * inputs.entropy_mask_NT
    if terms.sampler_correction is not None and settings.loss_type != "vespo":
        token_loss = token_loss * terms.sampler_correction
    return token_loss


def _kl(terms: Terms, inputs: LossInputs, settings: LossSettings) -> Tensor:
    assert inputs.ref_logprobs_NT is not None
    ref_NT = inputs.ref_logprobs_NT.masked_fill(~terms.trained_NT, 0.0)
    ratio = terms.ratio if settings.use_bias_correction_kl else None
    return per_token_kl(terms.logprobs_NT, ref_NT, estimator=settings.kl_estimator, ratio=ratio)


def _ratio_sums(terms: Terms, surrogate: Surrogate, settings: LossSettings) -> dict[str, Tensor]:
    """Statistics of ratios and clips. At token level they are of trained tokens; at sequence level every row has
    one ratio, and counts even if it has no tokens, as in TRL."""
    is_sequence = settings.importance_level == "sequence"
    counted = torch.ones_like(terms.ratio, dtype=torch.bool) if is_sequence else terms.trained_NT
    # The padding gives rows of zero tokens a column to look at.
    largest_N = torch.nn.functional.pad(terms.ratio.detach().masked_fill(~counted, -math.inf), (0, 1), value=-math.inf)
    largest_N = largest_N.amax(dim=1)
    nothing_N = torch.zeros_like(largest_N)

    def count(flags: Tensor | None) -> Tensor:
        return nothing_N if flags is None else (flags & counted).sum(dim=1)

    return {
        "num_tokens": terms.trained_NT.sum(dim=1),
        "ratio_count": counted.sum(dim=1),
        "ratio_sum": _sum_over(terms.ratio, counted),
        "ratio_max": largest_N.masked_fill(largest_N == -math.inf, math.nan),
        "clip_low": count(surrogate.is_clipped_low),
        "clip_high": count(surrogate.is_clipped_high),
        "cispo_clip": count(surrogate.is_cispo_clipped),
        "phi": nothing_N if surrogate.phi is None else surrogate.phi.squeeze(1),
    }


def _sum_over(values_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Per row, over the mask; what the mask hides may be anything, NaN included."""
    return values_NT.masked_fill(~mask_NT, 0.0).sum(dim=1)


def _by_sign(is_first: Tensor, first: float, second: float, *, like: Tensor) -> Tensor:
    return torch.where(is_first, torch.full_like(like, first), torch.full_like(like, second))
