"""Every loss by hand on two rows of three tokens, and against a loop over single tokens in plain Python."""

import math
from dataclasses import replace

import pytest
import torch

from gruppo.algorithm.losses import LOSSES, LossInputs, LossSettings, policy_loss, row_weights
from gruppo.algorithm.reduce import RowCounts

F64 = torch.float64
TRAINED_NT = torch.tensor([[True, True, True], [True, True, False]])
LOGPROBS_NT = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -1.5, -9.0]], dtype=F64)
RATIOS_NT = torch.tensor([[1.5, 1.0, 0.5], [1.5, 0.5, 7.0]], dtype=F64)
COUNTS = RowCounts(
    num_tokens_N=torch.tensor([3, 2]),
    slice_ids_N=torch.tensor([0, 0]),
    num_rows_per_slice=2,
    num_slices_in_window=1,
    num_slices_per_generation=2,
    num_generation_tokens=8,
    world_size=1,
    max_completion_length=4,
    is_training=True,
)


def by_hand(settings: LossSettings, **changes):
    inputs = LossInputs(
        logprobs_NT=LOGPROBS_NT,
        entropy_NT=torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=F64),
        advantages_N=torch.tensor([1.0, -1.0], dtype=F64),
        trained_NT=TRAINED_NT,
        row_weights_N=row_weights(settings.loss_type, COUNTS),
        old_logprobs_NT=LOGPROBS_NT - RATIOS_NT.log(),
    )
    return policy_loss(replace(inputs, **changes), settings)


# Token losses of the clipped surrogate (epsilon 0.2), row 0 with A = 1: -1.2, -1, -0.5, sum -2.7;
# row 1 with A = -1: 1.5, 0.8, sum 2.3.
TOKEN_LEVEL = {
    "grpo": (-2.7 / 3 + 2.3 / 2) / 2,
    "bnpo": -0.4 / 5,
    "dr_grpo": -0.4 / (2 * 4),
    "dapo": -0.4 / (8 / 2),
    "luspo": -0.4 / 2,
}


@pytest.mark.parametrize("loss_type", sorted(TOKEN_LEVEL))
def test_clipped_losses_by_hand(loss_type):
    out = by_hand(LossSettings(loss_type=loss_type))
    assert out.loss.item() == pytest.approx(TOKEN_LEVEL[loss_type], rel=1e-6)
    assert out.rows.loss.sum().item() == pytest.approx(TOKEN_LEVEL[loss_type], rel=1e-6)
    assert out.rows.clip_low.tolist() == [0, 1]
    assert out.rows.clip_high.tolist() == [1, 0]
    assert out.rows.ratio_count.tolist() == [3, 2]
    assert out.rows.ratio_sum.tolist() == pytest.approx([3, 2])
    assert out.rows.ratio_max.tolist() == pytest.approx([1.5, 1.5])


# Sequence ratios: row 0 0.75^(1/3) = 0.908560, row 1 0.75^(1/2) = 0.866025: both inside the clip range, so the
# token losses are -0.908560 (three tokens) and 0.866025 (two tokens).
R0, R1 = 0.75 ** (1 / 3), 0.75**0.5
SEQUENCE_LEVEL = {
    "grpo": (-R0 + R1) / 2,
    "bnpo": (-3 * R0 + 2 * R1) / 5,
    "dr_grpo": (-3 * R0 + 2 * R1) / 8,
    "dapo": (-3 * R0 + 2 * R1) / 4,
    "luspo": (-3 * R0 + 2 * R1) / 2,
}


@pytest.mark.parametrize("loss_type", sorted(SEQUENCE_LEVEL))
def test_sequence_level_by_hand(loss_type):
    out = by_hand(LossSettings(loss_type=loss_type, importance_level="sequence"))
    assert out.loss.item() == pytest.approx(SEQUENCE_LEVEL[loss_type], rel=1e-6)
    assert out.rows.ratio_count.tolist() == [1, 1]
    assert out.rows.ratio_sum.tolist() == pytest.approx([R0, R1])


def test_sequence_clips_count_rows():
    out = by_hand(LossSettings(loss_type="grpo", importance_level="sequence", epsilon_low=0.1))
    # Row 1: min(-0.866, -0.9) = -0.9, clipped from below; row 0 is 0.9086 > 0.9.
    assert out.rows.clip_low.tolist() == [0, 1]
    assert out.loss.item() == pytest.approx((-R0 + 0.9) / 2, abs=1e-7)


