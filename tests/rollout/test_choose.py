"""From logits to tokens: transformers' own processors are the oracle, ties and all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.generation import logits_process

from gruppo.errors import RolloutError
from gruppo.rollout.choose import choose, choose_direct
from gruppo.rollout.sampler import draw, draw_blockwise, row_uniforms
from gruppo.rollout.settings import RolloutSettings, foreign_kwargs, settings_of
from gruppo.types import SamplingParams

SETTINGS = settings_of(SamplingParams(max_tokens=8, temperature=0.7))


def uniforms(num: int) -> torch.Tensor:
    return torch.from_numpy(row_uniforms(SamplingParams(8, seed=5), 0, 0, num))


def warped(logits_NV: torch.Tensor, settings: RolloutSettings, history_NT: torch.Tensor) -> torch.Tensor:
    """transformers' scores, in transformers' order."""
    chain: list[Any] = []
    if settings.repetition_penalty != 1.0:
        chain.append(logits_process.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    chain.append(logits_process.TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        chain.append(logits_process.TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        chain.append(logits_process.TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        chain.append(logits_process.MinPLogitsWarper(settings.min_p))
    for processor in chain:
        logits_NV = processor(history_NT, logits_NV)
    return logits_NV


@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 5000},
        {"top_p": 0.3},
        {"top_p": 0.95},
        {"min_p": 0.1},
        {"repetition_penalty": 1.8},
        {"top_k": 90, "top_p": 0.8, "min_p": 0.02, "repetition_penalty": 1.3},
    ],
)
def test_draws_are_those_from_transformers_scores(change: dict[str, Any], spread: float) -> None:
    """Peaked and flat distributions over a vocabulary that is no multiple of a block."""
    settings = replace(SETTINGS, **change)
    torch.manual_seed(0)
    logits_NV = torch.randn(300, 3001) * spread
    history_NT = torch.randint(3001, (300, 40))
    scores_NV = warped(logits_NV.clone(), settings, history_NT)
    choice = choose(logits_NV.clone(), uniforms(300), settings, history_NT)
    expected_N = draw(scores_NV, uniforms(300))
    # A float32 cumulative sum decides transformers' top-p edge; ours is float64. At most the edge token may differ.
    assert (choice.tokens_N != expected_N).sum() <= (1 if settings.top_p < 1 else 0)
    same = choice.tokens_N == expected_N
    policy_NV = torch.log_softmax(logits_NV / 0.7, dim=-1)
    torch.testing.assert_close(choice.logprobs_N, policy_NV.gather(1, choice.tokens_N[:, None])[:, 0])
    sampler_N = torch.log_softmax(scores_NV, dim=-1).gather(1, expected_N[:, None])[:, 0]
    torch.testing.assert_close(choice.sampled_logprobs_N[same], sampler_N[same], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "change", [{"top_k": 3}, {"top_p": 0.5}, {"top_p": 0.05}, {"min_p": 0.5}, {"top_k": 70, "top_p": 0.6}]
)
@pytest.mark.parametrize("levels", [1, 2, 5])
def test_as_many_ties_survive_as_in_transformers(change: dict[str, Any], levels: int) -> None:
    """Many equal scores across every cut. Top-k and min-p keep all of them; of top-p's, the highest ids survive."""
    settings = replace(SETTINGS, temperature=1.0, score_temperature=1.0, **change)
    torch.manual_seed(levels)
    logits_V = torch.randint(levels, (200,)).float()
    is_kept_V = torch.isfinite(warped(logits_V[None], settings, torch.zeros(1, 1, dtype=torch.long)))[0]
    num = 5_000
    drawn = choose(logits_V.expand(num, 200), uniforms(num), settings).tokens_N.unique()
    if settings.top_p == 1.0:
        assert drawn.tolist() == is_kept_V.nonzero()[:, 0].tolist()
        return
    # (A sum of equal terms may round to either side of the threshold: one token's leeway.)
    assert abs(len(drawn) - int(is_kept_V.sum())) <= 1
    lowest = logits_V[drawn].min()
    at_the_cut = (logits_V == lowest).nonzero()[:, 0]
    assert drawn[logits_V[drawn] == lowest].tolist() == at_the_cut[-int((logits_V[drawn] == lowest).sum()) :].tolist()


