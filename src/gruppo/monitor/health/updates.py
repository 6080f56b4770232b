"""Checks on the update itself: a loss of 0 (D02), no learning (D03), clipping (D09), gradient spikes (D23)."""

from __future__ import annotations

import numpy as np

from gruppo.monitor.health.detector import Detector, Limit, Limits
from gruppo.monitor.health.finding import Level, Missing, Reading, RowId, graded
from gruppo.monitor.health.stats import Floats, slope, spike_z
from gruppo.monitor.health.window import Window

CLIP_METRICS = ("clip_ratio/region_mean", "cispo_clip_ratio")


def zero_loss(window: Window, limits: Limits) -> Reading | Missing:
    """D02."""
    loss, grad_norm = window.value("loss"), window.value("grad_norm")
    if loss is None or grad_norm is None:
        return Missing("needs the metrics loss and grad_norm")
    is_expected = window.number("beta") in (None, 0.0) and window.number("num_iterations") in (None, 1.0)
    if not (is_expected and abs(loss) < limits["loss"] and grad_norm > limits["grad_norm"]):
        return Reading("ok", abs(loss), limits["loss"])
    message = f"the loss is {loss:.1g} and that is right: on-policy it is the mean of advantages that sum to 0"
    advice = f"The gradient is not 0 (norm {grad_norm:.3g}). Watch reward and grad_norm; clip_ratio is 0 here too."
    return Reading("info", abs(loss), limits["loss"], message, advice, is_urgent=True)


def no_learning(window: Window, limits: Limits) -> Reading | Missing:
    """D03."""
    rewards = window.series("reward", int(limits["steps"]))
    if len(rewards) < limits["min_steps"]:
        return Missing(f"needs {limits['min_steps']:.0f} steps, has {len(rewards)}", is_temporary=True)
    norms = window.series("grad_norm", len(rewards)).values
    solved, failed = (window.series(f"groups/frac_{kind}", len(rewards)).values for kind in ("solved", "failed"))
    flat = float(np.mean(solved) + np.mean(failed)) if len(solved) and len(failed) else 0.0
    typical = float(np.median(norms)) if len(norms) else float("nan")
    t = slope(*rewards)[1]
    has_no_gradient = typical < limits["grad_norm"] or flat > limits["flat"]
    is_solved = len(solved) > 0 and float(np.mean(solved)) > 0.5
    if abs(t) >= 2 or is_solved or not has_no_gradient:
        return Reading("ok", typical, limits["grad_norm"])
    message = f"no gradient reached the model for {len(rewards)} steps: grad_norm {typical:.1g}, reward stands still"
    advice = (
        f"{flat:.0%} of groups have equal rewards (D01); learning rate {window.value('learning_rate') or 0:.1g}; "
        f"{window.value('completions/clipped_ratio') or 0:.0%} of completions were cut. Are all parameters frozen?"
    )
    return Reading("alert", typical, limits["grad_norm"], message, advice)


def clipping(window: Window, limits: Limits) -> Reading | Missing:
    """D09."""
    known = [(name, window.value(name)) for name in CLIP_METRICS]
    values = [(value, name) for name, value in known if value is not None]
    if not values:
        return Missing("needs a loss that clips: " + " or ".join(CLIP_METRICS))
    value, name = max(values)
    kind, unit = ("sequence_", "sequences") if _is_by_sequence(window) else ("", "tokens")
    level, threshold = graded(value, warn=limits[f"{kind}warn"], alert=limits[f"{kind}alert"])
    message = f"{value:.0%} of {unit} are clipped ({name}): the policy moves further per round than the loss allows"
    advice = "Fewer num_iterations or steps_per_generation, a smaller learning rate."
    return Reading(level, value, threshold, message, advice)


def _is_by_sequence(window: Window) -> bool:
    return window.config.get("importance_sampling_level") == "sequence"


def gradient_spike(window: Window, limits: Limits) -> Reading | Missing:
    """D23."""
    if "grad_norm" in window.now.nonfinite or "loss" in window.now.nonfinite:
        advice = "Lower the learning rate, use bf16 or float32 instead of fp16, go back to the last checkpoint."
        message = "loss or grad_norm is not a finite number"
        return Reading("alert", float("inf"), limits["z"], message, advice, _loudest(window), is_urgent=True)
    latest = window.value("grad_norm")
    if latest is None:
        return Missing("needs the metric grad_norm")
    if latest <= 0:
        return Missing("no gradient at this step", is_temporary=True)
    norms = window.series("grad_norm").values
    norms = norms[norms > 0][-int(limits["steps"]) - 1 :]
    if len(norms) <= limits["min_steps"]:
        needed = limits["min_steps"] + 1
        return Missing(f"needs {needed:.0f} steps with a gradient, has {len(norms)}", is_temporary=True)
    z, typical = spike_z(norms, limits["floor"]), float(np.median(norms[:-1]))
    if z <= limits["z"] or latest < limits["min_times"] * typical:
        return Reading("ok", z, limits["z"])
    is_huge = latest > limits["times"] * typical
    is_first = is_huge and not _had_huge(norms[:-1], limits)
    message = f"grad_norm {latest:.3g} is {latest / typical:.3g} times its median of {typical:.3g} ({z:.1f} sigma)"
    advice = "Look at the rows with the largest advantages; lower max_grad_norm or the learning rate."
    if is_first:
        message += ", for the first time"
        advice = "One such step does little, as max_grad_norm and Adam bound it. It warns if there is another one."
    level: Level = "info" if is_first else "warn"
    return Reading(level, z, limits["z"], message, advice, _loudest(window), is_urgent=is_huge)


