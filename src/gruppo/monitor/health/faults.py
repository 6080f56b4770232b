"""Check on the reward functions themselves: errors, abstentions, slowness, constants (D22)."""

from __future__ import annotations

from collections import Counter

import numpy as np

from gruppo.monitor.health.detector import Detector, Limit, Limits
from gruppo.monitor.health.finding import Missing, Reading
from gruppo.monitor.health.rows import Rows
from gruppo.monitor.health.window import Window

FAILURES = frozenset({"error", "timeout", "inf"})


def reward_faults(window: Window, limits: Limits) -> Reading | Missing:
    """D22."""
    rows = window.rows
    if rows is None or not rows.statuses:
        return Missing("needs the reward statuses of rollouts/")
    for found in (_failures(rows), _unscored(rows, limits), _slow(window, limits), _constant(window, limits)):
        if found is not None:
            return found
    return Reading("ok", 0.0, limits["unscored"])


def _failures(rows: Rows) -> Reading | None:
    """An exception, a timeout or an infinity is never right."""
    failed = [
        (name, status, row)
        for name, statuses in rows.statuses.items()
        for row, status in enumerate(statuses)
        if status in FAILURES
    ]
    if not failed:
        return None
    counts = Counter((name, status) for name, status, _ in failed)
    said = ", ".join(f"{name}: {status} on {count}" for (name, status), count in sorted(counts.items()))
    value = len({row for *_, row in failed}) / len(rows)
    advice = "The events of kind reward_fault and the rows say which input; call the function on one of them."
    evidence = rows.ids(dict.fromkeys(row for *_, row in failed))
    return Reading("alert", value, 0.0, f"{said} of {len(rows)} completions", advice, evidence, is_urgent=True)


def _unscored(rows: Rows, limits: Limits) -> Reading | None:
    """NaN, or no reward at all from any function."""
    table = list(rows.statuses.values())
    bad = [
        row
        for row in range(len(rows))
        if any(column[row] == "nan" for column in table) or all(column[row] in ("none", "nan") for column in table)
    ]
    value = len(bad) / len(rows)
    if value <= limits["unscored"]:
        return None
    message = f"{value:.0%} of completions have no reward: every function abstained, or gave NaN"
    advice = "They are left out of their groups. Return a number where there is an answer, None where there is not."
    return Reading("warn", value, limits["unscored"], message, advice, rows.ids(bad))


def _slow(window: Window, limits: Limits) -> Reading | None:
    seconds, step_time = window.value("time/score"), window.value("step_time")
    if seconds is None or step_time is None or step_time < limits["min_step_time"]:
        return None
    if seconds <= limits["seconds"] and seconds <= limits["share"] * step_time:
        return None
    message = f"rewards take {seconds:.1f} of {step_time:.1f} seconds of the step"
    return Reading("warn", seconds, limits["seconds"], message, "Make them async, batch them, or use a worker pool.")


def _constant(window: Window, limits: Limits) -> Reading | None:
    """A function that has given every completion of the run the same value."""
    for name in window.reward_names():
        means, stds = (window.series(f"rewards/{name}/{kind}").values for kind in ("mean", "std"))
        first = np.concatenate([window.start(f"rewards/{name}/mean"), means])
        is_still = len(stds) >= limits["constant_steps"] and not stds.any() and np.ptp(first) <= 1e-9 * abs(first[0])
        if is_still and not window.start(f"rewards/{name}/std").any():
            message = f"{name} gave {means[-1]:.4g} to every completion so far"
            advice = "A constant reward teaches nothing: does it read the right column, the right part of the answer?"
            return Reading("warn", float(len(stds)), limits["constant_steps"], message, advice)
    return None


DETECTORS = (
    Detector(
        "D22",
        "reward function faults",
        reward_faults,
        ("rollouts",),
        {
            "unscored": Limit(0.05, "share of completions without any reward, or with NaN"),
            "seconds": Limit(30.0, "seconds of scoring per step"),
            "share": Limit(0.5, "share of the step that scoring takes"),
            "min_step_time": Limit(1.0, "seconds of a step below which slowness is not looked at"),
            "constant_steps": Limit(10, "steps after which a function that never varied is called constant"),
        },
        "A reward function fails, abstains everywhere, takes too long, or always says the same.",
        "Statuses of the rows (`error`, `timeout`, `inf`: ALERT at once; `nan`, or `none` from all functions: a "
        "share); `time/score` against `step_time`; `rewards/<name>/std`. One function that abstains on some tasks is "
        "no fault.",
        "Call the function on the rows that are named; `gruppo check-reward` tries it on many kinds of answers.",
        "Silent zeros and hangs: verl issues 5635 and 6673, TRL issues 5281 and 6430. Thresholds: ours.",
    ),
)
