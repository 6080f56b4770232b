"""HFEngine against transformers' own generate, and against the trainer's log-probs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import logits_process

from gruppo.errors import RolloutError
from gruppo.policy.logprobs import token_logprobs
from gruppo.rollout import hf
from gruppo.rollout.hf import HFEngine
from gruppo.rollout.sampler import draw, row_uniforms
from gruppo.types import Completion, Group, Prompt, RolloutRequest, SamplingParams, TrainBatch
from tiny_models import EOS, FAMILIES, PAD, VOCAB, tiny

SAMPLING = SamplingParams(max_tokens=9, temperature=0.9, eos_token_ids=(EOS,), pad_token_id=PAD, seed=3, step=1)
PROMPTS = [Prompt(i, "", ids) for i, ids in enumerate([[5, 6, 7, 8, 9], [3], [4, 4, 2]])]


def requests(num_samples: int = 3, prompts: list[Prompt] = PROMPTS) -> list[RolloutRequest]:
    return [RolloutRequest(prompt, range(num_samples)) for prompt in prompts]


def flat(groups: list[Group]) -> list[tuple[Prompt, Completion]]:
    return [(group.prompt, completion) for group in groups for completion in group.completions]


def tokens(groups: list[Group]) -> list[list[int]]:
    return [completion.token_ids for _, completion in flat(groups)]


def test_groups_come_in_the_order_of_the_requests_with_everything_filled_in() -> None:
    engine = HFEngine(tiny("llama"))
    engine.load_weights(12)
    groups = engine.generate(requests(), SAMPLING)
    assert [group.prompt.id for group in groups] == [0, 1, 2]
    for prompt, completion in flat(groups):
        assert prompt in PROMPTS
        assert 1 <= len(completion.token_ids) <= 9
        assert completion.sampler_logprobs is not None
        assert len(completion.sampler_logprobs) == len(completion.token_ids)
        assert completion.policy_version == 12
        assert completion.seconds > 0
        ended = completion.token_ids[-1] == EOS
        assert completion.finish_reason == ("stop" if ended else "length")
        assert EOS not in completion.token_ids[:-1]
        assert ended or len(completion.token_ids) == 9
    assert [c.sample for c in groups[1].completions] == [0, 1, 2]
    health = engine.health()
    assert health == {
        "engine": "hf",
        "policy_version": 12,
        "num_completions": 9,
        "num_tokens": sum(map(len, tokens(groups))),
    }
    engine.close()


def test_some_samples_of_a_group_are_those_of_the_whole_group() -> None:
    engine = HFEngine(tiny("llama"))
    whole = engine.generate([RolloutRequest(PROMPTS[0], range(6))], SAMPLING)[0].completions
    part = engine.generate([RolloutRequest(PROMPTS[0], range(4, 6))], SAMPLING)[0].completions
    assert [(c.sample, c.token_ids) for c in part] == [(c.sample, c.token_ids) for c in whole[4:]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_tokens_do_not_depend_on_the_batch(family: str) -> None:
    """Also that left padding changes nothing, for learned absolute positions too."""
    # (Gemma 2's own eager attention gives NaN for padding in float64.)
    model = tiny(family, dtype=torch.float32 if family == "gemma2" else torch.float64)
    together = HFEngine(model).generate(requests(), SAMPLING)
    assert len({tuple(ids) for ids in tokens(together)}) > 5, "the test needs variety"
    for size in (1, 4):
        assert tokens(HFEngine(model, max_rows=size).generate(requests(), SAMPLING)) == tokens(together)
    reverse = HFEngine(model).generate(requests()[::-1], SAMPLING)
    assert tokens(reverse[::-1]) == tokens(together)


@pytest.mark.parametrize("change", [{"seed": 4}, {"step": 2}, {"phase": "eval"}])
def test_another_seed_step_or_phase_gives_other_tokens(change: dict[str, Any]) -> None:
    engine = HFEngine(tiny("llama"))
    assert tokens(engine.generate(requests(), SAMPLING)) != tokens(
        engine.generate(requests(), replace(SAMPLING, **change))
    )


def test_torch_generators_are_neither_used_nor_moved() -> None:
    engine = HFEngine(tiny("llama"))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = tokens(engine.generate(requests(), SAMPLING))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert tokens(engine.generate(requests(), SAMPLING)) == first


@pytest.mark.parametrize("family", FAMILIES)
def test_sampler_logprobs_are_the_trainers(family: str) -> None:
    """Through top-p, top-k and a penalty: these change the draw, but not the recorded log-probs."""
    model = tiny(family)
    sampling = replace(SAMPLING, top_p=0.9, top_k=15, repetition_penalty=1.2)
    rows = flat(HFEngine(model).generate(requests(), sampling))
    longest = max(len(c.token_ids) for _, c in rows)
    trained_NT = torch.tensor([[t < len(c.token_ids) for t in range(longest)] for _, c in rows])
    batch = TrainBatch(
        prompt_ids=[prompt.token_ids for prompt, _ in rows],
        completion_ids=[c.token_ids for _, c in rows],
        trained_NT=trained_NT,
        advantages_N=torch.zeros(len(rows)),
        group_ids=[prompt.id for prompt, _ in rows],
        slice_ids=[0] * len(rows),
    )
    with torch.no_grad():
        logprobs_NT = token_logprobs(model, batch, temperature=0.9, pad_token_id=PAD, with_entropy=False).logprobs_NT
    sampled = torch.tensor([x for _, c in rows for x in c.sampler_logprobs or []])
    torch.testing.assert_close(sampled, logprobs_NT[trained_NT], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_greedy_is_transformers_greedy(family: str) -> None:
    model = tiny(family)
    groups = HFEngine(model).generate(requests(1), replace(SAMPLING, is_greedy=True))
    for prompt, completion in flat(groups):
        own = model.generate(
            torch.tensor([prompt.token_ids]),
            attention_mask=torch.ones(1, len(prompt.token_ids), dtype=torch.long),
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=9, eos_token_id=EOS, pad_token_id=PAD, disable_compile=True
            ),
        )
        assert completion.token_ids == own[0, len(prompt.token_ids) :].tolist()


def one_token_distribution(sampling: SamplingParams, prompt: Prompt) -> torch.Tensor:
    """What transformers would sample the first token from, by its own processors in its own order."""
    model = tiny("llama")
    ids = torch.tensor([prompt.token_ids])
    config = GenerationConfig(
        do_sample=True,
        max_new_tokens=1,
        eos_token_id=EOS,
        pad_token_id=PAD,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        output_scores=True,
        return_dict_in_generate=True,
        disable_compile=True,
        **sampling.generation_kwargs,
    )
    torch.manual_seed(0)
    scores = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config).scores[0]
    return torch.softmax(scores, dim=-1)[0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 4},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"repetition_penalty": 2.5},
        {"temperature": 1.7, "top_k": 9, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3},
        {"generation_kwargs": {"suppress_tokens": [3, 9, 12], "typical_p": 0.7}},
        {"generation_kwargs": {"temperature": 0.3, "top_k": 6}},
    ],
)
def test_the_distribution_is_transformers(settings: dict[str, Any]) -> None:
    """Every draw equals the inverse CDF of transformers' own scores at that row's random number."""
    num_samples = 200
    sampling = replace(SAMPLING, max_tokens=1, **settings)
    prompt = PROMPTS[0]
    overrides = sampling.generation_kwargs
    plain = replace(
        sampling,
        generation_kwargs={k: v for k, v in overrides.items() if k not in ("temperature", "top_k")},
        **{k: v for k, v in overrides.items() if k in ("temperature", "top_k")},
    )
    probs_V = one_token_distribution(plain, prompt)
    uniforms_N = torch.tensor([row_uniforms(sampling, prompt.id, i, 1)[0] for i in range(num_samples)])
    expected = draw(probs_V.log().expand(num_samples, VOCAB), uniforms_N)
    group = HFEngine(tiny("llama")).generate([RolloutRequest(prompt, range(num_samples))], sampling)[0]
    assert [c.token_ids[0] for c in group.completions] == expected.tolist()


def test_the_models_own_generation_config_plays_no_part() -> None:
    model = tiny("llama")
    expected = tokens(HFEngine(model).generate(requests(), SAMPLING))
    shipped = GenerationConfig(
        do_sample=True,
        temperature=0.01,
        top_k=1,
        min_p=0.5,
        suppress_tokens=[5, 6, 7],
        min_new_tokens=9,
        eos_token_id=2,
    )
    model.generation_config = shipped
    assert tokens(HFEngine(model).generate(requests(), SAMPLING)) == expected
    assert model.generation_config is shipped


def test_several_eos_ids() -> None:
    groups = HFEngine(tiny("llama")).generate(requests(8), replace(SAMPLING, eos_token_ids=(EOS, 17, 4, 9)))
    ends = {c.token_ids[-1] for _, c in flat(groups) if c.finish_reason == "stop"}
    assert len(ends) > 1
    assert ends <= {EOS, 17, 4, 9}
    assert not {EOS, 17, 4, 9} & {token for ids in tokens(groups) for token in ids[:-1]}


def test_pad_equal_to_eos_keeps_the_real_eos_and_no_padding() -> None:
    sampling = replace(SAMPLING, eos_token_ids=(EOS, 17, 4, 9), pad_token_id=EOS)
    with_other_pad = HFEngine(tiny("llama")).generate(requests(8), replace(sampling, pad_token_id=PAD))
    assert tokens(HFEngine(tiny("llama")).generate(requests(8), sampling)) == tokens(with_other_pad)


def test_an_eos_at_once_is_a_completion_of_one_token() -> None:
    every = tuple(range(VOCAB))
    for _, completion in flat(HFEngine(tiny("llama")).generate(requests(), replace(SAMPLING, eos_token_ids=every))):
        assert len(completion.token_ids) == 1
        assert completion.finish_reason == "stop"


def test_without_eos_every_row_ends_by_length() -> None:
    for _, completion in flat(HFEngine(tiny("llama")).generate(requests(), replace(SAMPLING, eos_token_ids=()))):
        assert len(completion.token_ids) == 9
        assert completion.finish_reason == "length"


def test_an_eos_as_the_last_allowed_token_is_a_stop() -> None:
    every = tuple(range(VOCAB))
    sampling = replace(SAMPLING, eos_token_ids=every, max_tokens=1)
    assert {c.finish_reason for _, c in flat(HFEngine(tiny("llama")).generate(requests(), sampling))} == {"stop"}


def test_stop_strings(letters: Any) -> None:
    sampling = replace(SAMPLING, eos_token_ids=(), generation_kwargs={"stop_strings": ["e", "fg"]})
    engine = HFEngine(tiny("llama"), tokenizer=letters)
    completions = [c for _, c in flat(engine.generate(requests(8), sampling))]
    reasons = {c.finish_reason for c in completions}
    assert reasons == {"stop", "length"}
    for completion in completions:
        text = letters.decode(completion.token_ids)
        assert (completion.finish_reason == "stop") == text.endswith(("e", "fg"))
        assert "e" not in text[:-1]
    with pytest.raises(RolloutError, match="need a tokenizer"):
        HFEngine(tiny("llama")).generate(requests(), sampling)


@pytest.fixture
def letters() -> Any:
    """A tokenizer with one letter per id."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {chr(ord("a") + i): i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def test_generation_kwargs_have_the_last_word() -> None:
    engine = HFEngine(tiny("llama"))
    short = engine.generate(requests(), replace(SAMPLING, generation_kwargs={"max_new_tokens": 2}))
    assert max(map(len, tokens(short))) == 2
    assert {c.finish_reason for _, c in flat(short) if c.token_ids[-1] != EOS} == {"length"}
    greedy = engine.generate(requests(), replace(SAMPLING, generation_kwargs={"do_sample": False}))
    assert tokens(greedy) == tokens(engine.generate(requests(), replace(SAMPLING, is_greedy=True)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_beams": 4}, "beams are not samples"),
        ({"max_length": 4}, "max_completion_length"),
        ({"stop_string": ["x"]}, "no field of transformers' GenerationConfig"),
    ],
)
def test_generation_kwargs_that_cannot_be(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(RolloutError, match=message):
        HFEngine(tiny("llama")).generate(requests(), replace(SAMPLING, generation_kwargs=kwargs))


def test_time_running_out_aborts() -> None:
    sampling = replace(SAMPLING, eos_token_ids=(), generation_kwargs={"max_time": 0.0})
    for _, completion in flat(HFEngine(tiny("llama")).generate(requests(), sampling)):
        assert completion.finish_reason == "abort"
        assert 1 <= len(completion.token_ids) < 9


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(RolloutError, match="Prompt 4 has no tokens"):
        HFEngine(tiny("llama")).generate([RolloutRequest(Prompt(4, "", []), range(2))], SAMPLING)


def test_no_requests_and_no_samples() -> None:
    engine = HFEngine(tiny("llama"))
    assert engine.generate([], SAMPLING) == []
    assert engine.generate([RolloutRequest(PROMPTS[0], range(0))], SAMPLING) == [Group(PROMPTS[0], [])]


def test_modes_hooks_and_checkpointing_are_as_before() -> None:
    model = tiny("gpt2", resid_pdrop=0.9).train()
    model.activation_checkpointing_enable()
    frozen = model.transformer.h[0].eval()
    first = HFEngine(model).generate(requests(), SAMPLING)
    assert model.training
    assert not frozen.training
    assert model.transformer.h[1].training
    assert model.transformer.h[1].gradient_checkpointing
    assert len(model._forward_hooks) == 0
    # No dropout while sampling, and the cache was not thrown away for checkpointing.
    assert tokens(first) == tokens(HFEngine(model.eval()).generate(requests(), SAMPLING))


def test_modes_are_restored_after_an_error() -> None:
    model = tiny("llama").train()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(RolloutError, match="diverged"):
        HFEngine(model).generate(requests(), SAMPLING)
    assert model.training
    assert len(model._forward_hooks) == 0


def test_the_cache_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", use_cache=False).train()
    lengths: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    HFEngine(model).generate(requests(), SAMPLING)
    hook.remove()
    assert lengths[0] == 5
    assert set(lengths[1:]) == {1}


def test_a_static_cache_gives_the_same_tokens() -> None:
    expected = tokens(HFEngine(tiny("llama")).generate(requests(), SAMPLING))
    engine = HFEngine(tiny("llama"), cache_implementation="static")
    assert tokens(engine.generate(requests(), SAMPLING)) == expected


def test_autocast_is_entered() -> None:
    model = tiny("llama")
    exact = HFEngine(model).generate(requests(), SAMPLING)
    rounded = HFEngine(model, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)).generate(
        requests(), SAMPLING
    )
    gap = abs(
        (exact[0].completions[0].sampler_logprobs or [0])[0] - (rounded[0].completions[0].sampler_logprobs or [0])[0]
    )
    assert 0 < gap < 0.1


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_part_of_the_policy() -> None:
    peft = pytest.importorskip("peft")
    base = tokens(HFEngine(tiny("llama")).generate(requests(), SAMPLING))
    config = peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny("llama"), config)
    assert tokens(HFEngine(model).generate(requests(), SAMPLING)) != base
    with model.disable_adapter():
        assert tokens(HFEngine(model).generate(requests(), SAMPLING)) == base


def test_the_order_of_the_warpers_is_transformers() -> None:
    """If transformers adds or moves a warper, this list must follow."""
    config = GenerationConfig(
        do_sample=True,
        temperature=0.5,
        top_h=0.5,
        top_k=3,
        top_p=0.5,
        min_p=0.1,
        typical_p=0.5,
        epsilon_cutoff=0.1,
        eta_cutoff=0.1,
    )
    own: LogitsProcessorList = tiny("llama")._get_logits_processor(config, input_ids_seq_length=1)
    mine = hf._warpers({**config.to_dict(), "do_sample": True}, torch.device("cpu"))
    assert [type(warper) for warper in mine] == [type(warper) for warper in own]
    assert isinstance(mine[0], logits_process.TemperatureLogitsWarper)