def test_greedy_takes_the_most_likely_after_the_penalty() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.9, -1.0]])
    greedy = replace(SETTINGS, is_greedy=True, top_k=2, top_p=0.1)
    assert choose(logits, None, greedy).tokens_N.tolist() == [1]
    penalised = replace(greedy, repetition_penalty=1.5)
    choice = choose(logits, None, penalised, torch.tensor([[1, 1, 3]]))
    assert choice.tokens_N.tolist() == [2]
    assert choice.logprobs_N.item() == pytest.approx(torch.log_softmax(logits / 0.7, -1)[0, 2].item())
    assert choice.sampled_logprobs_N.item() == 0.0


def test_entropy_is_the_policys() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 300)
    choice = choose(logits.clone(), uniforms(4), replace(SETTINGS, top_k=5), with_entropy=True)
    assert choice.entropy_N is not None
    torch.testing.assert_close(choice.entropy_N, torch.distributions.Categorical(logits=logits / 0.7).entropy())
    assert choose(logits, uniforms(4), SETTINGS).entropy_N is None


def test_a_logprob_is_exact_where_the_probability_vanishes() -> None:
    logits = torch.tensor([[0.0, 200.0, 0.0]])
    forced = replace(SETTINGS, temperature=1e4, score_temperature=1.0)
    choice = choose(logits, torch.tensor([0.999], dtype=torch.float64), forced)
    assert choice.tokens_N.tolist() == [2]
    assert choice.logprobs_N.item() == -200.0


@pytest.mark.parametrize("change", [{}, {"top_p": 0.5}, {"repetition_penalty": 2.0}, {"is_greedy": True}])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_diverged_logits_are_reported(bad: float, change: dict[str, Any]) -> None:
    with pytest.raises(RolloutError, match="diverged"):
        choose(torch.tensor([[0.0, bad, 1.0]]), uniforms(1), replace(SETTINGS, **change), torch.tensor([[0]]))


@pytest.mark.parametrize("num_tokens", [1, 7, 256, 257, 700, 1024])
def test_the_blockwise_draw_is_the_plain_one(num_tokens: int) -> None:
    torch.manual_seed(num_tokens)
    scores_NV = torch.randn(2000, num_tokens) * 3
    scores_NV[:, ::3] = -torch.inf
    scores_NV[:, -1] = 0.0
    probs_NV = torch.softmax(scores_NV, dim=-1)
    drawn_N = draw_blockwise(probs_NV, uniforms(2000))
    assert torch.equal(drawn_N, draw(scores_NV, uniforms(2000)))
    assert bool((probs_NV.gather(1, drawn_N[:, None]) > 0).all())


def test_the_blockwise_draw_reaches_both_ends_of_a_large_vocabulary() -> None:
    probs_NV = torch.full((2, 152_000), 1 / 152_000)
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw_blockwise(probs_NV, edges).tolist() == [0, 151_999]


def chi_square_is_small(counts_V: torch.Tensor, probs_V: torch.Tensor) -> bool:
    """Within four standard deviations of a chi-square: all but one true sampler in 30,000. And nothing impossible."""
    possible = probs_V > 0
    expected = probs_V[possible].double() * counts_V.sum()
    chi_square = float(((counts_V[possible] - expected) ** 2 / expected).sum())
    freedom = int(possible.sum()) - 1
    return not counts_V[~possible].any() and abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_a_million_blockwise_draws_follow_the_distribution() -> None:
    torch.manual_seed(0)
    probs_V = torch.softmax(torch.randn(300), dim=-1)
    probs_V[::7] = 0
    probs_V /= probs_V.sum()
    counts = torch.zeros(300, dtype=torch.float64)
    for chunk in uniforms(1_000_000).split(50_000):
        counts += torch.bincount(draw_blockwise(probs_V.expand(len(chunk), 300), chunk), minlength=300)
    assert chi_square_is_small(counts, probs_V)
    assert not chi_square_is_small(counts, probs_V.roll(1)), "the test must be able to fail"


