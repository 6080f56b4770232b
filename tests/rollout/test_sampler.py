"""The random numbers of a completion, and the draw from a distribution."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gruppo.errors import RolloutError
from gruppo.rollout.sampler import draw, row_uniforms
from gruppo.types import SamplingParams

SAMPLING = SamplingParams(max_tokens=8, seed=7, step=3)


def test_uniforms_are_a_pure_function_and_a_prefix_of_longer_ones() -> None:
    first = row_uniforms(SAMPLING, prompt_id=5, sample=2, num=8)
    assert first.dtype == np.float64
    assert np.array_equal(first, row_uniforms(SAMPLING, 5, 2, 8))
    assert np.array_equal(first, row_uniforms(SAMPLING, 5, 2, 100)[:8])
    assert ((first >= 0) & (first < 1)).all()


def test_uniforms_of_a_known_completion_never_change() -> None:
    """A changed stream would silently change every seeded run, and part the engines from each other."""
    expected = [0.46416905, 0.26997144, 0.02471695]
    assert row_uniforms(SAMPLING, 5, 2, 3).round(8).tolist() == expected


def test_every_part_of_the_key_counts() -> None:
    keys = [
        (SAMPLING, 5, 2),
        (replace(SAMPLING, seed=8), 5, 2),
        (replace(SAMPLING, step=4), 5, 2),
        (replace(SAMPLING, phase="eval"), 5, 2),
        (SAMPLING, 6, 2),
        (SAMPLING, 5, 3),
        (SAMPLING, 2, 5),
        (replace(SAMPLING, seed=3, step=7), 5, 2),
    ]
    starts = {row_uniforms(sampling, prompt_id, sample, 1)[0] for sampling, prompt_id, sample in keys}
    assert len(starts) == len(keys)


def test_streams_of_neighbours_do_not_overlap() -> None:
    streams = np.stack([row_uniforms(SAMPLING, prompt, sample, 50) for prompt in range(10) for sample in range(10)])
    assert len(np.unique(streams)) == streams.size


def test_draw_inverts_the_cdf() -> None:
    scores = torch.tensor([0.2, 0.5, 0.3]).log().expand(6, 3)
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-53], dtype=torch.float64)
    assert draw(scores, uniforms).tolist() == [0, 0, 1, 1, 2, 2]


def test_draw_never_takes_a_token_without_mass() -> None:
    scores = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]).expand(4, 5)
    uniforms = torch.tensor([0.0, 0.4999, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(scores, uniforms).tolist() == [1, 1, 3, 3]


def test_draw_from_a_large_flat_vocabulary_reaches_both_ends() -> None:
    scores = torch.zeros(2, 152_000)
    assert draw(scores, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [0, 151_999]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_draw_refuses_diverged_logits(bad: float) -> None:
    with pytest.raises(RolloutError, match="diverged"):
        draw(torch.tensor([[0.0, bad, 1.0]]), torch.tensor([0.5], dtype=torch.float64))


def test_draw_refuses_a_row_where_nothing_is_allowed() -> None:
    with pytest.raises(RolloutError, match="no token can be drawn"):
        draw(torch.full((1, 3), -torch.inf), torch.tensor([0.5], dtype=torch.float64))


def test_draws_follow_the_distribution() -> None:
    """Chi-square over a million draws from a skewed distribution of 50 tokens, one of them impossible."""
    torch.manual_seed(0)
    num = 1_000_000
    scores = torch.randn(50) * 2
    scores[13] = -torch.inf
    uniforms = torch.from_numpy(row_uniforms(SAMPLING, 0, 0, num))
    counts = torch.zeros(50, dtype=torch.float64)
    for chunk in uniforms.split(100_000):
        counts += torch.bincount(draw(scores.expand(len(chunk), 50), chunk), minlength=50)
    expected = torch.softmax(scores.double(), dim=0) * num
    assert counts[13] == 0
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    # 48 degrees of freedom: 99.9 % of true samplers stay below 84.
    assert chi_square < 84
