"""The length rule, and that every place where a contender meets it says the same."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness.lengths import (
    OTHER,
    LengthRule,
    equal_lengths,
    impose_on_batching,
    impose_on_engine,
    impose_on_generate,
    lognormal_lengths,
)
from harness.models import EOS, PAD, make_model, make_tokenizer, prompt_ids, prompt_text, size_of
from harness.step import check_engine
from transformers import GenerationConfig

from gruppo.rollout.engine import EmbeddedEngine
from gruppo.rollout.hf import HFEngine
from gruppo.rollout.sequence import Sequences
from gruppo.types import Prompt, RolloutRequest, SamplingParams

PROMPTS = [[10, 11, 12], [20, 21]]
RULE = LengthRule({(10, 11, 12): (3, 1), (20, 21): (4, 2)})


def test_the_token_at_the_length_is_eos_and_none_before():
    assert [RULE.token(7, before, 3) for before in range(3)] == [7, 7, EOS]
    assert RULE.token(EOS, 0, 3) == OTHER
    assert RULE.token(EOS, 2, 3) == EOS


def test_equal_lengths():
    rule = equal_lengths(PROMPTS, group_size=3, length=5)
    assert rule.all_lengths() == [5] * 6
    assert rule.length([20, 21], 2) == 5


def test_lognormal_lengths_are_the_quantiles():
    prompts = [[number] for number in range(4)]
    rule = lognormal_lengths(prompts, 8, median=48.0, sigma=0.75, longest=256)
    lengths = sorted(rule.all_lengths())
    assert (lengths[0], lengths[-1]) == (10, 241)
    assert math.sqrt(lengths[15] * lengths[16]) == pytest.approx(48, abs=0.5)
    assert sum(lengths) / 32 == pytest.approx(48 * math.exp(0.75**2 / 2), rel=0.03)
    assert rule == lognormal_lengths(prompts, 8, median=48.0, sigma=0.75, longest=256)
    assert rule.all_lengths() != lengths
    assert max(lognormal_lengths(prompts, 8, median=48.0, sigma=0.75, longest=100).all_lengths()) == 100


def test_samples_of_a_prompt_are_counted_round_after_round():
    assert [RULE.length([10, 11, 12], sample) for sample in range(4)] == [3, 1, 3, 1]


@pytest.fixture
def model():
    return make_model("tiny").eval()


def completion_lengths(groups):
    return [[len(completion.token_ids) for completion in group.completions] for group in groups]


@pytest.mark.parametrize("engine", [EmbeddedEngine, HFEngine])
def test_engines_keep_the_rule(engine, model, monkeypatch):
    monkeypatch.setattr(Sequences, "append", Sequences.append)  # undone after the test
    impose_on_engine(RULE)
    impose_on_generate(model, RULE)
    requests = [RolloutRequest(Prompt(number, "", ids), range(2)) for number, ids in enumerate(PROMPTS)]
    sampling = SamplingParams(max_tokens=6, eos_token_ids=(EOS,), pad_token_id=PAD)
    chosen = engine(model)
    groups = chosen.generate(requests, sampling)
    assert chosen.health().get("forward") != "hf"
    assert completion_lengths(groups) == [[3, 1], [4, 2]]
    for completion in (completion for group in groups for completion in group.completions):
        assert completion.token_ids[-1] == EOS
        assert EOS not in completion.token_ids[:-1]
        assert completion.finish_reason == "stop"


def test_the_embedded_engine_does_not_know_log_probs_of_replaced_tokens(model, monkeypatch):
    monkeypatch.setattr(Sequences, "append", Sequences.append)
    impose_on_engine(RULE)
    sampling = SamplingParams(max_tokens=6, eos_token_ids=(EOS,), pad_token_id=PAD)
    groups = EmbeddedEngine(model).generate([RolloutRequest(Prompt(0, "", PROMPTS[0]), range(1))], sampling)
    assert np.isnan(groups[0].completions[0].sampler_logprobs).tolist() == [False, False, True]


def test_generate_keeps_the_rule(model):
    impose_on_generate(model, RULE)
    ids_NT = torch.tensor([[10, 11, 12], [10, 11, 12], [PAD, 20, 21], [PAD, 20, 21]])
    config = GenerationConfig(max_new_tokens=6, do_sample=True, eos_token_id=[EOS], pad_token_id=PAD)
    output_NT = model.generate(input_ids=ids_NT, attention_mask=(ids_NT != PAD).long(), generation_config=config)
    # As long as the longest row; each row has one EOS, and padding after it.
    assert output_NT.shape[1] == 3 + 4
    assert (output_NT[:, 3:] == EOS).int().argmax(dim=1).tolist() == [2, 0, 3, 1]
    assert (output_NT == EOS).sum(dim=1).tolist() == [1] * 4


def test_continuous_batching_keeps_the_rule():
    """Against transformers' own request state, without its scheduler."""
    from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

    def generate_batch(inputs):
        found = []
        for number, ids in enumerate(inputs):
            state = RequestState(f"r{number}", ids, max_new_tokens=6, eos_token_id=EOS)
            state._status = RequestStatus.DECODING
            while not state.update_and_check_completion(EOS, None):
                pass
            found.append(state.generated_tokens)
        return found

    plain = RequestState.update_and_check_completion
    fake = SimpleNamespace(generate_batch=generate_batch)
    impose_on_batching(fake, RULE)
    found = fake.generate_batch([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]])
    assert found == [[OTHER, OTHER, EOS], [EOS], [OTHER, OTHER, OTHER, EOS], [OTHER, EOS]]
    assert RequestState.update_and_check_completion is plain


def test_prompts_have_exactly_the_tokens_asked_for():
    """Special tokens are cut out of any word that contains them: w1 would be found in w123."""
    tokenizer = make_tokenizer("tiny")
    for number in range(3):
        ids = prompt_ids(300, number, 1024)
        assert len(ids) == 300
        assert tokenizer(prompt_text(ids))["input_ids"] == ids


@pytest.mark.parametrize("shape", ["tiny", "demo"])
def test_size_of_a_shape_is_that_of_its_model(shape):
    model = make_model(shape)
    matrices = [parameter.numel() for parameter in model.model.layers.parameters() if parameter.dim() == 2]
    assert size_of(shape).body == sum(matrices)
    assert size_of(shape).head == model.get_output_embeddings().weight.numel()


def test_an_engine_that_fell_back_is_refused():
    check_engine({"forward": "fused"})
    with pytest.raises(SystemExit, match="did not sample with its embedded engine"):
        check_engine({"forward": "hf"})