def test_cispo_by_hand():
    # Weights min(r, 1.2) = 1.2, 1, 0.5 | 1.2, 0.5; -w A logp = 1.2, 2, 1.5 | -0.6, -0.75.
    out = by_hand(LossSettings(loss_type="cispo", epsilon_high=1.2))
    assert out.loss.item() == pytest.approx((4.7 - 1.35) / 4, rel=1e-6)
    assert out.rows.cispo_clip.tolist() == [1, 0]


def test_sapo_by_hand():
    # sigmoid(0.5) + sigmoid(0) + sigmoid(-0.5) = 1.5, so row 0 is -4 * 1.5; row 1 is 4 / 1.05 * 1.
    out = by_hand(LossSettings(loss_type="sapo"))
    assert out.loss.item() == pytest.approx((-6 / 3 + 4 / 1.05 / 2) / 2, rel=1e-6)
    assert out.rows.clip_low.tolist() == out.rows.clip_high.tolist() == [0, 0]


def test_vespo_by_hand():
    # Both rows have w = 0.75. phi = e^3 0.75^2 e^-2.25 = 1.190813 | e^2 0.75^3 e^-1.5 = 0.695554;
    # sums of logp -6 | -2.
    out = by_hand(LossSettings(loss_type="vespo"))
    assert out.rows.phi.tolist() == pytest.approx([1.1908125, 0.6955543], rel=1e-6)
    assert out.loss.item() == pytest.approx((1.1908125 * 6 - 0.6955543 * 2) / 4, rel=1e-6)


def test_vespo_on_policy_is_reinforce():
    out = by_hand(LossSettings(loss_type="vespo"), old_logprobs_NT=None)
    assert out.rows.phi.tolist() == [1, 1]
    assert out.loss.item() == pytest.approx((6 - 2) / 4)


def test_delta_bounds_the_free_side():
    # Row 1, A = -1: the ratio 1.5 may cost 1.5 without delta, 1.3 with it.
    out = by_hand(LossSettings(loss_type="bnpo", delta=1.3))
    assert out.loss.item() == pytest.approx((-2.7 + 2.1) / 5, rel=1e-6)


def test_on_policy_ratios_are_exactly_one():
    out = by_hand(LossSettings(loss_type="grpo"), old_logprobs_NT=None)
    assert out.loss.item() == pytest.approx(0, abs=1e-7)  # (-1 + 1) / 2
    assert out.rows.ratio_max.tolist() == [1, 1]


def test_kl_is_added_after_masks_and_correction():
    ref_NT = LOGPROBS_NT - math.log(2)  # d = log 2: k3 = 0.5 - 1 + log 2
    k3 = math.log(2) - 0.5
    settings = LossSettings(loss_type="bnpo", beta=0.1, use_bias_correction_kl=False)
    out = by_hand(settings, ref_logprobs_NT=ref_NT, sampler_correction_NT=torch.zeros(2, 1, dtype=F64))
    assert out.loss.item() == pytest.approx(0.1 * k3, rel=1e-6)
    assert out.rows.kl.tolist() == pytest.approx([3 * k3, 2 * k3], rel=1e-9)
    corrected = by_hand(replace(settings, use_bias_correction_kl=True), ref_logprobs_NT=ref_NT)
    assert corrected.rows.kl.tolist() == pytest.approx([3.0 * k3, 2.0 * k3], rel=1e-9)  # ratios sum to 3 and 2
    assert corrected.loss.item() == pytest.approx(-0.08 + 0.1 * k3, rel=1e-6)


def test_off_policy_mask_drops_the_bad_row():
    # Row 1: mean old - logp = -(log 1.5 + log 0.5) / 2 = 0.1438.
    kept = by_hand(LossSettings(loss_type="dapo", off_policy_mask_threshold=0.15))
    assert kept.loss.item() == pytest.approx(-0.4 / 4, rel=1e-6)
    dropped = by_hand(LossSettings(loss_type="dapo", off_policy_mask_threshold=0.14))
    assert dropped.loss.item() == pytest.approx(-2.7 / 4, rel=1e-6)
    by_sampler = by_hand(
        LossSettings(loss_type="dapo", off_policy_mask_threshold=0.15), sampler_logprobs_NT=LOGPROBS_NT + 0.2
    )
    assert by_sampler.loss.item() == pytest.approx(-2.7 / 4, rel=1e-6)


