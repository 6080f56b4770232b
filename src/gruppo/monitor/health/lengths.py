"""Checks on completion lengths: sudden change (D04), truncation (D05), a reward that follows length (D13)."""

from __future__ import annotations

import numpy as np

from gruppo.monitor.health.detector import Detector, Limit, Limits
from gruppo.monitor.health.finding import Level, Missing, Reading, RowId, graded
from gruppo.monitor.health.stats import robust_sigma, slope
from gruppo.monitor.health.window import Series, Window

LENGTH = "completions/mean_length"


def length_change(window: Window, limits: Limits) -> Reading | Missing:
    """D04."""
    lengths = window.series(LENGTH, int(limits["steps"]))
    if len(lengths) < limits["min_steps"]:
        return Missing(f"needs {limits['min_steps']:.0f} steps, has {len(lengths)}", is_temporary=True)
    after = float(np.median(lengths.values[-5:]))
    usual = _left(window, lengths, after, limits)
    if usual is None:
        return Reading("ok", after / max(float(np.median(lengths.values)), 1e-9), limits["warn"])
    ratio = after / max(usual, 1e-9)
    is_paying = slope(*window.series("reward", int(limits["steps"])))[1] > 2
    is_alert = max(ratio, 1 / max(ratio, 1e-9)) >= limits["alert"] and not is_paying
    direction = "grew" if ratio > 1 else "shrank"
    message = f"mean length {direction} from {usual:.0f} to {after:.0f} tokens within {len(lengths)} steps"
    if is_paying:
        message += ", and the reward rises with it"
        advice = "Read the " + ("longest" if ratio > 1 else "shortest") + " winners: is it thought, or a short cut?"
    elif ratio > 1:
        advice = "Look for loops (D11); loss_type dapo or dr_grpo, a soft penalty for overlong answers."
    else:
        advice = "Look at the shortest answers and at what ends them (EOS, stop strings)."
    level: Level = "alert" if is_alert else "warn"
    return Reading(level, ratio, limits[level], message, advice, _extreme(window, ratio))


def _left(window: Window, lengths: Series, after: float, limits: Limits) -> float | None:
    """The usual length that the latest steps have left, or None.

    Either that of the steps before, by a factor and by their scatter; or, while the start of the run is near, that of
    the first 5 steps, by the larger factor: a run that changes from its first step on has no quiet steps to scatter.
    """
    before, first = lengths.values[:-5], window.start(LENGTH)[:5]
    candidates = [(before, limits["warn"], robust_sigma(before))]
    if window.now.step <= window.baseline[0].step + limits["steps"]:
        candidates.append((first, limits["alert"], 0.0))
    for values, factor, scatter in candidates:
        if not len(values):
            continue
        usual = float(np.median(values))
        sigma, change = max(scatter, 1e-3 * usual), abs(after - usual)
        times = max(after / max(usual, 1e-9), usual / max(after, 1e-9))
        if times >= factor and change >= limits["z"] * sigma and change >= limits["min_tokens"]:
            return usual
    return None


def _extreme(window: Window, ratio: float) -> tuple[RowId, ...]:
    """The longest completions (ratio > 1), or the shortest."""
    lengths = None if window.rows is None else window.rows.numbers("n_trained")
    if window.rows is None or lengths is None:
        return ()
    return window.rows.ids(np.argsort(-lengths if ratio > 1 else lengths, kind="stable")[:4])


def truncation(window: Window, limits: Limits) -> Reading | Missing:
    """D05."""
    value = window.value("completions/clipped_ratio")
    if value is None:
        return Missing("needs the metric completions/clipped_ratio")
    level, threshold = graded(value, warn=limits["warn"], alert=limits["alert"])
    if level == "ok":
        return Reading(level, value, threshold)
    cap = window.number("max_completion_length")
    limit = "the length limit" if cap is None else f"max_completion_length={cap:.0f}"
    message = f"{value:.0%} of answers were cut at {limit} before they ended"
    advice = "Raise it, or check that the model's end token is a stop token."
    evidence: tuple[RowId, ...] = ()
    reasons = None if window.rows is None else window.rows.column("finish_reason")
    if window.rows is not None and reasons is not None:
        is_cut = np.array([reason != "stop" for reason in reasons])
        evidence = window.rows.ids(np.flatnonzero(is_cut))
        rewards = window.rows.numbers("reward")
        if rewards is not None and is_cut.any() and not np.isnan(rewards[is_cut]).all():
            message += f"; their mean reward is {np.nanmean(rewards[is_cut]):.3g}, of all {np.nanmean(rewards):.3g}"
    if window.config.get("mask_truncated_completions"):
        advice += " They are masked: their groups learn from the rest (whether that helps is disputed)."
    return Reading(level, value, threshold, message, advice, evidence)


