"""Gradients: gradcheck in float64, masked tokens, detached weights, and independence of how rows are cut."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gruppo.algorithm.losses import LOSSES, LossInputs, LossSettings, RowStats, policy_loss

F64 = torch.float64
SEEDS = st.integers(0, 10_000)
LOSS_TYPES = st.sampled_from(sorted(LOSSES))
LEVELS = st.sampled_from(["token", "sequence"])


def make_inputs(seed: int, rows: int = 5, length: int = 4) -> LossInputs:
    """Random rows in float64 with everything switched on; NaN wherever a token is not trained."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=F64)

    trained_NT = torch.rand(rows, length, generator=g) < 0.7
    logprobs_NT = -normal(rows, length).abs() - 0.1

    def hidden(x_NT):
        return x_NT.masked_fill(~trained_NT, math.nan)

    return LossInputs(
        logprobs_NT=hidden(logprobs_NT),
        entropy_NT=hidden(normal(rows, length).abs()),
        advantages_N=normal(rows),
        trained_NT=trained_NT,
        row_weights_N=normal(rows).abs(),
        old_logprobs_NT=hidden(logprobs_NT + 0.4 * normal(rows, length)),
        ref_logprobs_NT=hidden(logprobs_NT + 0.5 * normal(rows, length)),
        sampler_logprobs_NT=hidden(logprobs_NT + 0.5 * normal(rows, length)),
        sampler_correction_NT=normal(rows, length).exp(),
        entropy_mask_NT=torch.rand(rows, length, generator=g) < 0.8,
        entropy_coef=0.1,
        entropy_weights_N=normal(rows).abs(),
    )


def make_settings(loss_type: str, level: str = "token") -> LossSettings:
    return LossSettings(
        loss_type=loss_type,
        importance_level=level,
        epsilon_high=0.3,
        delta=2.0,
        beta=0.2,
        off_policy_mask_threshold=0.1,
        top_entropy_quantile=0.8,
    )


def gradients(inputs: LossInputs, loss_settings: LossSettings) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs_NT = inputs.logprobs_NT.clone().requires_grad_()
    entropy_NT = inputs.entropy_NT.clone().requires_grad_()
    inputs = replace(inputs, logprobs_NT=logprobs_NT, entropy_NT=entropy_NT)
    policy_loss(inputs, loss_settings).loss.backward()
    return logprobs_NT.grad, entropy_NT.grad


@pytest.mark.parametrize("has_bonus", [False, True])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", sorted(LOSSES))
def test_gradcheck(loss_type, level, has_bonus):
    inputs = make_inputs(3)
    loss_settings = replace(make_settings(loss_type, level), off_policy_mask_threshold=None)
    # cispo and vespo detach a weight that finite differences would see move. Here it cannot: every ratio is above
    # cispo's cap, and below the smallest that vespo tells apart, with a phi that is not 0 there.
    if loss_type == "cispo":
        loss_settings = replace(loss_settings, epsilon_high=1e-3)
    if loss_type == "vespo":
        inputs = replace(inputs, old_logprobs_NT=inputs.logprobs_NT + 19.0, sampler_correction_NT=None)
        phi = {"vespo_k_pos": 0.1, "vespo_lambda_pos": 1.0, "vespo_k_neg": 0.05, "vespo_lambda_neg": 0.5}
        loss_settings = replace(loss_settings, use_bias_correction_kl=False, **phi)
    inputs = replace(inputs, entropy_coef=0.1 if has_bonus else 0.0)
    trained_NT = inputs.trained_NT

    def loss_of(logprobs, entropy):
        # Only trained positions vary: the others hold NaN, and must not matter.
        logprobs_NT = inputs.logprobs_NT.masked_scatter(trained_NT, logprobs)
        entropy_NT = inputs.entropy_NT.masked_scatter(trained_NT, entropy)
        return policy_loss(replace(inputs, logprobs_NT=logprobs_NT, entropy_NT=entropy_NT), loss_settings).loss

    logprobs = inputs.logprobs_NT[trained_NT].requires_grad_()
    entropy = inputs.entropy_NT[trained_NT].requires_grad_()
    assert torch.autograd.gradcheck(loss_of, (logprobs, entropy), atol=1e-8, rtol=1e-6)
    (gradient,) = torch.autograd.grad(loss_of(logprobs, entropy), logprobs)
    assert (gradient != 0).any()


@pytest.mark.parametrize("loss_type", ["cispo", "vespo"])
def test_detached_weights_only_scale_the_policy_gradient(loss_type):
    inputs = replace(make_inputs(5), entropy_mask_NT=None, entropy_coef=0.0, sampler_correction_NT=None)
    loss_settings = LossSettings(loss_type=loss_type, epsilon_high=1.1)
    gradient_NT, _ = gradients(inputs, loss_settings)
    log_ratio_NT = (inputs.logprobs_NT - inputs.old_logprobs_NT).masked_fill(~inputs.trained_NT, 0)
    if loss_type == "cispo":
        weight = log_ratio_NT.exp().clamp(max=1.1)
    else:
        weight = policy_loss(inputs, loss_settings).rows.phi.unsqueeze(1)
    expected_NT = -weight * (inputs.row_weights_N * inputs.advantages_N).unsqueeze(1) * inputs.trained_NT
    torch.testing.assert_close(gradient_NT, expected_NT, rtol=1e-12, atol=0)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", sorted(set(LOSSES) - {"cispo"}))
