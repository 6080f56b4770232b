"""Checks on the text: loops (D11), gibberish (D12), copies of the prompt (D18), foreign scripts (D24)."""

from __future__ import annotations

import numpy as np

from gruppo.monitor.health.detector import Detector, Limit, Limits
from gruppo.monitor.health.finding import Missing, Reading, graded
from gruppo.monitor.health.record import FOREIGN_LETTERS
from gruppo.monitor.health.rows import Rows
from gruppo.monitor.health.stats import Floats
from gruppo.monitor.health.window import Window

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]

NO_ROLLOUTS = Missing("needs the completions of rollouts/")


def loops(window: Window, limits: Limits) -> Reading | Missing:
    """D11."""
    rows = window.rows
    if rows is None or rows.column("rep4_tail") is None:
        return NO_ROLLOUTS
    repetition, compression = (np.nan_to_num(_numbers(rows, name)) for name in ("rep4_tail", "zlib_tail"))
    is_loop = (repetition >= limits["repetition"]) | (compression >= limits["compression"])
    advice = "A repetition penalty in the reward, a soft overlong penalty; check that the end token is a stop token."
    return row_share(rows, is_loop, limits, "repeat themselves at the end", advice)


def gibberish(window: Window, limits: Limits) -> Reading | Missing:
    """D12."""
    rows = window.rows
    shares = None if rows is None else rows.numbers("gibberish_share")
    if rows is None or shares is None:
        return Missing("needs token ids and sampler log-probs (the column gibberish_share)")
    advice = "Check sampling (temperature, top_p, min_p) and whether trainer and sampler agree (D10)."
    return row_share(rows, np.nan_to_num(shares) > 0, limits, "hold tokens that are rare and were unlikely", advice)


def copying(window: Window, limits: Limits) -> Reading | Missing:
    """D18."""
    rows = window.rows
    if rows is None or rows.column("copy8") is None:
        return NO_ROLLOUTS
    is_copy = np.nan_to_num(_numbers(rows, "copy8")) > limits["copied"]
    return row_share(rows, is_copy, limits, "quote the prompt", "Does the reward search the whole text for its answer?")


def languages(window: Window, limits: Limits) -> Reading | Missing:
    """D24."""
    rows, first = window.rows, window.start("rows/foreign")
    if rows is None or rows.column("script_share") is None:
        return NO_ROLLOUTS
    if rows.numbers("script_share") is None:
        return Missing("prompts without letters, or completions with too few")
    if len(first) < limits["min_steps"]:
        return Missing(f"needs {limits['min_steps']:.0f} rounds, has {len(first)}", is_temporary=True)
    is_foreign = np.nan_to_num(_numbers(rows, "script_share")) > FOREIGN_LETTERS
    usual = float(np.median(first[: int(limits["min_steps"])]))
    lifted = {"warn": usual + limits["warn"], "alert": usual + limits["alert"]}
    advice = "Read them; a term of the reward can ask for the prompt's language (at some cost in accuracy)."
    what = f"left the script of their prompt ({usual:.0%} did at the start)"
    return row_share(rows, is_foreign, lifted, what, advice)


def _numbers(rows: Rows, name: str) -> Floats:
    values = rows.numbers(name)
    return np.full(len(rows), np.nan) if values is None else values


def row_share(rows: Rows, is_bad: Mask, limits: Limits, what: str, advice: str) -> Reading:
    """A reading of how many rows are bad, and whether the reward pays for them."""
    value, num_bad = float(is_bad.mean()), int(is_bad.sum())
    level, threshold = graded(value, warn=limits["warn"], alert=limits["alert"])
    if level == "ok":
        return Reading(level, value, threshold)
    message = f"{num_bad} of {len(rows)} completions ({value:.0%}) {what} (limit {threshold:.0%})"
    rewards = rows.numbers("reward")
    if rewards is not None and not np.isnan(rewards[is_bad]).all():
        theirs, mean = float(np.nanmean(rewards[is_bad])), float(np.nanmean(rewards))
        message += f"; their mean reward is {theirs:.3g}, of all {mean:.3g}"
        if theirs > mean:
            message += ": the reward pays for it"
    return Reading(level, value, threshold, message, advice, rows.ids(np.flatnonzero(is_bad)))


def share_limits(warn: float, alert: float) -> dict[str, Limit]:
    return {"warn": Limit(warn, "share of completions"), "alert": Limit(alert, "the same")}


DETECTORS = (
    Detector(
        "D11",
        "loops",
        loops,
        ("rollouts",),
        {
            **share_limits(0.02, 0.1),
            "repetition": Limit(0.6, "share of repeated 4-grams from which a completion loops"),
            "compression": Limit(8.0, "zlib ratio from which it does too"),
        },
        "Completions end in repetition.",
        "On the last half of each completion: share of 4-grams of words that occurred before in it, and how far zlib "
        "compresses it. Tails under 24 words say nothing; texts without spaces are counted by characters.",
        "A repetition penalty in the reward, a soft overlong penalty, a look at stop ids.",
        "Measured on English, code and templated maths of 500 to 12,000 characters: healthy tails have at most 0.29 "
        "and a zlib ratio of 5.4, loops at least 0.80. Published rules need 3,000 tokens (arXiv 2506.13585) or 10,000 "
        "characters (slime). Shares: ours.",
    ),
    Detector(
        "D12",
        "gibberish",
        gibberish,
        ("tokens",),
        share_limits(0.02, 0.1),
        "The sampler draws tokens that are rare everywhere and that it did not believe in.",
        "A completion counts if any token has an id in the last quarter of the vocabulary and a log-prob below "
        "-ln V - 2. Needs the column `gibberish_share`, which vocabularies under 4,096 do not have. A sampler that is "
        "flat altogether (temperature 3) draws nothing against its own odds: entropy and truncation (D05) show that.",
        "Check temperature, top_p, min_p; trainer against sampler (D10); open the rows.",
        "prime-rl pull request 1746, from arXiv 2510.02387, section 5.2. Shares: ours.",
    ),
    Detector(
        "D18",
        "prompt copying",
        copying,
        ("rollouts",),
        {
            **share_limits(0.1, 0.5),
            "copied": Limit(0.5, "share of 8-grams found in the prompt from which it is a copy"),
        },
        "Answers quote their prompt at length, perhaps because the checker finds its answer there.",
        "Share of the completion's 8-grams (words) that occur in the prompt.",
        "Let the checker look at the final answer only, not at the whole text.",
        "Ours.",
    ),
    Detector(
        "D24",
        "language switch",
        languages,
        ("rollouts",),
        {
            **share_limits(0.05, 0.3),
            "min_steps": Limit(5, "rounds at the start that say what is usual; the shares are counted above that"),
        },
        "Completions are written in a script that their prompt does not use.",
        f"Share of letters outside the prompt's Unicode scripts, above {FOREIGN_LETTERS:.0%}. Greek is left out "
        "(formulas); languages of one script are not told apart; prompts without letters say nothing.",
        "Read them. A language term in the reward helps, at a price.",
        "R1 rewarded the target language (arXiv 2501.12948); forcing one language cost 5.6 points on MATH500 (arXiv "
        "2507.15849). Thresholds: ours.",
    ),
)
