"""The eight curves of a report, those of the monitor page's overview, as data. svg.py and picture.py draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gruppo.monitor.report.numbers import Kind, Line, number, values_of
from gruppo.monitor.server.buckets import Floats, bucketed

MAX_POINTS = 300
"""Of one curve; more steps are thinned to the mean, minimum and maximum of neighbours."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart. None is a gap; `low` and `high` are empty where nothing was thinned."""

    label: str
    steps: list[int]
    values: list[float | None]
    low: list[float | None]
    high: list[float | None]
    is_sparse: bool = False
    """Single measurements, drawn with dots."""

    def finite(self) -> list[float]:
        return [value for values in (self.values, self.low, self.high) for value in values if value is not None]

    def last(self) -> float | None:
        return next((value for value in reversed(self.values) if value is not None), None)


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart: what it shows in words, its lines (none: it says `empty`), how its axis reads."""

    title: str
    note: str
    series: tuple[Series, ...]
    kind: Kind
    empty: str
    floor: float | None
    """The axis begins here or below."""


CHARTS: tuple[tuple[str, str, Mapping[str, str], Kind], ...] = (
    ("Reward", "Weighted sum of the reward functions, mean of the step.", {"reward": "reward"}, "number"),
    ("Held-out reward", "On prompts that are not trained on. Falling while the reward rises: the reward is gamed.",
     {}, "number"),
    ("Groups without a signal", "Answers whose group has equal rewards teach nothing.",
     {"frac_reward_zero_std": "no difference", "groups/frac_solved": "all solved", "groups/frac_failed": "all failed"},
     "share"),
    ("Answer length", "Tokens that the model made.",
     {"completions/mean_length": "mean", "completions/max_length": "longest"}, "number"),
    ("Cut-off answers", "Answers that hit max_completion_length.", {"completions/clipped_ratio": "cut off"}, "share"),
    ("Entropy", "How undecided the policy is, nats per token.", {"entropy": "entropy"}, "number"),
    ("Drift", "KL to the reference (with beta); gap between sampler and trainer log-probs. Both should stay small.",
     {"kl": "KL", "sampling/sampling_logp_difference/mean": "sampler gap"}, "number"),
    ("Gradient norm", "Before clipping.", {"grad_norm": "gradient norm"}, "number"),
)  # fmt: skip
"""Title, what it means, metric -> its label, unit. No metric: the reward of each evaluation split."""

FREE_AXES = frozenset({"Reward", "Held-out reward"})
"""Whose values may be anything; the axes of the others begin at 0."""

NOT_RECORDED = "Not recorded in this run."
NO_EVALUATION = "No evaluation. eval_dataset and eval_steps would tell whether the gain is real."


def charts_of(lines: Sequence[Line]) -> list[Chart]:
    """The eight charts of a run's lines (all splits)."""
    training = [line for line in lines if line["split"] == "train"]
    charts = []
    for title, note, labels, kind in CHARTS:
        series = _of_training(training, labels) if labels else _of_evaluations(lines)
        empty = NOT_RECORDED if labels else NO_EVALUATION
        charts.append(Chart(title, note, series, kind, empty, None if title in FREE_AXES else 0.0))
    return charts


def extent_of(charts: Sequence[Chart]) -> tuple[int, int]:
    """First and last step of all charts, so that they line up; (0, 0) if nothing was recorded."""
    steps = [step for chart in charts for series in chart.series for step in series.steps]
    return (min(steps), max(steps)) if steps else (0, 0)


def _of_training(training: Sequence[Line], labels: Mapping[str, str]) -> tuple[Series, ...]:
    columns = {name: _column(training, name) for name in labels}
    known = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    if not known:
        return ()
    steps = np.array([line["step"] for line in training], dtype=np.int64)
    thinned = bucketed(steps, known, MAX_POINTS)
    return tuple(_series(labels[name], thinned["steps"], thinned["series"][name]) for name in known)


def _column(training: Sequence[Line], name: str) -> Floats:
    values = [number(line.get(name)) for line in training]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _series(label: str, steps: list[int], parts: Mapping[str, Any]) -> Series:
    return Series(label, steps, parts["mean"], parts.get("min", []), parts.get("max", []))


def _of_evaluations(lines: Sequence[Line]) -> tuple[Series, ...]:
    series = []
    for split in sorted({str(line["split"]) for line in lines} - {"train"}):
        pairs = values_of([line for line in lines if line["split"] == split], f"{split}_reward")
        if pairs:
            values: list[float | None] = [value for _, value in pairs]
            series.append(Series(split, [step for step, _ in pairs], values, [], [], is_sparse=True))
    return tuple(series)