def test_on_policy_every_loss_has_the_policy_gradient(loss_type, level):
    # At ratio 1 each surrogate's slope is -A (cispo's is -epsilon_high * A unless its cap is above 1). At sequence
    # level the row's tokens share the mean of their log-ratios: after summing over tokens, the same gradient.
    inputs = replace(make_inputs(5), old_logprobs_NT=None, entropy_mask_NT=None, entropy_coef=0.0)
    inputs = replace(inputs, sampler_correction_NT=None)
    gradient_NT, _ = gradients(inputs, LossSettings(loss_type=loss_type, importance_level=level))
    expected_NT = -(inputs.row_weights_N * inputs.advantages_N).unsqueeze(1) * inputs.trained_NT
    torch.testing.assert_close(gradient_NT, expected_NT, rtol=1e-12, atol=1e-15)


def test_the_bonus_raises_entropy_of_active_tokens_only():
    inputs = make_inputs(7)
    _, gradient_NT = gradients(inputs, make_settings("grpo"))
    active_NT = inputs.trained_NT & inputs.entropy_mask_NT
    torch.testing.assert_close(gradient_NT, -0.1 * inputs.entropy_weights_N.unsqueeze(1) * active_NT)


@settings(deadline=None, max_examples=60)
@given(SEEDS, LOSS_TYPES, LEVELS)
def test_masked_tokens_get_exactly_zero_gradient(seed, loss_type, level):
    inputs = make_inputs(seed)
    logprob_gradient_NT, entropy_gradient_NT = gradients(inputs, make_settings(loss_type, level))
    assert (logprob_gradient_NT[~inputs.trained_NT] == 0).all()
    assert (entropy_gradient_NT[~inputs.trained_NT] == 0).all()
    assert logprob_gradient_NT.isfinite().all()
    assert entropy_gradient_NT.isfinite().all()


def take(inputs: LossInputs, index: list[int]) -> LossInputs:
    tensors = {name: value[index] for name, value in vars_of(inputs).items() if isinstance(value, torch.Tensor)}
    return replace(inputs, **tensors)


def vars_of(inputs: LossInputs) -> dict[str, object]:
    return {name: getattr(inputs, name) for name in LossInputs.__dataclass_fields__}


@settings(deadline=None, max_examples=60)
@given(SEEDS, LOSS_TYPES, LEVELS, st.permutations(range(6)), st.lists(st.integers(1, 5), max_size=4, unique=True))
def test_rows_cut_into_any_parts_give_the_same_gradient_and_statistics(seed, loss_type, level, order, cuts):
    inputs, loss_settings = make_inputs(seed, rows=6), make_settings(loss_type, level)
    logprobs_NT = inputs.logprobs_NT.clone().requires_grad_()
    whole = policy_loss(replace(inputs, logprobs_NT=logprobs_NT), loss_settings)
    whole.loss.backward()

    parted_NT = inputs.logprobs_NT.clone().requires_grad_()
    bounds = [0, *sorted(cuts), 6]
    parts = [order[a:b] for a, b in itertools.pairwise(bounds)]
    rows = []
    for part in parts:
        out = policy_loss(take(replace(inputs, logprobs_NT=parted_NT), part), loss_settings)
        out.loss.backward()
        rows.append(out.rows)
    torch.testing.assert_close(parted_NT.grad, logprobs_NT.grad, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(
        RowStats.cat(rows).stack(), whole.rows.stack()[order], rtol=1e-13, atol=1e-15, equal_nan=True
    )


@settings(deadline=None, max_examples=30)
@given(SEEDS, LOSS_TYPES, LEVELS, st.integers(1, 5))
def test_padding_to_another_length_changes_nothing(seed, loss_type, level, extra):
    inputs, loss_settings = make_inputs(seed), make_settings(loss_type, level)

    def padded(x):
        if not isinstance(x, torch.Tensor) or x.ndim == 1:
            return x
        filler = x.new_full((x.shape[0], extra), False if x.dtype == torch.bool else math.nan)
        return torch.cat([x, filler], dim=1)

    longer = replace(inputs, **{name: padded(x) for name, x in vars_of(inputs).items()})
    plain_NT, _ = gradients(inputs, loss_settings)
    longer_NT, _ = gradients(longer, loss_settings)
    torch.testing.assert_close(longer_NT[:, :4], plain_NT, rtol=1e-13, atol=1e-15)
    assert (longer_NT[:, 4:] == 0).all()


def test_zero_advantages_leave_no_gradient():
    inputs = replace(make_inputs(1), advantages_N=torch.zeros(5, dtype=F64), entropy_coef=0.0)
    for loss_type in LOSSES:
        gradient_NT, _ = gradients(inputs, replace(make_settings(loss_type), beta=0.0))
        assert (gradient_NT == 0).all()
