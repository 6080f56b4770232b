"""RowStats: what one forward leaves behind of each row, as sums; and how sums of all ranks become metrics.

Rows may have met in any forward on any rank. Because every field is a sum over the row's tokens (never a mean
over a forward), parts merge by concatenation, and TRL's per-micro-batch metrics come out the same however the
rows were cut. Not here: losses, gathering over ranks, averaging over steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Self

import torch
from torch import Tensor

ClipStatistics = Literal["region", "cispo", "phi", "none"]


@dataclass(frozen=True, slots=True)
class RowStats:
    """All fields are (N,), detached, in the loss's dtype. "Sum" is over the row's trained tokens."""

    num_tokens: Tensor
    loss: Tensor
    """The row's weighted share of everything; its sum over all rows of all ranks is the step's logged `loss`."""
    policy_loss: Tensor
    """The same without the entropy bonus."""
    entropy: Tensor
    """Sum."""
    num_active_tokens: Tensor
    """Tokens that the entropy bonus acts on: trained and, with `top_entropy_quantile`, of high entropy."""
    active_entropy: Tensor
    """Sum over active tokens; with the count it feeds `entropy.next_entropy_control`."""
    kl: Tensor
    """Sum, after the bias correction; 0 without a reference."""
    ratio_count: Tensor
    """How many ratios the row has: its tokens at token level, 1 at sequence level (even with no tokens)."""
    ratio_sum: Tensor
    """Sum of policy / old over the row's ratios, before any clip."""
    ratio_max: Tensor
    """Largest of the row's ratios; NaN if it has none."""
    clip_low: Tensor
    """How many of the row's ratios were clipped from below; 0 for losses without this statistic."""
    clip_high: Tensor
    cispo_clip: Tensor
    phi: Tensor
    """VESPO's weight of the row; 0 for other losses."""

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Rows of several forwards, in order."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def stack(self) -> Tensor:
        """(N, number of fields), so that ranks exchange rows in one gather. `unstack` is its inverse."""
        return torch.stack([getattr(self, f.name) for f in fields(self)], dim=1)

    @classmethod
    def unstack(cls, stacked: Tensor) -> Self:
        return cls(*stacked.unbind(dim=1))


def slice_metrics(
    rows: RowStats,
    slice_ids_N: Tensor,
    *,
    clip_statistics: ClipStatistics,
    has_kl: bool,
    policy_loss_scale: float | None,
) -> dict[str, list[float]]:
    """One value per slice (ascending slice id) under each metric name; see `losses.loss_metrics`."""
    ids = slice_ids_N.to("cpu")
    everything = rows.stack().detach().to("cpu", torch.float64)
    metrics: dict[str, list[float]] = {}
    for slice_id in ids.unique().tolist():
        part = RowStats.unstack(everything[ids == slice_id])
        values = _common(part) | CLIP_METRICS[clip_statistics](part)
        if has_kl:
            values["kl"] = _ratio(part.kl, part.num_tokens)
        if policy_loss_scale is not None:
            values["policy_loss"] = float(part.policy_loss.sum()) * policy_loss_scale
        for name, value in values.items():
            metrics.setdefault(name, []).append(value)
    return metrics


def _common(part: RowStats) -> dict[str, float]:
    return {
        "entropy": _ratio(part.entropy, part.num_tokens),
        "ratio/mean": _ratio(part.ratio_sum, part.ratio_count),
        "ratio/max": _extreme(part.ratio_max, torch.amax),
    }


def _region_clips(part: RowStats) -> dict[str, float]:
    # A ratio is clipped from below only if A < 0 and from above only if A > 0, so the two never meet in one token.
    return {
        "clip_ratio/low_mean": _ratio(part.clip_low, part.ratio_count),
        "clip_ratio/high_mean": _ratio(part.clip_high, part.ratio_count),
        "clip_ratio/region_mean": _ratio(part.clip_low + part.clip_high, part.ratio_count),
        "clip_ratio/low_min": _extreme(part.clip_low / part.ratio_count, torch.amin),
        "clip_ratio/high_max": _extreme(part.clip_high / part.ratio_count, torch.amax),
    }


CLIP_METRICS: dict[ClipStatistics, Callable[[RowStats], dict[str, float]]] = {
    "region": _region_clips,
    "cispo": lambda part: {"cispo_clip_ratio": _ratio(part.cispo_clip, part.ratio_count)},
    "phi": lambda part: {"vespo/phi_seq_mean": float(part.phi.mean())},
    "none": lambda part: {},
}


def _ratio(sums: Tensor, counts: Tensor) -> float:
    """Mean over all rows' tokens together; 0 where there are none, as in TRL."""
    return float(sums.sum() / counts.sum().clamp(min=1.0))


def _extreme(values: Tensor, pick: Callable[[Tensor], Tensor]) -> float:
    """Over rows; rows without tokens (NaN) are left out, NaN if no row is left."""
    known = values[~values.isnan()]
    return float(pick(known)) if known.numel() else math.nan
