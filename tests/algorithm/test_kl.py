"""KL estimators: values by hand, and the gradients that the docstring promises, over a vocabulary of three."""

import math

import pytest
import torch

from gruppo.algorithm.kl import KL_ESTIMATORS, per_token_kl

REF = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
LOGITS = torch.tensor([0.1, -0.4, 0.9], dtype=torch.float64)


def test_values_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    ref = torch.tensor([[-1.5, -1.0]], dtype=torch.float64)  # d = 0.5, -1
    assert per_token_kl(logprobs, ref, estimator="k1").tolist() == [[0.5, -1.0]]
    assert per_token_kl(logprobs, ref, estimator="k2").tolist() == [[0.125, 0.5]]
    expected = [math.exp(-0.5) - 0.5, math.e - 2]
    assert per_token_kl(logprobs, ref).flatten().tolist() == pytest.approx(expected, rel=1e-12)
    corrected = per_token_kl(logprobs, ref, ratio=torch.tensor([[2.0]], dtype=torch.float64))
    assert corrected.flatten().tolist() == pytest.approx([2 * x for x in expected], rel=1e-12)


@pytest.mark.parametrize("estimator", sorted(KL_ESTIMATORS))
def test_identical_policies_are_at_distance_zero(estimator):
    logprobs = torch.randn(3, 4, dtype=torch.float64)
    assert (per_token_kl(logprobs, logprobs.clone(), estimator=estimator) == 0).all()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    logp = LOGITS.log_softmax(0)
    expected = (logp.exp() * (logp - REF.log())).sum()
    estimate = (logp.exp() * per_token_kl(logp, REF.log(), estimator=estimator)).sum()
    torch.testing.assert_close(estimate, expected)


def gradient_in_expectation(estimator: str, with_ratio: bool) -> torch.Tensor:
    """Mean over the policy's own samples (all tokens, weighted by the detached policy) of the estimator's gradient."""
    logits = LOGITS.clone().requires_grad_()
    logp = logits.log_softmax(0)
    ratio = (logp - logp.detach()).exp() if with_ratio else None
    (logp.detach().exp() * per_token_kl(logp, REF.log(), estimator=estimator, ratio=ratio)).sum().backward()
    return logits.grad


def true_gradient() -> torch.Tensor:
    logits = LOGITS.clone().requires_grad_()
    logp = logits.log_softmax(0)
    (logp.exp() * (logp - REF.log())).sum().backward()
    return logits.grad


def test_k1_as_a_loss_pulls_nowhere():
    torch.testing.assert_close(gradient_in_expectation("k1", False), torch.zeros(3, dtype=torch.float64))


def test_k2_has_the_gradient_of_the_kl_on_policy():
    torch.testing.assert_close(gradient_in_expectation("k2", False), true_gradient())


def test_k3_without_correction_has_another_gradient():
    difference = gradient_in_expectation("k3", False) - true_gradient()
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_bias_correction_repairs_the_gradient(estimator):
    torch.testing.assert_close(gradient_in_expectation(estimator, True), true_gradient())
