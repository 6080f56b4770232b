"""Importance ratios and the sampler correction, by hand."""

import math

import pytest
import torch

from gruppo.algorithm.ratios import importance_ratio, sampler_correction

NAN = math.nan
TRAINED_NT = torch.tensor([[True, True, True], [True, True, False]])
RATIOS_NT = torch.tensor([[2.0, 0.5, 4.0], [0.25, 1.0, NAN]], dtype=torch.float64)
OLD_NT = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]], dtype=torch.float64)


def correct(mode, clip_min=None, clip_max=None, ratios_NT=RATIOS_NT):
    sampler_NT = OLD_NT - ratios_NT.log()
    return sampler_correction(OLD_NT, sampler_NT, TRAINED_NT, mode=mode, clip_min=clip_min, clip_max=clip_max)


def test_token_level_is_the_exponential_of_the_difference():
    ratio = importance_ratio(OLD_NT + RATIOS_NT.log(), OLD_NT, TRAINED_NT, "token")
    assert ratio.flatten().tolist() == pytest.approx([2, 0.5, 4, 0.25, 1, 1], rel=1e-12)


def test_sequence_level_is_the_geometric_mean_over_trained_tokens():
    ratio = importance_ratio(OLD_NT + RATIOS_NT.log(), OLD_NT, TRAINED_NT, "sequence")
    assert ratio.shape == (2, 1)
    assert ratio.flatten().tolist() == pytest.approx([4 ** (1 / 3), 0.5], rel=1e-12)


def test_rows_without_tokens_have_ratio_one():
    nothing_NT = torch.zeros(2, 3, dtype=torch.bool)
    for level in ("token", "sequence"):
        assert (importance_ratio(OLD_NT, RATIOS_NT, nothing_NT, level) == 1).all()
    for mode in ("token_mask", "sequence_mask"):
        ratio = sampler_correction(OLD_NT, RATIOS_NT, nothing_NT, mode=mode, clip_min=None, clip_max=3.0)
        assert (ratio == 1).all()


@pytest.mark.parametrize(
    ("mode", "clip_min", "clip_max", "expected"),
    [
        ("token_truncate", None, 3.0, [2, 0.5, 3, 0.25, 1, 1]),
        ("token_truncate", 0.4, 3.0, [2, 0.5, 3, 0.4, 1, 1]),
        ("token_mask", None, 3.0, [2, 0.5, 0, 0.25, 1, 1]),
        ("token_mask", 0.4, 3.0, [2, 0.5, 0, 0, 1, 1]),
        ("token_mask", 0.4, None, [2, 0.5, 4, 0, 1, 1]),
        ("sequence_truncate", None, 3.0, [3, 0.25]),  # products 4 and 0.25
        ("sequence_truncate", 0.5, None, [4, 0.5]),
        ("sequence_mask", None, 3.0, [0, 0.25]),
        ("sequence_mask", 0.5, 5.0, [4, 0]),
        ("sequence_mask", None, None, [4, 0.25]),
    ],
)
def test_sampler_correction_by_hand(mode, clip_min, clip_max, expected):
    assert correct(mode, clip_min, clip_max).flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_unknown_sampler_logprobs_mean_ratio_one():
    ratios_NT = torch.tensor([[2.0, NAN, 1.5], [NAN, NAN, NAN]], dtype=torch.float64)
    assert correct("token_mask", None, 3.0, ratios_NT).flatten().tolist() == pytest.approx([2, 1, 1.5, 1, 1, 1])
    assert correct("sequence_mask", None, 3.5, ratios_NT).flatten().tolist() == pytest.approx([3, 1])


def test_untrained_tokens_stay_at_one_when_the_bounds_exclude_it():
    assert correct("token_truncate", None, 0.5)[1, 2] == 1
    assert correct("token_mask", 2.0, None)[1, 2] == 1


def test_the_correction_carries_no_gradient():
    old_NT = OLD_NT.clone().requires_grad_()
    for mode in ("token_truncate", "sequence_mask"):
        assert not sampler_correction(old_NT, OLD_NT, TRAINED_NT, mode=mode, clip_min=None, clip_max=3.0).requires_grad


def test_unknown_names_are_our_mistake():
    with pytest.raises(AssertionError):
        importance_ratio(OLD_NT, OLD_NT, TRAINED_NT, "row")
    with pytest.raises(AssertionError):
        correct("token_drop")
    with pytest.raises(AssertionError):
        correct("row_mask")
