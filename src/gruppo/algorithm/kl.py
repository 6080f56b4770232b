"""KL estimators: distance of the policy to the reference, per token, from the log-probs of sampled tokens alone.

With d = log(policy / reference) of a token sampled from the policy (Schulman, "Approximating KL divergence",
2020, joschu.net/blog/kl-approx.html):

    k1 = d                      unbiased, large variance, may be negative
    k2 = d**2 / 2               biased, never negative
    k3 = exp(-d) - 1 + d        unbiased, never negative; GRPO's choice (arXiv 2402.03300) and TRL's

A good estimate of the value is not yet a good gradient. Differentiated as a loss on samples of the policy:

    k1: grad = grad logp                       expectation 0: it pulls nowhere, whatever the distance
    k2: grad = d * grad logp                   expectation = the gradient of KL(policy || reference), on-policy
    k3: grad = (1 - exp(-d)) * grad logp       k2's to first order in d; bounded above, grows where d << 0

The bias correction (`ratio`, DeepSeek-V3.2, arXiv 2512.02556; TRL's `use_bias_correction_kl`) multiplies by the
live ratio policy / old. It weighs samples of the old policy as samples of the live one, and since it is not
detached, the product rule repairs the gradient: ratio * k3 has gradient ratio * d * grad logp, exactly the one
of KL(policy || reference); ratio * k1 has ratio * (1 + d) * grad logp, the same in expectation.

Not here: the coefficient beta, masks, sums.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]

KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda d: d,
    "k2": lambda d: d.square() / 2,
    "k3": lambda d: (-d).exp() + d - 1,
}
"""Each maps d = log(policy / reference), any shape, to the estimate of the same shape."""


def per_token_kl(
    logprobs_NT: Tensor, ref_logprobs_NT: Tensor, *, estimator: KLEstimator = "k3", ratio: Tensor | None = None
) -> Tensor:
    """KL(policy || reference) per token (N, T), in nats.

    `ratio`: policy / old, (N, T) or (N, 1), NOT detached and before any clamp: the bias correction above.
    """
    kl_NT = KL_ESTIMATORS[estimator](logprobs_NT - ref_logprobs_NT)
    return kl_NT if ratio is None else kl_NT * ratio