def test_entropy_mask_and_bonus_act_on_the_same_tokens():
    mask_NT = torch.tensor([[False, True, False], [True, False, True]])
    settings = LossSettings(loss_type="dapo", top_entropy_quantile=0.5)
    out = by_hand(
        settings,
        entropy_mask_NT=mask_NT,
        entropy_coef=0.1,
        entropy_weights_N=torch.tensor([0.5, 0.5]),
    )
    # Policy: -1 + 1.5 over 4; entropies 2 and 4 over two active tokens.
    assert out.rows.policy_loss.sum().item() == pytest.approx(0.5 / 4, rel=1e-6)
    assert out.loss.item() == pytest.approx(0.5 / 4 - 0.1 * 3, rel=1e-6)
    assert out.rows.num_active_tokens.tolist() == [1, 1]
    assert out.rows.active_entropy.tolist() == [2, 4]
    assert out.rows.entropy.tolist() == [6, 9]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (LossSettings(beta=0.1), "beta needs ref_logprobs_NT"),
        (LossSettings(top_entropy_quantile=0.2), "top_entropy_quantile needs entropy_mask_NT"),
    ],
)
def test_missing_inputs_are_our_mistake(settings, message):
    with pytest.raises(AssertionError, match=message):
        by_hand(settings)
    with pytest.raises(AssertionError, match="entropy_coef needs entropy_weights_N"):
        by_hand(LossSettings(), entropy_coef=0.1)


def test_rows_without_any_token_column():
    empty_NT = torch.zeros(2, 0, dtype=F64)
    inputs = LossInputs(empty_NT, empty_NT, torch.ones(2, dtype=F64), empty_NT.bool(), torch.ones(2))
    for loss_type in LOSSES:
        out = policy_loss(inputs, LossSettings(loss_type=loss_type))
        assert out.loss.item() == 0
        assert out.rows.ratio_max.isnan().all()


