"""Checks on where the policy drifts: entropy down (D06) or up (D07), KL (D08), trainer against sampler (D10)."""

from __future__ import annotations

import math

import numpy as np

from gruppo.monitor.health.detector import Detector, Limit, Limits
from gruppo.monitor.health.finding import Missing, Reading, RowId, graded
from gruppo.monitor.health.stats import slope
from gruppo.monitor.health.window import Window

REWARD_ENDS = ("rows/reward_min", "rows/reward_max")
GAP, IS_MEAN = "sampling/sampling_logp_difference/mean", "sampling/importance_sampling_ratio/mean"


def entropy_collapse(window: Window, limits: Limits) -> Reading | Missing:
    """D06."""
    share = _entropy_share(window, limits)
    if isinstance(share, Missing):
        return share
    start, now = share
    value = now / start
    level, threshold = graded(-value, warn=-limits["warn"], alert=-limits["alert"])
    threshold = abs(threshold)
    if level == "ok" or _is_solved(window, limits) or slope(*window.series("reward", int(limits["steps"])))[1] > 2:
        return Reading("ok", value, threshold)
    message = f"entropy fell from {start:.3g} to {now:.3g} nats per token while the reward does not rise"
    advice = "epsilon_high=0.28, temperature 1.0, an entropy bonus (entropy_coef), a smaller learning rate."
    return Reading(level, value, threshold, message, advice)


def _is_solved(window: Window, limits: Limits) -> bool:
    """Whether low entropy is what success looks like here: most groups are solved, or the reward is near its top.

    A round in which every answer gets the same middling reward calls its groups solved; the run's own range knows
    better.
    """
    height = _height(window)
    if height is not None and height >= limits["top"]:
        return True
    return (window.value("groups/frac_solved") or 0.0) > limits["solved"] and (height is None or height > 0.5)


def _height(window: Window) -> float | None:
    """How far the mean reward has come from the lowest to the highest reward of the run, 0 to 1; None if unknown."""
    ends = [np.concatenate([window.start(name), window.series(name).values]) for name in REWARD_ENDS]
    if not all(map(len, ends)):
        return None
    low, high = float(ends[0].min()), float(ends[1].max())
    return (float(np.mean(window.series("reward", 5).values)) - low) / (high - low) if high > low else None


def entropy_explosion(window: Window, limits: Limits) -> Reading | Missing:
    """D07."""
    share = _entropy_share(window, limits)
    if isinstance(share, Missing):
        return share
    # A run that dissolves does so within its first steps, too: then only the very first one is the start.
    start, now = min(share[0], float(window.start("entropy")[0])), share[1]
    value = now / max(start, 1e-6)
    is_ruined = _is_ruined(window, limits)
    is_falling = is_ruined or slope(*window.series("reward", int(limits["steps"])))[1] < -2
    if value <= limits["times"] or not is_falling:
        return Reading("ok", value, limits["times"])
    message = f"entropy rose from {start:.3g} to {now:.3g} nats per token and the reward falls"
    advice = "The policy is dissolving: go back to an earlier checkpoint with a smaller learning rate."
    return Reading("alert" if is_ruined else "warn", value, limits["times"], message, advice, _unlikeliest(window))


def _is_ruined(window: Window, limits: Limits) -> bool:
    """Whether the reward is clearly below where the run began: its first 20 steps, or its very first one."""
    first, spread = window.start("reward"), window.start("reward_std")
    if not len(first):
        return False
    now = float(np.mean(window.series("reward", 5).values))
    noise = float(np.std(first)) / math.sqrt(5)
    return now < float(np.mean(first)) - 2 * noise or (
        len(spread) > 0 and now < float(first[0]) - limits["ruin"] * float(spread[0])
    )


def _entropy_share(window: Window, limits: Limits) -> tuple[float, float] | Missing:
    """(entropy at the start, entropy now), medians of the first steps and of the last 5."""
    entropies = window.series("entropy")
    if not len(entropies):
        return Missing("needs the metric entropy")
    first = window.start("entropy")
    if len(first) < limits["min_steps"]:
        return Missing(f"needs {limits['min_steps']:.0f} steps, has {len(first)}", is_temporary=True)
    start = float(np.median(first[:5]))
    if start <= 1e-6:
        return Missing("entropy was 0 from the start")
    return start, float(np.median(entropies.values[-5:]))


def _unlikeliest(window: Window) -> tuple[RowId, ...]:
    """The completions that the sampler found least likely per token."""
    logprobs = None if window.rows is None else window.rows.numbers("sampler_logprob_mean")
    if window.rows is None or logprobs is None:
        return ()
    return window.rows.ids(np.argsort(np.nan_to_num(logprobs), kind="stable")[:4])


def divergence(window: Window, limits: Limits) -> Reading | Missing:
    """D08."""
    if "kl" in window.now.nonfinite and len(window.series("kl")):
        advice = "Go back to the last checkpoint with a smaller learning rate."
        message = "kl is not a finite number"
        return Reading("alert", math.inf, limits["alert"], message, advice, is_urgent=True)
    value = window.value("kl")
    if value is None:
        return Missing("needs the metric kl: a reference, beta > 0")
    usual = float(np.median(window.series("kl", int(limits["steps"])).values))
    warn = max(limits["times"] * usual, limits["floor"])
    level, threshold = graded(value, warn=min(warn, limits["alert"]), alert=limits["alert"])
    message = f"KL to the reference is {value:.3g} nats per token; the median of the last steps is {usual:.3g}"
    advice = "A smaller learning rate, a larger beta (0.001 to 0.04), sync_ref_model; go back to a checkpoint."
    return Reading(level, value, threshold, message, advice)


