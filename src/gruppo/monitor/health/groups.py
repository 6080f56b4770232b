"""Checks on groups: equal rewards (D01), equal answers (D17), rewards at the ceiling (D19)."""

from __future__ import annotations

import numpy as np

from gruppo.monitor.health.detector import Detector, Limit, Limits
from gruppo.monitor.health.finding import Missing, Reading, RowId, graded
from gruppo.monitor.health.record import standard_error
from gruppo.monitor.health.rows import Rows
from gruppo.monitor.health.stats import Floats
from gruppo.monitor.health.window import Window


def zero_variance(window: Window, limits: Limits) -> Reading | Missing:
    """D01."""
    solved, failed = window.value("groups/frac_solved"), window.value("groups/frac_failed")
    if solved is None or failed is None:
        return Missing("needs the metrics groups/frac_solved and groups/frac_failed")
    value = solved + failed
    level, threshold = graded(value, warn=limits["warn"], alert=limits["alert"])
    if level == "ok":
        return Reading(level, value, threshold)
    message = f"{value:.0%} of groups teach nothing: {failed:.0%} have no right answer, {solved:.0%} only right ones"
    if failed >= solved:
        advice = "Open failed groups. Check truncation (D05) and the reward; give partial credit or easier prompts."
    else:
        at_start = window.start("groups/frac_solved")[:5]
        level, threshold = ("warn" if np.median(at_start) > limits["warn"] else "info"), limits["warn"]
        advice = "Most prompts are solved: stop here, take harder ones, or leave out those with a high pass rate."
    return Reading(level, value, threshold, message, advice + _by_chance(window, value), _flat_rows(window.rows))


def _by_chance(window: Window, value: float) -> str:
    """A sentence where small groups alone explain it: p^G + (1-p)^G of groups are flat at pass rate p."""
    size, rewards = window.number("num_generations"), None if window.rows is None else window.rows.numbers("reward")
    if size is None or size > 4 or rewards is None:
        return ""
    rewards = rewards[~np.isnan(rewards)]
    if len(np.unique(rewards)) != 2:
        return ""
    rate = float((rewards == rewards.max()).mean())
    expected = rate**size + (1 - rate) ** size
    if value > expected + 0.15:
        return ""
    return (
        f" With num_generations={size:.0f} and {rate:.0%} right answers, {expected:.0%} of groups are equal by chance "
        "alone: raise num_generations."
    )


def _flat_rows(rows: Rows | None) -> tuple[RowId, ...]:
    if rows is None:
        return ()
    flat = sorted(rows.flat_groups, key=lambda group: group[1])  # failed ones first
    return rows.ids(int(group[0]) for group, _ in flat[:3])


def identical(window: Window, limits: Limits) -> Reading | Missing:
    """D17."""
    rows = window.rows
    twins = None if rows is None else rows.column("dup_of")
    if rows is None or twins is None:
        return Missing("needs the completions of rollouts/")
    is_early = window.now.step <= limits["early_steps"]
    is_twin = np.array([twin is not None for twin in twins])
    if not is_early:
        is_twin &= ~_is_good(rows)
    lengths = rows.numbers("n_trained")
    shares = [
        float(is_twin[group].sum()) / (len(group) - 1)
        for group in rows.groups
        if len(group) > 1 and (lengths is None or np.nanmean(lengths[group]) >= limits["min_tokens"])
    ]
    value = float(np.mean(shares)) if shares else 0.0
    level, threshold = graded(value, warn=limits["alert" if is_early else "warn"], alert=limits["alert"])
    message = f"{value:.0%} of the samples of a prompt repeat a sibling word for word"
    if is_early:
        advice = (
            f"At the start this is a fault of sampling: temperature is {window.number('temperature')}; look for top_k, "
            "top_p or do_sample that come from the model's generation_config."
        )
    else:
        message += ", and get a low reward"
        advice = "Siblings without difference teach nothing: raise temperature, look at entropy (D06) and prompts."
    return Reading(level, value, threshold, message, advice, rows.ids(np.flatnonzero(is_twin)), level == "alert")


def _is_good(rows: Rows) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Rows whose reward is above the middle of the step's rewards; where all are equal, above 0."""
    rewards = rows.numbers("reward")
    if rewards is None:
        return np.zeros(len(rows), dtype=bool)
    low, high = float(np.nanmin(rewards)), float(np.nanmax(rewards))
    return np.asarray(rewards > (0.0 if low == high else (low + high) / 2))


