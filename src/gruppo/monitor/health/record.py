"""StepRecord and EvalRecord: one optimizer step, one evaluation, as the checks see them. Live and offline alike.

Live, NaN and infinity are floats; in metrics.jsonl they are null. Both become a name in `nonfinite`, so that the
same run gives the same records. From the rows of a step come further numbers (`row_signals`) that outlive them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gruppo.monitor.health.rows import REWARD, Rows
from gruppo.monitor.health.stats import Floats, spearman
from gruppo.monitor.health.words import PaidWord

NOT_METRICS = frozenset({"step", "split", "attempt", "time", "nonfinite"})

FOREIGN_LETTERS = 0.1
"""Share of letters in scripts foreign to the prompt from which a completion counts as switched (D24)."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step of training. `rows` is dropped once a later step is there."""

    step: int
    metrics: Mapping[str, float]
    """Finite metrics, and the signals of its rows under `rows/`."""
    nonfinite: frozenset[str] = frozenset()
    rows: Rows | None = None
    words: Mapping[str, PaidWord] | None = None
    """What its rows said about words (D25); None where they said nothing."""

    def without_rows(self) -> StepRecord:
        return replace(self, rows=None)


@dataclass(frozen=True, slots=True)
class EvalRecord:
    """One evaluation after `step` optimizer steps. `metrics` are named without the prefix of the split."""

    step: int
    split: str
    metrics: Mapping[str, float] = field(default_factory=dict)


Record = StepRecord | EvalRecord


def step_record(
    step: int,
    metrics: Mapping[str, Any],
    rows: Rows | None = None,
    weights: Mapping[str, float] | None = None,
    patterns: Sequence[str] = (),
) -> StepRecord:
    """The record of a step from a metrics line (or the dict that becomes one) and its rows.

    `weights`: reward function -> weight; 1 for functions that are not in it. `patterns`: `health_patterns`.
    """
    finite, nonfinite = _sorted_out(metrics)
    if rows is None or not len(rows):
        return StepRecord(step, finite, nonfinite)
    finite |= row_signals(rows, weights or {}, patterns)
    return StepRecord(step, finite, nonfinite, rows, rows.paid_words())


def eval_record(step: int, split: str, metrics: Mapping[str, Any]) -> EvalRecord:
    """The record of an evaluation; `metrics` as logged, with the prefix (`eval_reward`, ...)."""
    finite, _ = _sorted_out(metrics)
    return EvalRecord(step, split, {name.removeprefix(f"{split}_"): value for name, value in finite.items()})


def standard_error(records: Sequence[EvalRecord]) -> float:
    """Of the mean reward of one evaluation: the pooled std of them all over the square root of its samples.

    Pooled, because the std of one evaluation may be 0: where all answers were right, which does not make it exact.
    `records` are of one split, the latest last; its number of samples counts.
    """
    latest = records[-1].metrics
    num_samples = max(round(latest.get("runtime", 0.0) * latest.get("samples_per_second", 0.0)), 1)
    variances = [record.metrics.get("reward_std", 0.0) ** 2 for record in records]
    return math.sqrt(sum(variances) / len(variances) / num_samples)


def row_signals(rows: Rows, weights: Mapping[str, float], patterns: Sequence[str] = ()) -> dict[str, float]:
    """What later steps need to know about these rows.

    rows/reward_min, rows/reward_max, rows/term_max/<name>.
    rows/foreign: share of completions that left the prompt's scripts.
    rows/length_rho: mean within-group Spearman of reward and length; rows/length_rho_inside: see `_rho_inside`.
    rows/share/<name>: share of the within-group variance of the reward that comes from a term (they add up to 1).
    rows/trick_gain, rows/trick_variance: see `_trick_signals`; where a completion is on the watch-list (D25).
    """
    signals: dict[str, float] = {}
    rewards, lengths = rows.numbers("reward"), rows.numbers("n_trained")
    if rewards is not None:
        signals |= {"rows/reward_min": float(np.nanmin(rewards)), "rows/reward_max": float(np.nanmax(rewards))}
        signals |= _shares(rows, rewards, weights)
    for name in rows.reward_names:
        values = rows.numbers(REWARD + name)
        if values is not None:
            signals[f"rows/term_max/{name}"] = float(np.nanmax(values))
    if rewards is not None and lengths is not None:
        signals |= _length_signals([_both(rewards[group], lengths[group]) for group in rows.groups])
    signals |= _trick_signals(rows, rewards, list(rows.tricks(patterns)))
    foreign = rows.numbers("script_share")
    if foreign is not None:
        signals["rows/foreign"] = float(np.mean(np.nan_to_num(foreign) > FOREIGN_LETTERS))
    return signals


