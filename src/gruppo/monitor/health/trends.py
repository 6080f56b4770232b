"""Checks on the course of the reward: a sudden jump (D20), held-out data that falls behind (D21)."""

from __future__ import annotations

import numpy as np

from gruppo.monitor.health.detector import Detector, Limit, Limits
from gruppo.monitor.health.finding import Missing, Reading
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
    best = max(same, key=lambda record: record.metrics["reward"])
    floor = best.metrics["reward"] - limits["errors"] * standard_error(best)
    steps, rewards = window.series("reward")
    since = rewards[steps >= best.step]
    is_rising = len(since) >= 5 and slope(steps[steps >= best.step], since)[1] > 2
    num_below = 0
    for record in reversed(same):
        if record.metrics["reward"] >= floor:
            break
        num_below += 1
    value = best.metrics["reward"] - latest.metrics["reward"]
    threshold = best.metrics["reward"] - floor
    if num_below < num_needed - 1 or not is_rising:
        return Reading("ok", value, threshold)
    message = (
        f"{latest.split} reward fell from {best.metrics['reward']:.3g} (step {best.step}) to "
        f"{latest.metrics['reward']:.3g} while the training reward rose from {since[0]:.3g} to {since[-1]:.3g}"
    )
    advice = f"Best checkpoint: step {best.step}. Look for a trick in the winners; beta > 0, more prompts."
    return Reading("alert" if num_below >= num_needed else "warn", value, threshold, message, advice)


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
            "evals": Limit(3, "evaluations in a row below the best for ALERT; one less warns"),
            "errors": Limit(2.0, "standard errors that count as below"),
        },
        "The training reward rises, the held-out reward falls: memorised prompts or a gamed reward.",
        "Evaluations below best - 2 standard errors (`eval_reward_std` / sqrt(prompts)) since the best one, with a "
        "rising training reward (t > 2).",
        "Use the best checkpoint. Look for a trick in the winners; `beta` > 0, more prompts, earlier stopping.",
        "arXiv 2210.10760 (gold reward against proxy); runs with train .65 to .74 and held-out .63 to .58 at beta 0.",
        fire=(1, 1),
    ),
)
