"""Check on time: steps that take much longer, fewer tokens per second, stale completions (D26)."""

from __future__ import annotations

import numpy as np

from gruppo.monitor.health.detector import Detector, Limit, Limits
from gruppo.monitor.health.finding import Missing, Reading
from gruppo.monitor.health.window import Window


def stall(window: Window, limits: Limits) -> Reading | Missing:
    """D26."""
    times = window.series("step_time", int(limits["steps"]))
    if "step_time" not in window.now.metrics:
        return Missing("needs the metric step_time")
    stale = _staleness(window)
    if stale > limits["stale"]:
        message = f"completions were sampled {stale:.0f} optimizer steps before they are used"
        return Reading("warn", stale, limits["stale"], message, "Synchronise weights more often.")
    if len(times) <= limits["min_steps"]:
        return Missing(f"needs {limits['min_steps'] + 1:.0f} steps, has {len(times)}", is_temporary=True)
    usual, now = float(np.median(times.values[:-1])), float(times.values[-1])
    value = now / max(usual, 1e-9)
    rates = window.series("perf/tokens_per_second", int(limits["steps"])).values
    rate_drop = float(np.median(rates[:-1])) / max(float(rates[-1]), 1e-9) if len(rates) > limits["min_steps"] else 1.0
    if max(now - usual, now - now / max(rate_drop, 1e-9)) < limits["seconds"]:
        return Reading("ok", min(value, limits["times"]), limits["times"])
    if value > limits["times"]:
        message = f"the step took {now:.1f} s, {value:.1f} times the median; {_phases(window)}"
    elif rate_drop > limits["times"]:
        value = rate_drop
        message = f"{rates[-1]:.0f} tokens per second, the median is {np.median(rates[:-1]):.0f}; {_phases(window)}"
    else:
        return Reading("ok", value, limits["times"])
    advice = "See which phase grew. Other jobs on the machine, longer completions (D04), slow rewards (D22)?"
    return Reading("warn", value, limits["times"], message, advice)


def _staleness(window: Window) -> float:
    """Steps done since the latest rows were sampled, when they were used first."""
    versions = None if window.rows is None else window.rows.numbers("policy_version")
    return 0.0 if versions is None else float(window.now.step - 1 - np.nanmin(versions))


def _phases(window: Window) -> str:
    """The longest phases, with what they usually take."""
    known = [(name, window.now.metrics[f"time/{name}"]) for name in window.names("time/")]
    top = sorted(known, key=lambda phase: -phase[1])[:3]
    usual = {name: float(np.median(window.series(f"time/{name}").values)) for name, _ in top}
    return ", ".join(f"{name} {seconds:.1f} s (usually {usual[name]:.1f})" for name, seconds in top)


DETECTORS = (
    Detector(
        "D26",
        "stalls and waste",
        stall,
        ("metrics",),
        {
            "times": Limit(3.0, "multiple of the median step time, or divisor of the median tokens per second"),
            "seconds": Limit(
                1.0, "seconds that the step must have lost as well: below, it is the noise of the machine"
            ),
            "steps": Limit(50, "steps of the median"),
            "min_steps": Limit(10, "steps needed for a verdict"),
            "stale": Limit(8, "optimizer steps between sampling and first use"),
        },
        "Steps take much longer than they did, or use completions of an old policy.",
        "`step_time` and `perf/tokens_per_second` against their medians; the step less `policy_version` of its rows.",
        "The message says where the time went, phase by phase.",
        "Ours.",
    ),
)
