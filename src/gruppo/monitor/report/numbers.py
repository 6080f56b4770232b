"""The few numbers that sum a run up: reward, held-out reward, lengths, speed. Pure functions of its lines.

"at the start" and "at the end" are means over up to 20 steps, because single steps are noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any, Literal, NamedTuple

Line = Mapping[str, Any]
Kind = Literal["number", "share", "seconds", "count"]

NUM_STEPS = 20
"""Steps at either end of the run that a mean is taken over; in a short run, half of it."""


class Number(NamedTuple):
    """One number about a run. `step`: where it was reached, for those that belong to one step."""

    name: str
    value: float
    kind: Kind = "number"
    step: int | None = None

    def text(self) -> str:
        """With its unit, and the step if it has one."""
        return shown(self.value, self.kind) + (f" (step {self.step})" if self.step is not None else "")


def headline(lines: Sequence[Line]) -> list[Number]:
    """The numbers of a run that its lines (`read_metrics(run, split=None)`) have something on, in order."""
    training = [line for line in lines if line["split"] == "train"]
    numbers = [Number("steps", float(training[-1]["step"]), "count")] if training else []
    numbers += _reward(training)
    for split in sorted({str(line["split"]) for line in lines} - {"train"}):
        numbers += _held_out(split, [line for line in lines if line["split"] == split])
    numbers += _ends("answer length", training, "completions/mean_length", "number")
    numbers += _ends("cut-off answers", training, "completions/clipped_ratio", "share")
    numbers += _ends("groups without a signal", training, "frac_reward_zero_std", "share")
    return numbers + _speed(training)


def values_of(lines: Sequence[Line], name: str) -> list[tuple[int, float]]:
    """(step, value) wherever the metric has a finite value."""
    pairs = [(line["step"], number(line.get(name))) for line in lines]
    return [(step, value) for step, value in pairs if value is not None]


def number(value: object) -> float | None:
    """A finite number as float, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def shown(value: float | None, kind: Kind = "number") -> str:
    """A number for people: four digits at most."""
    if value is None or not math.isfinite(value):
        return "–"
    if kind == "share":
        return f"{value:.1%}"
    if kind == "count":
        return f"{value:,.0f}"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text} s" if kind == "seconds" else text


def _reward(training: Sequence[Line]) -> list[Number]:
    pairs = values_of(training, "reward")
    if not pairs:
        return []
    step, best = max(pairs, key=lambda pair: (pair[1], -pair[0]))
    return [*_ends("reward", training, "reward", "number"), Number("reward, best step", best, step=step)]


def _held_out(split: str, lines: Sequence[Line]) -> list[Number]:
    pairs = values_of(lines, f"{split}_reward")
    if not pairs:
        return []
    last_step, last = pairs[-1]
    best_step, best = max(pairs, key=lambda pair: (pair[1], -pair[0]))
    name = f"{split} reward"
    return [Number(f"{name}, last", last, step=last_step), Number(f"{name}, best", best, step=best_step)]


def _ends(name: str, training: Sequence[Line], metric: str, kind: Kind) -> list[Number]:
    values = [value for _, value in values_of(training, metric)]
    if not values:
        return []
    size = min(NUM_STEPS, max(1, len(values) // 2))
    start, end = fmean(values[:size]), fmean(values[-size:])
    return [Number(f"{name}, at the start", start, kind), Number(f"{name}, at the end", end, kind)]


def _speed(training: Sequence[Line]) -> list[Number]:
    seconds = [value for _, value in values_of(training, "step_time")]
    tokens = [value for _, value in values_of(training, "perf/tokens_per_second")]
    numbers = [Number("step time, median", median(seconds), "seconds")] if seconds else []
    return numbers + ([Number("tokens per second, median", median(tokens))] if tokens else [])
