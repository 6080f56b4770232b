"""The few statistics that the checks need, on plain numpy arrays. Pure; NaN is not handled: leave it out before.

Sources: Spearman's rho with mean ranks for ties; ordinary least squares with the t value of its slope; the median
absolute deviation times 1.4826, which is sigma for normal data; CUSUM (Page 1954).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAD_TO_SIGMA = 1.4826

NORMAL_Q90 = 1.2816
"""The 90% quantile of the standard normal distribution."""


def robust_sigma(x: Floats) -> float:
    """1.4826 x the median absolute deviation."""
    return float(MAD_TO_SIGMA * np.median(np.abs(x - np.median(x)))) if len(x) else 0.0


def slope(x: Floats, y: Floats) -> tuple[float, float]:
    """(slope, t) of the least squares line; t is 0 for fewer than 3 points or a flat line, +-inf for a perfect one."""
    if len(x) < 3:
        return 0.0, 0.0
    centred = x - x.mean()
    spread = float(centred @ centred)
    if spread == 0.0:
        return 0.0, 0.0
    gain = float(centred @ (y - y.mean())) / spread
    residual = y - y.mean() - gain * centred
    noise = float(np.sqrt(residual @ residual / (len(x) - 2) / spread))
    scale = float(np.abs(y).max()) + 1e-300
    if abs(gain) * float(np.ptp(x)) < 1e-12 * scale:  # rounding, not a slope
        return 0.0, 0.0
    return gain, float(gain / noise) if noise > 0 else float(np.copysign(np.inf, gain))


def mean_ranks(x: Floats) -> Floats:
    """Ranks from 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(x: Floats, y: Floats) -> float | None:
    """Rank correlation; None where either side is constant or there are fewer than 3 points."""
    if len(x) < 3:
        return None
    a, b = mean_ranks(x), mean_ranks(y)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else None


def forecast_z(x: Floats, y: Floats, x_new: Floats, y_new: Floats) -> Floats:
    """How many sigmas new points are from the line through the old ones, uncertainty of the line included.

    All 0 where the old points lie exactly on a line, or are fewer than 4.
    """
    if len(x) < 4:
        return np.zeros(len(x_new))
    centred = x - x.mean()
    spread = float(centred @ centred)
    gain = float(centred @ y) / spread if spread else 0.0
    residual = y - y.mean() - gain * centred
    sigma = float(np.sqrt(residual @ residual / (len(x) - 2)))
    if sigma <= 1e-9 * (float(np.abs(y).max()) + 1e-300):
        return np.zeros(len(x_new))
    away = x_new - x.mean()
    return (y_new - y.mean() - gain * away) / (sigma * np.sqrt(1 + 1 / len(x) + (away**2 / spread if spread else 0.0)))


def cusum(z: Floats, slack: float) -> float:
    """The largest one-sided cumulative sum of standardised values, signed by its side; each value loses `slack`."""
    up = down = best = 0.0
    for value in z:
        up, down = max(0.0, up + float(value) - slack), max(0.0, down - float(value) - slack)
        best = max(best, up, down, key=abs) if up >= down else (-down if down > abs(best) else best)
    return best


def spike_z(x: Floats, floor: float) -> float:
    """How many sigmas the logarithm of the last value is above the median of those before it. All must be positive.

    Sigma is the largest of: the robust one of all, that of the upper half (its 90% quantile), and `floor`. Norms are
    skewed to the right even as logarithms, and a run that is quiet to a few per cent has no spikes.
    """
    if len(x) < 2:
        return 0.0
    before = np.log(x[:-1])
    middle = float(np.median(before))
    upper = (float(np.quantile(before, 0.9)) - middle) / NORMAL_Q90
    return (float(np.log(x[-1])) - middle) / max(robust_sigma(before), upper, floor)


def sum_z(gains: Floats, variances: Floats) -> float | None:
    """Sum of the gains over its standard deviation; None where they had no way to differ from 0."""
    total = float(np.sum(variances))
    return float(np.sum(gains)) / float(np.sqrt(total)) if total > 0 else None
