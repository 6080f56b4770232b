"""Checks on the course of the reward: a sudden jump (D20), held-out data that falls behind (D21)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gruppo.monitor.health.detector import Detector, Limit, Limits
from gruppo.monitor.health.finding import Level, Missing, Reading
from gruppo.monitor.health.record import standard_error
from gruppo.monitor.health.stats import Floats, cusum, forecast_z, slope
from gruppo.monitor.health.window import Window


def jump(window: Window, limits: Limits) -> Reading | Missing:
    """D20."""
    rewards = window.series("reward")
    num_new = int(limits["new_steps"])
    if len(rewards) < limits["min_steps"] + num_new:
        needed = limits["min_steps"] + num_new
        return Missing(f"needs {needed:.0f} steps, has {len(rewards)}", is_temporary=True)
    steps, values = (x[-int(limits["steps"]) - num_new :] for x in rewards)
    z = forecast_z(steps[:-num_new], values[:-num_new], steps[-num_new:], values[-num_new:])
    value = abs(cusum(z, limits["slack"]))
    spread = window.series("reward_std", int(limits["steps"])).values
    before, after = float(np.mean(values[:-num_new][-5:])), float(np.mean(values[-num_new:]))
    # A bend of the curve leaves the line too; a jump also leaves the level of the steps just before.
    size = min(abs(after - _forecast(steps, values, num_new)), abs(after - before))
    if value <= limits["height"] or (len(spread) and size < limits["effect"] * float(np.max(spread))):
        return Reading("ok", value, limits["height"])
    message = f"the reward left its line: {before:.4g} before, {after:.4g} in the last {num_new} steps"
    advice = f"Compare five winners of step {steps[-num_new - 1]:.0f} with five of now: did the strategy change?"
    rows = window.rows
    scores = None if rows is None else rows.numbers("reward")
    best = () if rows is None or scores is None else rows.ids(np.argsort(-np.nan_to_num(scores), kind="stable")[:5])
    return Reading("warn", value, limits["height"], message, advice, best)


def _forecast(steps: Floats, values: Floats, num_new: int) -> float:
    """Mean of what the line through the old steps says about the new ones."""
    gain, _ = slope(steps[:-num_new], values[:-num_new])
    return float(np.mean(values[:-num_new]) + gain * (np.mean(steps[-num_new:]) - np.mean(steps[:-num_new])))


def held_out(window: Window, limits: Limits) -> Reading | Missing:
    """D21. Runs at evaluations."""
    latest = window.evals[-1]
    same = [record for record in window.evals if record.split == latest.split and "reward" in record.metrics]
    num_needed = int(limits["evals"])
    if len(same) <= num_needed:
        return Missing(f"needs {num_needed + 1} evaluations, has {len(same)}", is_temporary=True)
    first = max(range(len(same)), key=lambda row: same[row].metrics["reward"])
    best, later = same[first], [record.metrics["reward"] for record in same[first + 1 :]]
    steps, rewards = window.series("reward")
    since = rewards[steps >= best.step]
    is_rising = len(since) >= 5 and slope(steps[steps >= best.step], since)[1] > 2
    error = limits["errors"] * standard_error(same[first:])
    level, gap, threshold = _fall(best.metrics["reward"], later, num_needed, error)
    if level == "ok" or not is_rising:
        return Reading("ok", gap, threshold)
    message = (
        f"{latest.split} reward fell from {best.metrics['reward']:.3g} (step {best.step}) to "
        f"{latest.metrics['reward']:.3g} while the training reward rose from {since[0]:.3g} to {since[-1]:.3g}"
    )
    advice = f"Best checkpoint: step {best.step}. Look for a trick in the winners; beta > 0, more prompts."
    return Reading(level, gap, threshold, message, advice)


def _fall(best: float, later: Sequence[float], num_needed: int, error: float) -> tuple[Level, float, float]:
    """(level, how far the mean of the latest is below the best, how far is too far); `error`: of one evaluation.

    A mean of n and the best one differ by sqrt(1 + 1/n) errors by chance.
    """
    levels: tuple[tuple[Level, int], ...] = (("alert", num_needed), ("warn", max(num_needed - 1, 1)))
    gap, threshold = (best - later[-1] if later else 0.0), error * math.sqrt(2)
    for level, num in levels:
        if len(later) < num:
            continue
        gap, threshold = best - float(np.mean(later[-num:])), error * math.sqrt(1 + 1 / num)
        if gap > threshold:
            return level, gap, threshold
    return "ok", gap, threshold


DETECTORS = (
    Detector(
        "D20",
        "sudden jump",
        jump,
        ("metrics",),
        {
            "slack": Limit(0.5, "sigmas that each step loses in the cumulative sum"),
            "height": Limit(8.0, "sigmas of the cumulative sum"),
            "effect": Limit(0.5, "size of the jump as a multiple of the widest spread in a round (`reward_std`)"),
            "steps": Limit(30, "steps that the line is fitted to"),
            "min_steps": Limit(15, "the same, at least"),
            "new_steps": Limit(5, "steps that are compared with the line"),
        },
        "The reward leaves its own line within a few steps: the policy found something, good or bad.",
        "A line through the steps before; the last 5 steps in sigmas of its forecast; the larger one-sided cumulative "
        "sum of those (CUSUM). The jump must also matter: against the 5 steps before, and next to "
        "`reward_std`.",
        "Compare winners before and after, side by side.",
        "CUSUM with slack 0.5 (Page 1954; rewardspy uses raw units). Height: ours, for a sum over 5 steps.",
        fire=(2, 3),
    ),
    Detector(
        "D21",
        "held-out data falls behind",
        held_out,
        ("evals",),
        {
            "evals": Limit(3, "evaluations since the best one whose mean is too low for ALERT; of one less, for WARN"),
            "errors": Limit(2.5, "standard errors of that difference; more than 2, as the best is the best of many"),
        },
        "The training reward rises, the held-out reward falls: memorised prompts or a gamed reward.",
        "The best evaluation less the mean of the latest n (n = 3; for WARN 2) is more than 2.5 standard errors: "
        "sqrt(1 + 1/n) x pooled `eval_reward_std` / sqrt(samples), and the training reward rises since the best one "
        "(t > 2). Pooled over the evaluations from the best one on: it may have got everything right, with a std of 0.",
        "Use the best checkpoint. Look for a trick in the winners; `beta` > 0, more prompts, earlier stopping.",
        "arXiv 2210.10760 (gold reward against proxy); runs with train .65 to .74 and held-out .63 to .58 at beta 0.",
        fire=(1, 1),
    ),
)
