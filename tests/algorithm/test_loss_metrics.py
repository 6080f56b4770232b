"""RowStats -> TRL's per-micro-batch metrics, by hand, and however the rows were cut."""

import math
from dataclasses import fields

import pytest
import torch

from gruppo.algorithm.losses import LossSettings, RowStats, loss_metrics


def make_rows(**columns: list[float]) -> RowStats:
    size = len(next(iter(columns.values())))
    return RowStats(**{f.name: torch.tensor(columns.get(f.name, [0.0] * size)) for f in fields(RowStats)})


# Slice 0: rows 0, 1, 2 (3, 1, 0 tokens); slice 1: row 3 (2 tokens). The ids arrive mixed, as from two ranks.
ROWS = make_rows(
    num_tokens=[3.0, 2.0, 1.0, 0.0],
    policy_loss=[0.5, 0.25, -0.125, 0.0],
    entropy=[3.0, 1.0, 0.0, 0.0],
    kl=[1.0, 4.0, 3.0, 0.0],
    ratio_count=[3.0, 2.0, 1.0, 0.0],
    ratio_sum=[3.0, 2.5, 1.4, 0.0],
    ratio_max=[1.25, 1.5, 1.375, math.nan],
    clip_low=[1.0, 0.0, 1.0, 0.0],
    clip_high=[0.0, 1.0, 0.0, 0.0],
    cispo_clip=[2.0, 0.0, 1.0, 0.0],
    phi=[0.5, 0.75, 1.0, 1.0],
)
SLICES = torch.tensor([0, 1, 0, 0])


def test_clip_metrics_by_hand():
    metrics = loss_metrics(ROWS, SLICES, LossSettings(loss_type="grpo"))
    assert metrics.keys() == {
        "entropy",
        "ratio/mean",
        "ratio/max",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
        "clip_ratio/low_min",
        "clip_ratio/high_max",
    }
    assert metrics["entropy"] == [0.75, 0.5]
    assert metrics["ratio/mean"] == pytest.approx([1.1, 1.25])
    assert metrics["ratio/max"] == [1.375, 1.5]
    assert metrics["clip_ratio/low_mean"] == [0.5, 0.0]
    assert metrics["clip_ratio/high_mean"] == [0.0, 0.5]
    assert metrics["clip_ratio/region_mean"] == [0.5, 0.5]
    assert metrics["clip_ratio/low_min"] == pytest.approx([1 / 3, 0.0])  # the row without tokens has no say
    assert metrics["clip_ratio/high_max"] == [0.0, 0.5]


def test_other_losses_have_their_own_statistics():
    assert loss_metrics(ROWS, SLICES, LossSettings(loss_type="cispo"))["cispo_clip_ratio"] == [0.75, 0.0]
    assert loss_metrics(ROWS, SLICES, LossSettings(loss_type="vespo"))["vespo/phi_seq_mean"] == pytest.approx(
        [2.5 / 3, 0.75]
    )
    assert loss_metrics(ROWS, SLICES, LossSettings(loss_type="sapo")).keys() == {"entropy", "ratio/mean", "ratio/max"}


def test_kl_is_there_with_a_reference():
    assert loss_metrics(ROWS, SLICES, LossSettings(beta=0.1))["kl"] == [1.0, 2.0]


def test_policy_loss_is_there_with_a_bonus_and_undoes_the_window_where_the_weights_hold_it():
    def policy_losses(loss_type):
        return loss_metrics(
            ROWS, SLICES, LossSettings(loss_type=loss_type), num_slices_in_window=4, has_entropy_bonus=True
        )["policy_loss"]

    assert policy_losses("grpo") == [1.5, 1.0]
    assert policy_losses("dapo") == [0.375, 0.25]


def test_a_slice_without_tokens_has_means_of_zero_and_no_extremes():
    rows = make_rows(num_tokens=[0.0], ratio_max=[math.nan])
    metrics = loss_metrics(rows, torch.tensor([0]), LossSettings())
    assert metrics["entropy"] == metrics["clip_ratio/low_mean"] == metrics["ratio/mean"] == [0.0]
    assert math.isnan(metrics["clip_ratio/low_min"][0])
    assert math.isnan(metrics["ratio/max"][0])


def test_stack_and_cat_are_lossless():
    stacked = ROWS.stack()
    assert stacked.shape == (4, len(fields(RowStats)))
    halves = [RowStats.unstack(stacked[:1]), RowStats.unstack(stacked[1:])]
    torch.testing.assert_close(RowStats.cat(halves).stack(), stacked, rtol=0, atol=0, equal_nan=True)