def _had_huge(norms: Floats, limits: Limits) -> bool:
    """Whether one of these was huge beside the median of those before it."""
    first = int(limits["min_steps"])
    return any(norms[i] > limits["times"] * np.median(norms[:i]) for i in range(first, len(norms)))


def _loudest(window: Window) -> tuple[RowId, ...]:
    """The rows with the largest advantages."""
    advantages = None if window.rows is None else window.rows.numbers("advantage")
    if window.rows is None or advantages is None:
        return ()
    return window.rows.ids(np.argsort(-np.abs(np.nan_to_num(advantages)), kind="stable")[:4])


DETECTORS = (
    Detector(
        "D02",
        "loss of 0",
        zero_loss,
        ("metrics",),
        {
            "loss": Limit(1e-6, "largest absolute loss that counts as 0"),
            "grad_norm": Limit(1e-8, "smallest gradient norm that counts as a gradient"),
        },
        "Not a fault: an explanation, given once. On-policy every ratio is 1, so the loss is the mean of advantages "
        "that sum to 0. Its gradient is not 0.",
        "|loss| is below the limit while grad_norm is not, with `beta=0` and `num_iterations=1`.",
        "Nothing. Watch `reward` and `grad_norm`. `clip_ratio` is 0 for the same reason.",
        "Algebra; TRL issues 2703, 3452, 3120 and open-r1 issue 239 ask about it.",
        fire=(1, 1),
    ),
    Detector(
        "D03",
        "no learning",
        no_learning,
        ("metrics",),
        {
            "steps": Limit(100, "steps looked at"),
            "min_steps": Limit(30, "steps needed for a verdict"),
            "grad_norm": Limit(1e-8, "median gradient norm below which there is no gradient"),
            "flat": Limit(0.9, "mean share of zero-variance groups above which there is none either"),
        },
        "The reward stands still and no gradient reaches the model: the run burns time.",
        "|t| < 2 for the slope of `reward`, and a median `grad_norm` below its limit or a mean share of zero-variance "
        "groups above its limit. Silent where most groups are solved (D01 says so).",
        "Check frozen parameters, learning rate, zero-variance groups (D01), and `mask_truncated_completions` together "
        "with truncation (D05).",
        "TRL issue 3857. Thresholds: ours.",
    ),
    Detector(
        "D09",
        "clipping",
        clipping,
        ("metrics",),
        {
            "warn": Limit(0.1, "share of tokens that are clipped"),
            "alert": Limit(0.3, "the same"),
            "sequence_warn": Limit(0.3, "share of sequences, with `importance_sampling_level='sequence'`"),
            "sequence_alert": Limit(0.6, "the same"),
        },
        "A large share of tokens has a probability ratio outside the trust region: they give no gradient.",
        "`clip_ratio/region_mean`, or `cispo_clip_ratio`.",
        "Fewer `num_iterations` or `steps_per_generation`, a smaller learning rate.",
        "TRL issue 2980 (rising with grad_norm before a collapse). GSPO's paper (arXiv 2507.18071) finds two orders of "
        "magnitude more tokens clipped at sequence level, without harm. Healthy trainings here clip 2% at most. "
        "Thresholds: ours.",
    ),
    Detector(
        "D23",
        "gradient spikes",
        gradient_spike,
        ("metrics",),
        {
            "z": Limit(3.5, "sigmas of log grad_norm above its median"),
            "floor": Limit(0.2, "smallest sigma of log grad_norm: about 20% from step to step"),
            "steps": Limit(50, "steps with a gradient that it is compared with"),
            "min_times": Limit(2.0, "multiple of the median below which a step is no spike, however quiet the run"),
            "times": Limit(20.0, "multiple of the median from which one step is explained (INFO), and a second warns"),
            "min_steps": Limit(20, "steps with a gradient needed for a verdict"),
        },
        "The gradient is much larger than usual, again and again, or is not a number.",
        "Robust z of log `grad_norm` against the steps before: its distance from their median, over the largest of "
        "1.4826 MAD, the sigma of their upper half (90% quantile less median, over 1.2816), the floor. Norms are "
        "skewed and grow tails as a run saturates: few groups then give a gradient, each from one rare answer. Steps "
        "without a gradient (all groups flat) are left out. A norm above 20 times the median is INFO if there was "
        "none like it in the 50 steps before, and else WARN at once. ALERT at once if `grad_norm` or `loss` is NaN or "
        "infinite.",
        "Open the rows with the largest advantages. Lower `max_grad_norm` or the learning rate. After NaN: go back to "
        "the last checkpoint.",
        "3.5 for robust z: Iglewicz and Hoaglin 1993. ZClip (arXiv 2504.02507) takes mean and deviation of the norms "
        "themselves and 2.5; on healthy runs here that counts the tail. TRL issue 2980.",
    ),
)