def ceiling(window: Window, limits: Limits) -> Reading | Missing:
    """D19."""
    rows = window.rows
    rewards = None if rows is None else rows.numbers("reward")
    if rows is None or rewards is None:
        return Missing("needs the rewards of rollouts/")
    seen = np.concatenate([window.start(f"rows/reward_{end}") for end in ("min", "max")])
    seen = np.concatenate([seen, *(window.series(f"rows/reward_{end}").values for end in ("min", "max"))])
    low, high = float(seen.min()), float(seen.max())
    if low == high:
        return Missing("all rewards of the run are equal so far", is_temporary=True)
    is_top = rewards >= high - 0.01 * (high - low)
    value = float(is_top.mean())
    if value <= limits["warn"]:
        return Reading("ok", value, limits["warn"])
    message = f"{value:.0%} of rewards are at the ceiling of {high:.4g}"
    evidence = rows.ids(np.flatnonzero(is_top))
    gaps = _held_out_gaps(window)
    if not len(gaps):
        advice = "Either the task is solved or the reward is fooled: evaluate on held-out data to know, open winners."
        return Reading("warn", value, limits["warn"], message, advice, evidence)
    if len(gaps) < 3:
        return Missing(f"needs 3 evaluations, has {len(gaps)}", is_temporary=True)
    gap = float(np.mean(gaps[-2:]))
    is_fooled = gap > limits["gap"] * (high - low) and gap > 2 * _error(window)
    advice = "Held-out data agrees: nothing is left to learn here."
    if is_fooled:
        advice = f"The held-out reward was {gap:.4g} lower at the same steps. Open winners and look for a trick."
    return Reading("alert" if is_fooled else "info", value, limits["warn"], message, advice, evidence)


def _error(window: Window) -> float:
    """Standard error of the latest evaluation."""
    return standard_error([record for record in window.evals if record.split == window.evals[-1].split][-3:])


def _held_out_gaps(window: Window) -> Floats:
    """Training reward less held-out reward at each evaluation of the latest split, training as it was then.

    A reward that rises fast is ahead of the last evaluation without any fault, hence "as it was then": the mean of
    the 5 steps up to the evaluation.
    """
    steps, rewards = window.series("reward")
    gaps = []
    for record in window.evals:
        near = rewards[(steps <= max(record.step, 1)) & (steps > record.step - 5)]
        if record.split == window.evals[-1].split and "reward" in record.metrics and len(near):
            gaps.append(float(near.mean()) - record.metrics["reward"])
    return np.array(gaps, dtype=np.float64)


DETECTORS = (
    Detector(
        "D01",
        "zero-variance groups",
        zero_variance,
        ("metrics",),
        {
            "warn": Limit(0.5, "share of groups whose rewards are all equal"),
            "alert": Limit(0.9, "the same, where failed groups are the larger part"),
        },
        "Most groups hold only equal rewards. Their advantages are 0: the step costs its full time and teaches little.",
        "`groups/frac_solved + groups/frac_failed`. For a binary reward with pass rate p, p^G + (1-p)^G of groups are "
        "equal by chance: with G=8 that is 0.66 at p=0.05, 0.17 at p=0.2, 0.008 at p=0.5; with G=2 it is 0.70 at "
        "p=0.18; the message says so where chance alone explains it (G of 4 or less). Mostly solved groups: WARN if "
        "they were so from the start, INFO if the run got there.",
        "Failed groups: open three of them, check truncation (D05) and the reward function, give partial credit, take "
        "easier prompts. Solved groups: filter prompts by pass rate. Small groups: raise `num_generations`.",
        "DAPO keeps only prompts with 0 < accuracy < 1 (arXiv 2503.14476). rewardspy alarms at 0.5; here that warns, "
        "since healthy runs on hard tasks pass it.",
    ),
    Detector(
        "D17",
        "identical completions",
        identical,
        ("rollouts",),
        {
            "warn": Limit(0.25, "mean share of a group's samples that repeat an earlier one and get a low reward"),
            "alert": Limit(0.75, "the same; fires at once"),
            "early_steps": Limit(3, "steps in which all repeats count, and only the second limit"),
            "min_tokens": Limit(4, "groups with a smaller mean length are left out: short answers repeat by nature"),
        },
        "The samples of one prompt are the same text, so there is nothing to compare.",
        "Per group: samples whose text (white space aside) an earlier sibling has, divided by G - 1; mean over groups. "
        "After the first steps only samples count whose reward is not above the middle of the step's rewards: "
        "agreement on a good answer is success.",
        "In the first steps: sampling is (nearly) greedy; look for `top_k`, `top_p`, `temperature` or `do_sample` that "
        "came from the model's generation_config. Later: temperature, entropy (D06), too small a set of prompts.",
        "TRL issue 5783 (near-greedy sampling through generation_config). Thresholds: ours.",
    ),
    Detector(
        "D19",
        "reward at the ceiling",
        ceiling,
        ("rollouts", "evals"),
        {
            "warn": Limit(0.8, "share of rewards at the ceiling"),
            "gap": Limit(
                0.1, "distance of the held-out reward, as a share of the range of rewards, that makes it ALERT"
            ),
        },
        "Nearly every completion gets the best reward that the run has seen. Either the task is solved, or the policy "
        "found something that always pays.",
        "Share of rewards within 1% of the largest (as a share of the range seen in the run). With three held-out "
        "evaluations: ALERT if the training reward of the 5 steps up to an evaluation was much higher (mean of the "
        "last two; more than 2 standard errors as well), else INFO. Without evaluations: WARN.",
        "Solved: harder prompts. Not solved: open winners, the odd ones first, and repair the reward.",
        "rewardspy (0.8). The comparison with held-out data: ours.",
    ),
)
