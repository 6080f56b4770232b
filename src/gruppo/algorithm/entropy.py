"""The adaptive entropy coefficient (Skywork-OR1, arXiv 2505.22312; TRL's `use_adaptive_entropy`).

A controller without a class: a frozen state and the function that gives the next one. It pushes the policy's
entropy up towards a target and lets go above it. Not here: the bonus itself (see `losses.policy_loss`).
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EntropyControl:
    """State between optimizer steps; part of a checkpoint."""

    coef: float
    last_entropy: float = math.inf
    """Mean entropy (nats per active token, all ranks) of the last optimizer step. Infinite before the first, so
    that no bonus is applied until something has been measured."""


def applied_coef(control: EntropyControl, target: float | None) -> float:
    """The coefficient for the coming optimizer step. `target` None: static, always `coef`. Else the bonus acts only
    if the last step's entropy was at or below the target."""
    return control.coef if target is None or control.last_entropy <= target else 0.0


def next_entropy_control(
    control: EntropyControl,
    entropy_sum: float,
    token_count: float,
    *,
    target: float,
    delta: float,
    min: float,
    max: float,
) -> EntropyControl:
    """The state after an optimizer step whose active tokens (all ranks) had `entropy_sum` nats in total.

    At or below the target the coefficient rises by `delta`, no higher than `max`; above it falls by `delta`, no
    lower than `min`. A step without active tokens measures 0.
    """
    entropy = entropy_sum / (token_count if token_count > 1.0 else 1.0)
    if entropy <= target:
        raised = control.coef + delta
        return EntropyControl(coef=max if raised > max else raised, last_entropy=entropy)
    lowered = control.coef - delta
    return EntropyControl(coef=min if lowered < min else lowered, last_entropy=entropy)