def naive_token_losses(inputs: LossInputs, s: LossSettings) -> float:
    """The whole objective, one token at a time, with floats."""
    total = 0.0
    for i in range(len(inputs.advantages_N)):
        tokens = [t for t in range(inputs.trained_NT.shape[1]) if inputs.trained_NT[i, t]]
        advantage = float(inputs.advantages_N[i])
        lp = {t: float(inputs.logprobs_NT[i, t]) for t in tokens}
        old = lp if inputs.old_logprobs_NT is None else {t: float(inputs.old_logprobs_NT[i, t]) for t in tokens}
        drift = [
            (old[t] if inputs.sampler_logprobs_NT is None else float(inputs.sampler_logprobs_NT[i, t])) - lp[t]
            for t in tokens
        ]
        mean_drift = sum(0.0 if math.isnan(x) else x for x in drift) / max(len(tokens), 1)
        is_kept = s.off_policy_mask_threshold is None or advantage >= 0 or mean_drift <= s.off_policy_mask_threshold
        sequence_log = sum(lp[t] - old[t] for t in tokens)
        phi = naive_phi(inputs, s, i=i, tokens=tokens, sequence_log=sequence_log, advantage=advantage)
        row = 0.0
        for t in tokens:
            log_r = lp[t] - old[t] if s.importance_level == "token" else sequence_log / len(tokens)
            r = math.exp(log_r)
            loss = naive_surrogate(s, r, advantage, lp[t], phi)
            loss *= is_kept
            if inputs.entropy_mask_NT is not None:
                loss *= bool(inputs.entropy_mask_NT[i, t])
            if inputs.sampler_correction_NT is not None and s.loss_type != "vespo":
                loss *= float(inputs.sampler_correction_NT.expand_as(inputs.trained_NT)[i, t])
            if s.beta:
                d = lp[t] - float(inputs.ref_logprobs_NT[i, t])
                kl = {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[s.kl_estimator]
                loss += s.beta * kl * (r if s.use_bias_correction_kl else 1.0)
            row += loss
        total += float(inputs.row_weights_N[i]) * row
        if inputs.entropy_coef:
            active = [t for t in tokens if inputs.entropy_mask_NT is None or inputs.entropy_mask_NT[i, t]]
            bonus = sum(float(inputs.entropy_NT[i, t]) for t in active)
            total -= inputs.entropy_coef * float(inputs.entropy_weights_N[i]) * bonus
    return total


def naive_phi(inputs, s, *, i, tokens, sequence_log, advantage) -> float:
    log_w = sequence_log
    if inputs.sampler_correction_NT is not None:
        columns = tokens if inputs.sampler_correction_NT.shape[1] > 1 else [0]
        for t in columns:
            correction = float(inputs.sampler_correction_NT[i, t])
            log_w += math.log(1e-8) if correction == 0 else math.log(correction)
    log_w = min(max(log_w, math.log(1e-8)), 20.0)
    k, rate = (s.vespo_k_pos, s.vespo_lambda_pos) if advantage >= 0 else (s.vespo_k_neg, s.vespo_lambda_neg)
    return math.exp(rate + k * log_w - rate * math.exp(log_w))


def naive_surrogate(s: LossSettings, r: float, advantage: float, lp: float, phi: float) -> float:
    if s.loss_type == "cispo":
        return -min(r, s.epsilon_high) * advantage * lp
    if s.loss_type == "vespo":
        return -phi * advantage * lp
    if s.loss_type == "sapo":
        tau = s.sapo_temperature_pos if advantage > 0 else s.sapo_temperature_neg
        return -advantage * 4 / tau / (1 + math.exp(-tau * (r - 1)))
    bounded = min(max(r, 1 - s.epsilon_low), 1 + s.epsilon_high)
    free = r if s.delta is None else min(r, s.delta)
    return -min(free * advantage, bounded * advantage)


def random_inputs(seed: int, rows: int = 6, length: int = 5, **changes) -> LossInputs:
    """Random rows in float64; lengths from 0 to `length`, a hole in the mask, NaN where nothing is trained."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=F64)

    trained_NT = torch.arange(length) < torch.randint(0, length + 1, (rows, 1), generator=g)
    trained_NT[0] = torch.tensor([True, False] + [True] * (length - 2))
    logprobs_NT = -normal(rows, length).abs() - 0.1
    inputs = LossInputs(
        logprobs_NT=logprobs_NT.masked_fill(~trained_NT, math.nan),
        entropy_NT=normal(rows, length).abs().masked_fill(~trained_NT, math.nan),
        advantages_N=normal(rows).round(decimals=1),
        trained_NT=trained_NT,
        row_weights_N=normal(rows).abs(),
        old_logprobs_NT=(logprobs_NT + 0.4 * normal(rows, length)).masked_fill(~trained_NT, math.nan),
        ref_logprobs_NT=(logprobs_NT + 0.5 * normal(rows, length)).masked_fill(~trained_NT, math.nan),
    )
    return replace(inputs, **changes)


VARIANTS = {
    "plain": ({}, {}),
    "kl": ({"beta": 0.3}, {}),
    "kl, uncorrected": ({"beta": 0.3, "use_bias_correction_kl": False}, {}),
    "k1": ({"beta": 0.3, "kl_estimator": "k1"}, {}),
    "k2": ({"beta": 0.3, "kl_estimator": "k2"}, {}),
    "delta": ({"delta": 1.3, "epsilon_high": 0.1}, {}),
    "on-policy": ({"beta": 0.1}, {"old_logprobs_NT": None}),
    "off-policy mask": ({"off_policy_mask_threshold": 0.05}, {}),
    "token correction": ({"beta": 0.1}, {"sampler_correction_NT": torch.linspace(0, 2, 30, dtype=F64).view(6, 5)}),
    "row correction": ({"beta": 0.1}, {"sampler_correction_NT": torch.linspace(0, 2, 6, dtype=F64).view(6, 1)}),
    "entropy": (
        {"top_entropy_quantile": 0.5},
        {
            "entropy_mask_NT": torch.arange(30).view(6, 5) % 3 > 0,
            "entropy_coef": 0.2,
            "entropy_weights_N": torch.linspace(0.1, 1, 6, dtype=F64),
        },
    ),
}


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", sorted(LOSSES))
def test_equals_a_loop_over_tokens(loss_type, level, variant):
    setting_changes, input_changes = VARIANTS[variant]
    settings = LossSettings(loss_type=loss_type, importance_level=level, **setting_changes)
    for seed in range(3):
        inputs = random_inputs(seed, **input_changes)
        expected = naive_token_losses(inputs, settings)
        assert policy_loss(inputs, settings).loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