def length_reward(window: Window, limits: Limits) -> Reading | Missing:
    """D13."""
    rhos = window.series("rows/length_rho", int(limits["steps"]))
    if len(rhos) < limits["steps"]:
        return Missing(f"needs {limits['steps']:.0f} rounds with differing rewards and lengths, has {len(rhos)}", True)
    value = float(np.mean(rhos.values))
    trend = slope(*window.series(LENGTH, int(limits["trend_steps"])))[1]
    is_moving = abs(trend) > 2 and (trend > 0) == (value > 0)
    level, threshold = graded(abs(value), warn=limits["warn"], alert=limits["alert"])
    if level == "ok" or not is_moving:
        return Reading("ok", value, threshold)
    inside = window.series("rows/length_rho_inside", int(limits["steps"])).values
    if len(inside) < limits["steps"] / 2 or float(np.mean(inside)) * np.sign(value) < limits["inside"]:
        level, threshold = "info", limits["warn"]
    longer, grows = ("longer", "grows") if value > 0 else ("shorter", "shrinks")
    message = f"{longer} answers get more reward (rank correlation {value:+.2f} inside groups), and length {grows}"
    advice = "Is length what you want to pay for? A reward that does not see length, loss_type dr_grpo, a cap."
    rows = window.rows
    rewards = None if rows is None else rows.numbers("reward")
    best = () if rows is None or rewards is None else rows.ids(np.argsort(-np.nan_to_num(rewards), kind="stable")[:4])
    return Reading(level, value, threshold, message, advice, best)


DETECTORS = (
    Detector(
        "D04",
        "length change",
        length_change,
        ("metrics",),
        {
            "warn": Limit(1.5, "factor by which the mean length grew or shrank"),
            "alert": Limit(2.0, "the same, where the reward does not rise with it"),
            "z": Limit(3.0, "robust sigmas that the change must be as well"),
            "steps": Limit(50, "steps within which it happened"),
            "min_steps": Limit(20, "steps needed for a verdict"),
            "min_tokens": Limit(4, "smallest change in tokens"),
        },
        "Completions become much longer or much shorter in a short time.",
        "Median of the last 5 mean lengths against the median of the up to 45 before, as a factor and in robust sigmas "
        "(1.4826 x median absolute deviation); within the first 50 steps also against the median of the first 5, by "
        "the factor for ALERT. The slope of `reward` (t > 2) decides between WARN and ALERT.",
        "Longer without reward: loops (D11), `loss_type` dapo or dr_grpo, a soft overlong penalty. Shorter with more "
        "reward: a short cut? Read the shortest winners.",
        "rewardspy (|z| > 3); TRL pull request 3138 (runs that end in very long gibberish). Factors: ours.",
    ),
    Detector(
        "D05",
        "truncation",
        truncation,
        ("metrics",),
        {
            "warn": Limit(0.1, "share of completions that did not end by themselves"),
            "alert": Limit(0.5, "the same"),
        },
        "Answers are cut before they end. A cut answer usually gets no reward, whatever it was going to say.",
        "`completions/clipped_ratio`; from the rows, the mean reward of cut answers.",
        "Raise `max_completion_length`; check EOS and stop ids. `mask_truncated_completions` is disputed: DAPO masks, "
        "Skywork-OR1's ablation prefers not to.",
        "Thresholds: ours. A cap of 256 tokens with a reward of 0 makes a run that silently does nothing.",
    ),
    Detector(
        "D13",
        "reward follows length",
        length_reward,
        ("rollouts",),
        {
            "warn": Limit(0.5, "mean absolute rank correlation of reward and length"),
            "alert": Limit(0.75, "the same"),
            "inside": Limit(0.3, "the same among answers that are alike in both; below, it is only explained"),
            "steps": Limit(10, "rounds that it is averaged over"),
            "trend_steps": Limit(30, "steps over which length must move the same way"),
        },
        "Inside groups the reward goes up (or down) with length, and the policy follows.",
        "Mean over groups of Spearman's rho of reward and `n_trained`, averaged over rounds; its standard deviation by "
        "chance is 1/sqrt(groups x (G - 1)), 0.13 for 8 groups of 8. Fires only while the slope of the mean length has "
        "the same sign (|t| > 2). INFO where that is because right answers are long ones: a group is cut "
        "at the widest gap of its rewards and at that of its lengths, and inside the parts there is no correlation.",
        "A reward that does not see length, `loss_type` dr_grpo, a cap. If long answers are right because they think, "
        "this is no fault.",
        "Length explains much of the reward gain in RLHF (arXiv 2310.03716). Thresholds: ours.",
    ),
)
