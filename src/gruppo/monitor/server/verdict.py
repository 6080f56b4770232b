"""The verdict line: what a run's curves say in plain words. A pure function of columns; hints, not proof."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from gruppo.monitor.server.buckets import Floats

Level = Literal["ok", "info", "warn", "alert", "unknown"]

RANKS: dict[Level, int] = {"unknown": 0, "ok": 1, "info": 2, "warn": 3, "alert": 4}

MIN_STEPS = 10
NUM_STEPS = 20
"""Steps at either end of the run that are compared."""

CLEAR_Z = 3.0
"""Difference of the two means in standard errors from which it is called a change."""

CLEAR_FALL = 0.25
"""Share of the first reward that must be lost to call it a fall: of the held-out one whatever the training reward does,
and of the training reward at the very start of the run."""

NUM_FIRST, COLLAPSE_Z = 5, 6.0
"""A collapse: all of the first steps (at most so many) are above all later ones, whose mean they exceed by so many of
their standard deviations."""

FLAT_WARN = 0.5
"""Share of completions in groups without a difference from which it is worth a warning."""

SATURATION = {"D01": ("INFO", "WARN", "ALERT"), "D19": ("INFO", "WARN")}
"""Checks, with severities, that say no more than "solved" of a run that is so. D19's ALERT says that held-out
prompts disagree, and stands."""

SEVERITY_LEVELS: dict[str, Level] = {"INFO": "info", "WARN": "warn", "ALERT": "alert"}

STATE_FACTS: dict[str, tuple[Level, str]] = {
    "silent": (
        "warn",
        "The run has not ended, and has not written for {age}: it was killed, or a step takes very long.",
    ),
    "stalled": (
        "warn",
        "The process lives, but neither step nor phase has changed for long: it hangs, or a step takes very long.",
    ),
    "dead": ("alert", "The run has not ended, and its process has not given a sign of life for {age}: it was killed."),
    "failed": ("alert", "The run ended early: {outcome}."),
}

STATE_HEADS = {
    "silent": "Silent for {age}.",
    "stalled": "Stalled.",
    "dead": "Died {age} ago.",
    "failed": "Ended: {outcome}.",
}


class Fact(NamedTuple):
    """One sentence of the verdict. `head` is its short form for the verdict line, if it belongs there."""

    code: str
    level: Level
    text: str
    head: str = ""


def verdict(
    columns: Mapping[str, Floats],
    eval_rewards: Floats,
    findings: Sequence[Mapping[str, Any]],
    state: str,
    *,
    outcome: str | None = None,
    age: float | None = None,
) -> dict[str, Any]:
    """`level`, `text` and `facts`.

    Args:
        columns: `reward`, `frac_reward_zero_std` and `groups/frac_solved` over the steps of training, NaN for no value.
        eval_rewards: of the evaluations, oldest first.
        findings: the checks that stand (`detectors_of`, open ones).
        state, outcome, age: as in status.py; `age` is seconds since the last write.
    """
    reward = columns["reward"]
    held_out = _eval_fact(reward, eval_rewards)
    solved = _solved_fact(columns["groups/frac_solved"], held_out, has_ended=state == "finished")
    facts = [
        _state_fact(state, outcome, age),
        _reward_fact(reward, is_doubted=held_out is not None and held_out.level == "warn"),
        solved or _flat_fact(columns["frac_reward_zero_std"]),
        held_out if held_out is None or solved is None else _with_head(held_out, eval_rewards),
        _findings_fact([entry for entry in findings if solved is None or not _is_saturation(entry)]),
    ]
    known = [fact for fact in facts if fact is not None]
    level = max((fact.level for fact in known), key=RANKS.__getitem__, default="unknown")
    heads = [fact.head for fact in known if fact.head]
    return {
        "level": level,
        "text": " ".join(heads) or "Nothing was recorded yet.",
        "facts": [{"code": fact.code, "level": fact.level, "text": fact.text} for fact in known],
    }


def _state_fact(state: str, outcome: str | None, age: float | None) -> Fact | None:
    if state not in STATE_FACTS:
        return None
    level, pattern = STATE_FACTS[state]
    words = {"age": _duration(age), "outcome": outcome}
    return Fact(state, level, pattern.format(**words), STATE_HEADS[state].format(**words))


def _reward_fact(reward: Floats, *, is_doubted: bool) -> Fact | None:
    """`is_doubted`: held-out prompts say that a rise is no learning."""
    num_steps = len(reward)
    if not num_steps:
        return None
    values = reward[np.isfinite(reward)]
    if len(values) < MIN_STEPS:
        text = f"Too early to say: {_counted(len(values), 'step')} with a reward so far, {MIN_STEPS} are needed."
        return Fact("reward", "unknown", text, f"Too early to say ({_counted(num_steps, 'step')}).")
    size = min(NUM_STEPS, len(values) // 2)
    first, last = values[:size], values[-size:]
    before, after = float(first.mean()), float(last.mean())
    error = math.sqrt(float(first.var(ddof=1) + last.var(ddof=1)) / size)
    change = after - before
    is_clear = abs(change) > CLEAR_Z * error and abs(change) > 1e-9 * max(abs(before), abs(after))
    span = f"{_short(before)} (first {size} steps) to {_short(after)} (last {size} steps)"
    over = f"reward {_short(before)} → {_short(after)} over {num_steps} steps."
    start = _before_collapse(values)
    if start is not None:
        text = f"Reward fell within the first steps: from {_short(start)} to {_short(after)} (last {size} steps)."
        head = f"Collapsed at the start: reward {_short(start)} → {_short(after)} over {num_steps} steps."
        return Fact("reward", "warn", text, head)
    if not is_clear:
        return Fact("reward", "info", f"Reward did not clearly change: from {span}.", f"No clear change: {over}")
    if change > 0:
        word = "Reward rises" if is_doubted else "Learning"
        return Fact("reward", "ok", f"Reward rose from {span}.", f"{word}: {over}")
    return Fact("reward", "warn", f"Reward fell from {span}.", f"Getting worse: {over}")


def _before_collapse(values: Floats) -> float | None:
    """The mean reward of the first steps, if the run lost it there for good: too few steps for a mean of 20."""
    for num in range(1, NUM_FIRST + 1):
        first, rest = values[:num], values[num:]
        start, fall = float(first.mean()), float(first.mean() - rest.mean())
        is_apart = float(first.min()) > float(rest.max()) and fall > COLLAPSE_Z * float(rest.std())
        if is_apart and fall > CLEAR_FALL * abs(start):
            return start
    return None


def _flat_fact(shares: Floats) -> Fact | None:
    values = shares[-NUM_STEPS:]
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    share = float(values.mean())
    text = f"{share:.0%} of completions are in groups without a difference in reward: they teach nothing."
    return (
        Fact("zero_std", "warn", text, f"{share:.0%} of answers teach nothing.")
        if share > FLAT_WARN
        else Fact("zero_std", "ok", text)
    )


def _solved_fact(shares: Floats, held_out: Fact | None, *, has_ended: bool) -> Fact | None:
    """Of a run with most groups solved now, and few at the start: that it teaches nothing now is its success."""
    values = shares[np.isfinite(shares)]
    if len(values) < MIN_STEPS:
        return None
    size = min(NUM_STEPS, len(values) // 2)
    first, last = float(values[:size].mean()), float(values[-size:].mean())
    if first > FLAT_WARN or last <= FLAT_WARN:
        return None
    when, verb = ("At the end", "had") if has_ended else ("Now", "have")
    text = f"{when} {last:.0%} of groups {verb} only right answers: solved, as far as the reward can tell."
    if not has_ended:
        text += " What is left of the run will teach little: stop it, or give it harder prompts."
    if held_out is None:
        text += " Held-out prompts would tell it from a trick that always pays."
    level: Level = "ok" if has_ended and held_out is not None else "info"
    return Fact("solved", level, text, f"Solved: {last:.0%} of groups all right.")


def _is_saturation(finding: Mapping[str, Any]) -> bool:
    return finding.get("severity") in SATURATION.get(str(finding.get("detector")), ())


def _eval_fact(reward: Floats, evals: Floats) -> Fact | None:
    values = evals[np.isfinite(evals)]
    if len(values) < 2:
        return None
    best, last = float(values.max()), float(values[-1])
    text = f"Held-out reward: {_short(float(values[0]))} at first, {_short(best)} at best, {_short(last)} now."
    training = reward[np.isfinite(reward)]
    size = min(NUM_STEPS, len(training) // 2)
    rises = size >= MIN_STEPS // 2 and float(training[-size:].mean()) > float(training[:size].mean())
    fall = float(values[0]) - last
    if len(values) >= 3 and fall > 0 and rises:
        text += " Training reward rises while held-out reward falls."
        return Fact("eval", "warn", text, "Held-out reward falls.")
    if len(values) >= 3 and fall > CLEAR_FALL * abs(float(values[0])):
        return Fact("eval", "warn", text + " It is lower than before training.", "Held-out reward fell.")
    return Fact("eval", "ok", text)


def _with_head(held_out: Fact, evals: Floats) -> Fact:
    """Beside "solved" stands what held-out prompts say to it; what is wrong with them has its head already."""
    values = evals[np.isfinite(evals)]
    head = held_out.head or f"Held-out reward {_short(float(values[0]))} → {_short(float(values[-1]))}."
    return held_out._replace(head=head)


def _findings_fact(findings: Sequence[Mapping[str, Any]]) -> Fact | None:
    """`findings`: entries with detector, name and severity."""
    if not findings:
        return None
    levels = [SEVERITY_LEVELS.get(str(finding.get("severity")), "info") for finding in findings]
    level = max(levels, key=RANKS.__getitem__)
    names = ", ".join(f"{finding.get('detector')} {finding.get('name')}" for finding in findings)
    counted = [
        _counted(levels.count(kind), word)
        for kind, word in (("alert", "alert"), ("warn", "warning"), ("info", "note"))
        if kind in levels
    ]
    return Fact("findings", level, f"Open: {names}.", f"{', '.join(counted)}: {names}.")


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    for size, word in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return _counted(int(seconds // size), word)
    return _counted(int(seconds), "second")