@pytest.mark.parametrize("change", [{"top_p": 0.9}, {"top_k": 30, "min_p": 0.01}])
def test_truncated_draws_follow_the_truncated_distribution(change: dict[str, Any]) -> None:
    settings = replace(SETTINGS, temperature=1.0, score_temperature=1.0, **change)
    torch.manual_seed(0)
    logits_V = torch.randn(70)
    probs_V = torch.softmax(warped(logits_V[None], settings, torch.zeros(1, 1, dtype=torch.long)), dim=-1)[0]
    num = 100_000
    tokens_N = choose(logits_V.expand(num, 70), uniforms(num), settings).tokens_N
    assert chi_square_is_small(torch.bincount(tokens_N, minlength=70).double(), probs_V)


def test_settings_take_what_generation_kwargs_say() -> None:
    sampling = SamplingParams(max_tokens=8, temperature=0.7, top_k=4, eos_token_ids=(1, 2))
    assert settings_of(sampling).is_truncated
    changed = settings_of(
        replace(
            sampling,
            generation_kwargs={
                "temperature": 0.5,
                "top_k": None,
                "max_new_tokens": 3,
                "eos_token_id": 9,
                "do_sample": False,
                "stop_strings": "x",
            },
        )
    )
    assert (changed.temperature, changed.score_temperature) == (0.5, 0.7)
    assert (changed.top_k, changed.max_tokens, changed.eos_token_ids) == (0, 3, (9,))
    assert changed.is_greedy
    assert changed.stop_strings == ("x",)
    assert foreign_kwargs(replace(sampling, generation_kwargs={"top_p": 1.0, "typical_p": 0.5})) == ["typical_p"]


@pytest.mark.parametrize("num_tokens", [100, 5000])
@pytest.mark.parametrize("change", [{}, {"temperature": 1.0, "score_temperature": 1.0}, {"is_greedy": True}])
def test_the_direct_choice_is_the_choice(change: dict[str, Any], num_tokens: int) -> None:
    settings = replace(SETTINGS, **change)
    logits_NV = 5 * torch.randn(300, num_tokens, generator=torch.Generator().manual_seed(0))
    expected = choose(logits_NV.clone(), uniforms(300), settings)
    ours = choose_direct(logits_NV, uniforms(300), settings)
    assert torch.equal(ours.tokens_N, expected.tokens_N)
    torch.testing.assert_close(ours.logprobs_N, expected.logprobs_N, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.sampled_logprobs_N, expected.sampled_logprobs_N, rtol=1e-6, atol=1e-6)


def test_the_direct_choice_of_a_token_whose_probability_float32_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `choose`: its log-prob is taken from the logits."""
    monkeypatch.setattr("gruppo.rollout.choose.locate", lambda probs_NV, _: (torch.tensor([1]), probs_NV.sum(dim=1)))
    settings = replace(SETTINGS, temperature=1.0, score_temperature=1.0)
    ours = choose_direct(torch.tensor([[150.0, 0.0]]), uniforms(1), settings)
    assert ours.logprobs_N.tolist() == [-150.0]


@pytest.mark.parametrize("num_tokens", [100, 5000])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_the_direct_choice_from_bad_logits_is_in_the_vocabulary_and_shows(bad: float, num_tokens: int) -> None:
    logits_NV = torch.zeros(2, num_tokens)
    logits_NV[1, 7] = bad
    ours = choose_direct(logits_NV, uniforms(2), SETTINGS)
    assert torch.isfinite(ours.logprobs_N).tolist() == [True, False]
    assert ((ours.tokens_N >= 0) & (ours.tokens_N < num_tokens)).all()