def _both(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    known = ~(np.isnan(x) | np.isnan(y))
    return x[known], y[known]


def _length_signals(groups: Sequence[tuple[Floats, Floats]]) -> dict[str, float]:
    """From (rewards, lengths) of each group."""
    whole = [rho for pair in groups if (rho := spearman(*pair)) is not None]
    inside = [rho for pair in groups for rho in _rho_inside(*pair) if rho is not None]
    signals = {"rows/length_rho": float(np.mean(whole))} if whole else {}
    # Where hardly any part has differences left, the few that have are odd ones.
    return signals | ({"rows/length_rho_inside": float(np.mean(inside))} if 2 * len(inside) >= len(groups) else {})


def _trick_signals(rows: Rows, rewards: Floats | None, found: Sequence[int]) -> dict[str, float]:
    """What tricks gain over their siblings, and the variance that this has if the reward does not know tricks.

    In a group of G with b tricks, the tricks' rewards less the group's mean add up to 0 on average over all ways to
    deal out the group's rewards, with variance b (G - b) / (G - 1) times the variance of the rewards.
    """
    if rewards is None or not found:
        return {}
    is_trick = np.zeros(len(rows), dtype=bool)
    is_trick[found] = True
    gain = variance = 0.0
    for group in rows.groups:
        scored = group[~np.isnan(rewards[group])]
        num, num_tricks = len(scored), int(is_trick[scored].sum())
        if 0 < num_tricks < num:
            centred = rewards[scored] - rewards[scored].mean()
            gain += float(centred[is_trick[scored]].sum())
            variance += num_tricks * (num - num_tricks) / (num - 1) * float(centred @ centred) / num
    return {"rows/trick_gain": gain, "rows/trick_variance": variance}


def _rho_inside(rewards: Floats, lengths: Floats) -> list[float | None]:
    """Spearman of reward and length among siblings that are much alike in both.

    Right answers may be long ones for good reasons (the ones that were worked out). So a group is cut at the widest
    gap of its rewards and at that of its lengths: inside the parts length says nothing about the reward any more,
    unless it is length that is paid for.
    """
    if len(rewards) < 3:
        return []
    parts = 2 * _is_above_widest_gap(rewards) + _is_above_widest_gap(lengths)
    return [spearman(rewards[parts == part], lengths[parts == part]) for part in range(4)]


def _is_above_widest_gap(x: Floats) -> NDArray[np.int64]:
    values = np.unique(x)
    edge = values[int(np.argmax(np.diff(values)))] if len(values) > 1 else values[0]
    return np.asarray(x > edge, dtype=np.int64)


def _shares(rows: Rows, rewards: Floats, weights: Mapping[str, float]) -> dict[str, float]:
    """s_k = cov(w_k r_k, r) / var(r) inside groups: what all siblings share is ignored by GRPO too."""
    total = 0.0
    # A term of weight 0 is only watched: it has no share to speak of.
    parts = {name: 0.0 for name in rows.reward_names if weights.get(name, 1.0) != 0.0}
    terms = {name: rows.numbers(REWARD + name) for name in parts}
    for group in rows.groups:
        r = rewards[group]
        scored = ~np.isnan(r)
        if not scored.any():
            continue
        centred = r[scored] - r[scored].mean()
        total += float(centred @ centred)
        for name, values in terms.items():
            if values is not None:
                parts[name] += weights.get(name, 1.0) * float(centred @ np.nan_to_num(values[group][scored]))
    if total <= 1e-12 * float(np.nanmax(np.abs(rewards))) ** 2:
        return {}
    return {f"rows/share/{name}": part / total for name, part in parts.items()}


def _sorted_out(metrics: Mapping[str, Any]) -> tuple[dict[str, float], frozenset[str]]:
    finite: dict[str, float] = {}
    nonfinite: set[str] = set()
    for name, value in metrics.items():
        if name in NOT_METRICS or isinstance(value, (str, bool)):
            continue
        if value is None or not math.isfinite(value):
            nonfinite.add(name)
        else:
            finite[name] = float(value)
    return finite, frozenset(nonfinite)
