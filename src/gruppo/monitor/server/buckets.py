"""Thinning a series for a chart: neighbours go into buckets that keep mean, minimum and maximum. Pure functions.

A spike survives any thinning: the smallest minimum and the largest maximum are those of the series.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def bucketed(steps: Ints, series: Mapping[str, Floats], max_points: int) -> dict[str, Any]:
    """`steps`, `last_steps`, `series`: {name: {mean, min, max}} of at most `max_points` points, JSON values.

    All series have the length of `steps`; NaN means "no value" and counts nowhere. With one row per bucket `min`,
    `max` and `last_steps` are left out: they would repeat `mean` and `steps`.
    """
    num_rows = len(steps)
    bucket = max(1, math.ceil(num_rows / max_points))
    starts = np.arange(0, num_rows, bucket)
    answer: dict[str, Any] = {"num_rows": num_rows, "bucket": bucket, "steps": steps[starts].tolist()}
    if bucket > 1:
        answer["last_steps"] = steps[np.minimum(starts + bucket, num_rows) - 1].tolist()
    answer["series"] = {name: _points(values, starts, bucket) for name, values in series.items()}
    return answer


def _points(values: Floats, starts: Ints, bucket: int) -> dict[str, list[float | int | None]]:
    if bucket == 1 or not len(values):
        return {"mean": rounded(values)}
    known = np.isfinite(values)
    counts = np.add.reduceat(known.astype(np.int64), starts)
    smallest = np.minimum.reduceat(np.where(known, values, np.inf), starts)
    largest = np.maximum.reduceat(np.where(known, values, -np.inf), starts)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        means = np.add.reduceat(np.where(known, values, 0.0), starts) / counts
    # Rounding of the sum must not push a mean out of its bucket (nor to infinity).
    means = np.clip(means, smallest, largest, where=counts > 0, out=means)
    return {"mean": rounded(means), "min": rounded(smallest), "max": rounded(largest)}


def rounded(values: Floats) -> list[float | int | None]:
    """JSON numbers of six significant digits (whole numbers exactly); null for NaN and infinities."""
    return [_rounded(value) for value in values.tolist()]


def _rounded(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    if value == int(value) and abs(value) < 2**53:
        return int(value)
    return round(value, 2) if abs(value) >= 1e5 else float(f"{value:.6g}")
