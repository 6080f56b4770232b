"""Checks on reward terms: one drives all (D14), two go apart (D15), only the format improves (D16)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from gruppo.monitor.health.detector import Detector, Limit, Limits
from gruppo.monitor.health.finding import Missing, Reading, RowId, graded
from gruppo.monitor.health.rows import REWARD
from gruppo.monitor.health.stats import mean_ranks, slope
from gruppo.monitor.health.window import Window

GOLD = re.compile(r"accura|correct|exact|right|solv|answer|math|verif|pass|test|judge|gold", re.IGNORECASE)
"""Names of reward functions that measure what the run is for, unless `health_gold_rewards` names them."""

ONE_TERM = Missing("needs two or more reward functions")


def one_term(window: Window, limits: Limits) -> Reading | Missing:
    """D14."""
    if window.config.get("multi_objective_aggregation") == "normalize_then_sum":
        return Missing("normalize_then_sum gives every term the same weight")
    shares = {name: window.series(f"rows/share/{name}", int(limits["steps"])) for name in window.names("rows/share/")}
    if len(shares) < 2:
        return ONE_TERM
    means = {name: float(np.mean(series.values)) for name, series in shares.items()}
    suspects = {name: value for name, value in means.items() if name not in _gold(window, list(means))}
    if not suspects:
        return Reading("ok", 0.0, limits["warn"])
    name = max(suspects, key=lambda name: suspects[name])
    value = suspects[name]
    level, threshold = graded(value, warn=limits["warn"], alert=limits["alert"])
    others = ", ".join(f"{other} {share:.0%}" for other, share in means.items() if other != name)
    message = f"{name} gives {value:.0%} of the differences inside groups; {others}"
    advice = "Change reward_weights, let it count only where the answer is right, or normalize_then_sum."
    return Reading(level, value, threshold, message, advice, _disagreeing(window, [name, *means]))


def diverging(window: Window, limits: Limits) -> Reading | Missing:
    """D15."""
    names = window.reward_names()
    if len(names) < 2:
        return ONE_TERM
    series = {name: window.series(f"rewards/{name}/mean", int(limits["steps"])) for name in names}
    if min(map(len, series.values())) < limits["min_steps"]:
        return Missing(f"needs {limits['min_steps']:.0f} steps", is_temporary=True)
    trends = {name: slope(*points)[1] for name, points in series.items()}
    up, down = max(trends, key=lambda n: trends[n]), min(trends, key=lambda n: trends[n])
    value = min(trends[up], -trends[down])
    if value <= limits["t"]:
        return Reading("ok", value, limits["t"])
    message = f"{up} rises (t = {trends[up]:.1f}) while {down} falls (t = {trends[down]:.1f})"
    advice = "Open rows where they disagree. If one is bought with the other: weights, or a gate."
    return Reading("warn", value, limits["t"], message, advice, _disagreeing(window, [up, down]))


def format_only(window: Window, limits: Limits) -> Reading | Missing:
    """D16."""
    names = window.reward_names()
    gold = _gold(window, names)
    if not gold or len(gold) == len(names):
        return Missing("needs a reward for the answer and one for something else (see health_gold_rewards)")
    if len(window.series(f"rewards/{gold[0]}/mean")) < limits["min_steps"]:
        return Missing(f"needs {limits['min_steps']:.0f} steps", is_temporary=True)
    steps = int(limits["steps"])
    best = max(gold, key=lambda n: slope(*window.series(f"rewards/{n}/mean", steps))[1])
    t = slope(*window.series(f"rewards/{best}/mean", steps))[1]
    rivals = {n: slope(*window.series(f"rewards/{n}/mean", steps))[1] for n in names if n not in gold}
    rival = max(rivals, key=lambda n: rivals[n])
    is_learned = any(_is_at_top(window, name, limits["learned"]) for name in rivals)
    if abs(t) >= 2 or _is_at_top(window, best, limits["learned"]) or (rivals[rival] <= 2 and not is_learned):
        return Reading("ok", t, 2.0)
    message = f"{best} stands still (t = {t:.1f}) while {rival} is learned (t = {rivals[rival]:.1f})"
    advice = "Once a format is learned its reward only adds noise: lower its weight, or let it gate the answer's."
    return Reading("warn", t, 2.0, message, advice, _disagreeing(window, [rival, best]))


def _gold(window: Window, names: Sequence[str]) -> list[str]:
    named = window.config.get("health_gold_rewards")
    return [name for name in names if (name in named if named else GOLD.search(name))]


def _is_at_top(window: Window, name: str, share: float) -> bool:
    """Whether the mean of the last 5 steps is near the largest value that any completion got."""
    tops, means = window.series(f"rows/term_max/{name}").values, window.series(f"rewards/{name}/mean", 5).values
    return bool(len(tops) and len(means) and tops.max() > 0 and means.mean() >= share * tops.max())


def _disagreeing(window: Window, names: Sequence[str]) -> tuple[RowId, ...]:
    """The rows that the first term ranks high and the second one low."""
    if window.rows is None or len(names) < 2:
        return ()
    other = next((name for name in names[1:] if name != names[0]), names[0])
    high, low = (window.rows.numbers(REWARD + name) for name in (names[0], other))
    if high is None or low is None:
        return ()
    gap = mean_ranks(np.nan_to_num(high)) - mean_ranks(np.nan_to_num(low))
    return window.rows.ids(np.argsort(-gap, kind="stable")[:5])


DETECTORS = (
    Detector(
        "D14",
        "one term drives all",
        one_term,
        ("rollouts",),
        {
            "warn": Limit(0.8, "share of the within-group variance of the reward, for a term that is not the goal"),
            "alert": Limit(0.95, "the same"),
            "steps": Limit(10, "rounds that it is averaged over"),
        },
        "What separates siblings is nearly only one term, and not the one that the run is for.",
        "s_k = cov(w_k r_k, r) / var(r) inside groups. GRPO ignores what all siblings share, so a large mean is no "
        "weight. Terms named like a goal (accuracy, correct, exact, ...; or `health_gold_rewards`) are left out.",
        "Other `reward_weights`; let the term count only where the answer is right; "
        "`multi_objective_aggregation='normalize_then_sum'` (GDPO).",
        "rewardspy watches shares of the mean (0.75, 0.9). The within-group share and its thresholds: ours.",
    ),
    Detector(
        "D15",
        "terms go apart",
        diverging,
        ("metrics",),
        {
            "t": Limit(3.0, "|t| of both slopes"),
            "steps": Limit(50, "steps of the slopes"),
            "min_steps": Limit(20, "steps needed for a verdict"),
        },
        "One reward rises while another falls: one may be bought with the other.",
        "t values of the slopes of `rewards/<name>/mean`.",
        "Open the rows where they disagree most; weights, or a gate.",
        "NeMo-RL's notes on GDPO: components move together or stall. Thresholds: ours.",
    ),
    Detector(
        "D16",
        "only the format improves",
        format_only,
        ("metrics",),
        {
            "steps": Limit(100, "steps of the slopes"),
            "min_steps": Limit(50, "steps needed for a verdict"),
            "learned": Limit(0.95, "share of its best value from which a term is learned"),
        },
        "The easy term is learned, the one that matters stands still.",
        "|t| < 2 for the slope of the goal's mean, which is not near its best, while another term rises (t > 2) or is "
        "at its best. Which terms are the goal: see D14.",
        "Lower the weight of the learned term or let it gate the goal's; easier prompts, partial credit.",
        "TRL issue 3857 (format at 2.0, task at -3.0). Thresholds: ours.",
    ),
)