def mismatch(window: Window, limits: Limits) -> Reading | Missing:
    """D10."""
    gap, ratio = window.value(GAP), window.value(IS_MEAN)
    if gap is None:
        return Missing("needs a sampler that reports log-probs")
    value = math.exp(min(gap, 50.0))
    level, threshold = graded(value, warn=limits["warn"], alert=limits["alert"])
    message = f"trainer and sampler disagree by a factor of {value:.3g} per token"
    if ratio is not None and not limits["ratio_low"] <= ratio <= limits["ratio_high"]:
        level = "alert"
        message += f", and the mean importance ratio is {ratio:.3g} instead of 1"
    advice = (
        "Does the sampler have the latest weights, the adapter, the same dtype, the same temperature? Truncated "
        "importance sampling (vllm_importance_sampling_correction) softens what remains."
    )
    return Reading(level, value, threshold, message, advice, _unlikeliest(window) if level != "ok" else ())


DETECTORS = (
    Detector(
        "D06",
        "entropy collapse",
        entropy_collapse,
        ("metrics",),
        {
            "warn": Limit(0.3, "entropy as a share of that of the first steps"),
            "alert": Limit(0.1, "the same"),
            "steps": Limit(50, "steps over which the reward must not rise"),
            "solved": Limit(0.5, "share of solved groups from which low entropy is what success looks like"),
            "top": Limit(0.75, "the same for the mean reward, between the lowest and the highest reward of the run"),
            "min_steps": Limit(5, "steps needed for a verdict"),
        },
        "The policy became sure of itself without getting better: it no longer explores.",
        "Median `entropy` of the last 5 steps over that of the first 5. Silent while `reward` rises (t > 2), most "
        "groups are solved (and the mean reward is in the upper half of the rewards that the run has seen) or the "
        "reward is near its top: most of the entropy normally goes in the first few hundred steps.",
        "`epsilon_high=0.28` (DAPO), temperature 1.0, an entropy bonus, a smaller learning rate.",
        "Reward and entropy trade off as R = -a exp(H) + b, and 73% of H is usually gone after 200 steps (arXiv "
        "2505.22617); hence the condition on the reward. Thresholds: ours.",
    ),
    Detector(
        "D07",
        "entropy explosion",
        entropy_explosion,
        ("metrics",),
        {
            "times": Limit(2.0, "entropy as a multiple of that of the first steps, or of the very first one"),
            "steps": Limit(50, "steps over which the reward falls"),
            "ruin": Limit(0.5, "fall below the first step's reward, in units of its `reward_std`, that counts as ruin"),
            "min_steps": Limit(5, "steps needed for a verdict"),
        },
        "The policy dissolves into noise: entropy up, reward down.",
        "Median `entropy` of the last 5 steps over that of the first 5 (or of the first one, if that is less), and a "
        "falling `reward` (t < -2) or one that is below where the run began; the latter is ALERT.",
        "Go back to an earlier checkpoint, with a smaller learning rate. Open the rows: is it gibberish (D12)?",
        "Ours.",
    ),
    Detector(
        "D08",
        "KL blow-up",
        divergence,
        ("metrics",),
        {
            "times": Limit(10.0, "multiple of the median that warns"),
            "steps": Limit(50, "steps of that median"),
            "floor": Limit(0.05, "nats per token below which nothing warns: KL begins at 0"),
            "alert": Limit(1.0, "nats per token"),
        },
        "The policy suddenly moves away from the reference.",
        "`kl` (estimated, nats per token) against its own median; ALERT at once if it is NaN or infinite. Without "
        "`beta` there is no reference and no such metric.",
        "A smaller learning rate, `beta` of 0.001 to 0.04, `sync_ref_model`; go back to a checkpoint.",
        "Runs usually stay near 5e-4 at first (logs in TRL issue 3452); ms-swift issue 6550 shows KL surging as "
        "rewards fall. Thresholds: ours.",
    ),
    Detector(
        "D10",
        "trainer and sampler disagree",
        mismatch,
        ("metrics",),
        {
            "warn": Limit(1.02, "exp of the mean absolute difference of log-probs"),
            "alert": Limit(1.1, "the same"),
            "ratio_low": Limit(0.5, "smallest mean importance ratio"),
            "ratio_high": Limit(2.0, "largest mean importance ratio"),
        },
        "The engine that samples and the model that learns give the same tokens different probabilities: training is "
        "off-policy without knowing it.",
        "exp(`sampling/sampling_logp_difference/mean`), and `sampling/importance_sampling_ratio/mean` outside its "
        "range (ALERT). By Jensen's inequality the first is a lower bound of the mean of exp|difference|.",
        "Stale weights, an adapter that was not merged, another dtype, temperature or top-p on one side only. Then "
        "truncated importance sampling.",
        "NeMo-RL: the mean of exp|difference| rising past 1.01 to 1.02 usually means that weight updates are wrong. "
        "verl: importance ratio outside 0.5 to 2. arXiv 2605.14220.",
    ),
)
