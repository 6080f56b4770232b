"""The embedded engine under sampling settings, stop strings, and for models that it cannot run."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from engine_models import model_of, one_letter_per_id
from gruppo.errors import RolloutError
from gruppo.rollout.engine import EmbeddedEngine, free_bytes
from gruppo.rollout.hf import HFEngine
from gruppo.rollout.settings import check_sampling
from gruppo.rollout.support import probe, unsupported_reason
from gruppo.types import Group, Prompt, RolloutRequest, SamplingParams
from tiny_models import EOS, PAD, VOCAB

SAMPLING = SamplingParams(max_tokens=9, temperature=0.9, eos_token_ids=(EOS,), pad_token_id=PAD, seed=3, step=1)
REQUESTS = [RolloutRequest(Prompt(i, "", ids), range(6)) for i, ids in enumerate([[5, 6, 7], [8, 9, 3], [4, 4, 2]])]
SHAPE: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def facts(groups: list[Group]) -> list[tuple[int, list[int], str]]:
    return [(g.prompt.id, c.token_ids, c.finish_reason) for g in groups for c in g.completions]


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.5},
        {"top_k": 4},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"repetition_penalty": 2.5},
        {"repetition_penalty": 2.5, "is_greedy": True},
        {"temperature": 1.7, "top_k": 9, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3},
        {"generation_kwargs": {"temperature": 0.3, "top_k": 6, "max_new_tokens": 5, "eos_token_id": [4, 9]}},
        {"generation_kwargs": {"do_sample": False}},
    ],
)
def test_settings_mean_what_they_mean_to_transformers(family: str, settings: dict[str, Any]) -> None:
    model = model_of(family)
    sampling = replace(SAMPLING, **settings)
    ours = EmbeddedEngine(model)
    mine, theirs = ours.generate(REQUESTS, sampling), HFEngine(model).generate(REQUESTS, sampling)
    assert facts(mine) == facts(theirs)
    for one, other in zip(mine, theirs, strict=True):
        for a, b in zip(one.completions, other.completions, strict=True):
            assert a.sampler_logprobs == pytest.approx(b.sampler_logprobs, abs=2e-5)


def test_stop_strings_end_rows_where_transformers_ends_them() -> None:
    """Also a string that begins in the prompt: "cf" after the third prompt."""
    tokenizer = one_letter_per_id()
    model = model_of("qwen3")
    sampling = replace(SAMPLING, eos_token_ids=(2,), generation_kwargs={"stop_strings": ["e", "fg", "cf"]})
    mine = EmbeddedEngine(model, tokenizer=tokenizer).generate(REQUESTS, sampling)
    assert facts(mine) == facts(HFEngine(model, tokenizer=tokenizer).generate(REQUESTS, sampling))
    by_string = [tokenizer.decode(ids) for _, ids, reason in facts(mine) if reason == "stop" and ids[-1] != 2]
    assert by_string
    assert all(text.endswith(("e", "fg", "cf")) or text == "f" for text in by_string)


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(RolloutError, match="tokenizer"):
        EmbeddedEngine(model_of("qwen3")).generate(REQUESTS, replace(SAMPLING, generation_kwargs={"stop_strings": "a"}))


def test_kwargs_for_transformers_alone_go_there_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("qwen3")
    sampling = replace(SAMPLING, generation_kwargs={"suppress_tokens": [3, 9, 12], "typical_p": 0.7})
    ours = EmbeddedEngine(model)
    ours.load_weights(5)
    with caplog.at_level(logging.WARNING):
        mine = ours.generate(REQUESTS, sampling)
        ours.generate(REQUESTS, sampling)
    assert facts(mine) == facts(HFEngine(model).generate(REQUESTS, sampling))
    assert mine[0].completions[0].policy_version == 5
    assert [record.message for record in caplog.records] == [
        "generation_kwargs ['suppress_tokens', 'typical_p']: the embedded engine cannot honour this, so completions "
        "are sampled by transformers' generate, which is slower."
    ]
    assert ours.health()["num_completions"] == 36


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"num_beams": 4}, r"'num_beams': 4, .* beams are not samples of the policy\. Take it out"),
        (
            {"temprature": 0.5},
            r"'temprature': 0\.5, .* no field of transformers' GenerationConfig\. Did you mean 'temp",
        ),
        ({"no_such_thing": 3}, r"'no_such_thing': 3, .* no field of transformers' GenerationConfig\. Take it out"),
    ],
)
def test_kwargs_are_checked_without_generating(kwargs: dict[str, Any], told: str) -> None:
    with pytest.raises(RolloutError, match=told):
        check_sampling(replace(SAMPLING, generation_kwargs=kwargs))


def test_kwargs_that_an_engine_honours_pass_the_check() -> None:
    known = {"top_k": 5, "typical_p": 0.9, "top_h": 0.5, "stop_strings": ["a"], "suppress_tokens": [3], "max_time": 9.0}
    check_sampling(replace(SAMPLING, generation_kwargs=known))


@pytest.mark.parametrize("name", ["num_beams", "no_such_thing"])
def test_kwargs_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(RolloutError, match=name):
        EmbeddedEngine(model_of("qwen3")).generate(REQUESTS, replace(SAMPLING, generation_kwargs={name: 3}))


def other_model(kind: str, **traits: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    ends = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **ends, **traits}))
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "traits", "reason"),
    [
        ("bloom", {"n_head": 2, "n_layer": 2}, "AttentionInterface"),
        ("mamba", {"state_size": 4}, "AttentionInterface"),
        (
            "lfm2",
            {"intermediate_size": 24, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]},
            "layers of kind",
        ),
    ],
)
def test_other_models_fall_back_with_one_warning(
    kind: str, traits: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = other_model(kind, **traits)
    ours = EmbeddedEngine(model)
    with caplog.at_level(logging.WARNING, logger="gruppo"):
        mine = ours.generate(REQUESTS, SAMPLING)
        ours.generate(REQUESTS, SAMPLING)
    assert facts(mine) == facts(HFEngine(model).generate(REQUESTS, SAMPLING))
    assert ours.health()["forward"] == "hf"
    (record,) = [record for record in caplog.records if record.name.startswith("gruppo")]
    assert reason in record.message


def test_weights_of_a_type_of_their_own_are_left_to_transformers() -> None:
    model = model_of("llama")

    class Quantised(torch.nn.Parameter):
        pass

    model.lm_head.weight = Quantised(model.lm_head.weight.data)
    assert unsupported_reason(model) == "its weights are sharded or quantised"


def test_a_twist_that_the_short_decoder_does_not_know_is_found_out() -> None:
    """A recognised family whose layer does something else: its logits disagree, and the modules run instead."""
    model = model_of("qwen3")
    down = model.base_model.layers[1].mlp.down_proj
    hook = down.register_forward_hook(lambda _module, _args, output: output * 1.5)
    ours = EmbeddedEngine(model)
    mine = ours.generate(REQUESTS, SAMPLING)
    assert ours.health()["forward"] == "modules"
    assert facts(mine) == facts(HFEngine(model).generate(REQUESTS, SAMPLING))
    hook.remove()


def test_a_layer_that_attends_by_other_means_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here: a window in the config that the layers keep to themselves."""
    model = model_of("gpt2")
    model.config.sliding_window = 4
    ours = EmbeddedEngine(model)
    ours.generate(REQUESTS, SAMPLING)
    assert ours.health()["forward"] == "hf"


def test_a_rope_that_changes_with_the_length_is_not_tabulated() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = model_of("llama", rope_parameters=rope)
    ours = EmbeddedEngine(model)
    assert facts(ours.generate(REQUESTS, SAMPLING)) == facts(HFEngine(model).generate(REQUESTS, SAMPLING))
    assert ours.health()["forward"] == "modules"


def test_a_probe_reports_what_a_forward_raises() -> None:
    def broken() -> Any:
        raise KeyError("no such layer")

    assert probe(model_of("qwen3"), broken, torch.float32).fault == "KeyError: 'no such layer'"


def test_free_memory_counts_what_torch_has_reserved_and_left_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a training step the device is as good as full for everybody but torch's allocator."""
    facts = {"mem_get_info": (100, 8000), "memory_reserved": 7000, "memory_allocated": 2500}
    for name, value in facts.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    assert free_bytes(torch.device("cuda")) == 100 + 7000 - 2500


def test_free_memory_is_known_on_this_machine() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 2**20
    assert free_bytes(torch.device("meta")) is None
