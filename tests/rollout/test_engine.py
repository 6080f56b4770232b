"""EmbeddedEngine against HFEngine, token for token, and against the trainer's log-probs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from engine_models import EVERY_FAMILY, FUSED, model_of
from gruppo.errors import RolloutError
from gruppo.policy.logprobs import token_logprobs
from gruppo.rollout.engine import EmbeddedEngine
from gruppo.rollout.hf import HFEngine
from gruppo.rollout.kv_cache import FIRST_TAIL
from gruppo.types import Completion, Group, Prompt, RolloutRequest, SamplingParams, TrainBatch
from tiny_models import EOS, PAD, VOCAB

SAMPLING = SamplingParams(max_tokens=9, temperature=0.9, eos_token_ids=(EOS,), pad_token_id=PAD, seed=3, step=1)
PROMPTS = [Prompt(i, "", ids) for i, ids in enumerate([[5, 6, 7, 8, 9, 3, 2], [3], [4, 4, 2]])]


def requests(num_samples: int = 3, prompts: list[Prompt] = PROMPTS) -> list[RolloutRequest]:
    return [RolloutRequest(prompt, range(num_samples)) for prompt in prompts]


def flat(groups: list[Group]) -> list[tuple[Prompt, Completion]]:
    return [(group.prompt, completion) for group in groups for completion in group.completions]


def tokens(groups: list[Group]) -> list[list[int]]:
    return [completion.token_ids for _, completion in flat(groups)]


def facts(groups: list[Group]) -> list[tuple[int, int, list[int], str]]:
    return [(p.id, c.sample, c.token_ids, c.finish_reason) for p, c in flat(groups)]


def logprobs(groups: list[Group]) -> torch.Tensor:
    return torch.tensor([x for _, c in flat(groups) for x in c.sampler_logprobs or []])


def engine(family: str = "qwen3", **kwargs: Any) -> EmbeddedEngine:
    return EmbeddedEngine(model_of(family), **kwargs)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_family_samples_what_transformers_samples(family: str) -> None:
    """Ragged prompts, rows that end at different times, windows that cross the prompt: same tokens, same log-probs."""
    model = model_of(family)
    ours, oracle = EmbeddedEngine(model), HFEngine(model)
    for sampling in (SAMPLING, replace(SAMPLING, step=2, temperature=1.0), replace(SAMPLING, is_greedy=True)):
        mine, theirs = ours.generate(requests(5), sampling), oracle.generate(requests(5), sampling)
        assert facts(mine) == facts(theirs)
        torch.testing.assert_close(logprobs(mine), logprobs(theirs), rtol=1e-4, atol=2e-5)
    assert ours.health()["forward"] == ("fused" if family in FUSED else "modules")


@pytest.mark.parametrize("family", sorted(FUSED))
def test_recognised_families_run_through_their_modules_too(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gruppo.rollout.engine.is_recognised", lambda _: False)
    model = model_of(family)
    ours = EmbeddedEngine(model)
    assert facts(ours.generate(requests(4), SAMPLING)) == facts(HFEngine(model).generate(requests(4), SAMPLING))
    assert ours.health()["forward"] == "modules"


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "gpt2", "mistral"])
def test_double_precision_is_exact(family: str) -> None:
    model = model_of(family, dtype=torch.float64)
    mine = EmbeddedEngine(model).generate(requests(6), SAMPLING)
    theirs = HFEngine(model, max_rows=1).generate(requests(6), SAMPLING)
    assert tokens(mine) == tokens(theirs)
    torch.testing.assert_close(logprobs(mine), logprobs(theirs), rtol=1e-6, atol=1e-6)


def test_long_completions_outgrow_the_first_buffers() -> None:
    model = model_of("qwen3", dtype=torch.float64)
    sampling = replace(SAMPLING, max_tokens=150)
    mine = EmbeddedEngine(model).generate(requests(8), sampling)
    assert facts(mine) == facts(HFEngine(model).generate(requests(8), sampling))
    assert max(map(len, tokens(mine))) > 2 * FIRST_TAIL


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_sampler_logprobs_are_the_trainers(family: str) -> None:
    """Through top-p, top-k and a penalty: these change the draw, but not the recorded log-probs."""
    model = model_of(family)
    sampling = replace(SAMPLING, top_p=0.9, top_k=15, repetition_penalty=1.2)
    rows = flat(EmbeddedEngine(model).generate(requests(), sampling))
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
        expected_NT = token_logprobs(model, batch, temperature=0.9, pad_token_id=PAD, with_entropy=False).logprobs_NT
    sampled = torch.tensor([x for _, c in rows for x in c.sampler_logprobs or []])
    torch.testing.assert_close(sampled, expected_NT[trained_NT], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "gemma2-softcap", "gpt2"])
@pytest.mark.parametrize("budget", [1, 20, 33, 60])
def test_tokens_do_not_depend_on_the_admission_budget(family: str, budget: int) -> None:
    """Rows that wait join others in the middle of theirs, also of a prompt that is live already."""
    model = model_of(family)
    expected = EmbeddedEngine(model).generate(requests(6), SAMPLING)
    assert facts(EmbeddedEngine(model, max_live_tokens=budget).generate(requests(6), SAMPLING)) == facts(expected)


def test_tokens_do_not_depend_on_the_batch_or_the_ranks_share() -> None:
    ours = engine()
    whole = facts(ours.generate(requests(6), SAMPLING))
    alone = [ours.generate([RolloutRequest(prompt, range(6))], SAMPLING) for prompt in PROMPTS]
    assert [fact for groups in alone for fact in facts(groups)] == whole
    halves = [ours.generate([RolloutRequest(p, half) for p in PROMPTS], SAMPLING) for half in (range(3), range(3, 6))]
    assert sorted(fact for groups in halves for fact in facts(groups)) == sorted(whole)
    assert sorted(facts(ours.generate(requests(6)[::-1], SAMPLING))) == sorted(whole)


def test_one_prompt_in_two_requests_and_a_request_without_samples() -> None:
    ours = engine()
    whole = ours.generate(requests(6, PROMPTS[:1]), SAMPLING)
    parts = ours.generate(
        [
            RolloutRequest(PROMPTS[0], range(2)),
            RolloutRequest(PROMPTS[1], range(0)),
            RolloutRequest(PROMPTS[0], range(2, 6)),
        ],
        SAMPLING,
    )
    assert [len(group.completions) for group in parts] == [2, 0, 4]
    assert facts(parts) == facts(whole)


def test_everything_is_filled_in() -> None:
    ours = engine()
    ours.load_weights(12)
    groups = ours.generate(requests(), SAMPLING)
    assert [group.prompt.id for group in groups] == [0, 1, 2]
    assert [c.sample for c in groups[1].completions] == [0, 1, 2]
    for _, completion in flat(groups):
        assert len(completion.sampler_logprobs or []) == len(completion.token_ids)
        assert completion.policy_version == 12
        assert completion.seconds > 0
        ended = completion.token_ids[-1] == EOS
        assert completion.finish_reason == ("stop" if ended else "length")
    assert ours.health() == {
        "engine": "embedded",
        "forward": "fused",
        "policy_version": 12,
        "num_completions": 9,
        "num_tokens": sum(map(len, tokens(groups))),
    }
    ours.close()
    ours.close()


def test_nothing_to_do() -> None:
    ours = engine()
    assert ours.generate([], SAMPLING) == []
    assert ours.generate([RolloutRequest(PROMPTS[0], range(0))], SAMPLING) == [Group(PROMPTS[0], [])]


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(RolloutError, match="Prompt 4 has no tokens"):
        engine().generate([RolloutRequest(Prompt(4, "", []), range(2))], SAMPLING)


def test_a_changed_weight_changes_the_next_rollout() -> None:
    """No copy survives a rollout, even one of `.data` that no version counter sees."""
    model = model_of("qwen3")
    ours = EmbeddedEngine(model)
    before = ours.generate(requests(), SAMPLING)
    for parameter in model.parameters():
        parameter.data.mul_(1.2)
    after = ours.generate(requests(), SAMPLING)
    assert tokens(after) != tokens(before)
    assert facts(after) == facts(HFEngine(model).generate(requests(), SAMPLING))


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_modes_and_the_attention_implementation_are_as_before(family: str) -> None:
    traits = {"resid_pdrop": 0.9} if family == "gpt2" else {"attention_dropout": 0.9}
    model = model_of(family, **traits).train()
    model.activation_checkpointing_enable()
    layers = model.base_model.get_submodule("h" if family == "gpt2" else "layers")
    frozen = layers[0].eval()
    first = EmbeddedEngine(model).generate(requests(), SAMPLING)
    assert model.training
    assert not frozen.training
    assert layers[1].training
    assert layers[1].gradient_checkpointing
    assert model.config._attn_implementation == "sdpa"
    assert tokens(first) == tokens(HFEngine(model.eval()).generate(requests(), SAMPLING))


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_diverged_weights_are_reported_and_modes_restored(family: str) -> None:
    model = model_of(family)
    ours = EmbeddedEngine(model)
    ours.generate(requests(1), SAMPLING)
    model.train()
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(RolloutError, match="diverged"):
        ours.generate(requests(), SAMPLING)
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_torch_generators_are_neither_used_nor_moved() -> None:
    ours = engine()
    state = torch.get_rng_state()
    first = tokens(ours.generate(requests(), SAMPLING))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert tokens(ours.generate(requests(), SAMPLING)) == first


def test_several_eos_ids() -> None:
    sampling = replace(SAMPLING, eos_token_ids=(EOS, 17, 4, 9), pad_token_id=EOS)
    model = model_of("qwen3")
    groups = EmbeddedEngine(model).generate(requests(8), sampling)
    assert facts(groups) == facts(HFEngine(model).generate(requests(8), sampling))
    assert len({c.token_ids[-1] for _, c in flat(groups) if c.finish_reason == "stop"}) > 1


@pytest.mark.parametrize("eos", [(), tuple(range(VOCAB))])
def test_never_and_at_once(eos: tuple[int, ...]) -> None:
    groups = engine().generate(requests(), replace(SAMPLING, eos_token_ids=eos))
    assert {(len(c.token_ids), c.finish_reason) for _, c in flat(groups)} == {(1, "stop") if eos else (9, "length")}


def test_finished_rows_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step's batch is as large as the number of rows that still need it, and each prompt is computed once."""
    from gruppo.rollout.fused_forward import FusedForward

    sizes: list[int] = []
    prefilled: list[int] = []
    call = FusedForward.__call__

    def counting(self: Any, batch: Any, cache: Any) -> Any:
        (prefilled if type(batch).__name__ == "PrefillBatch" else sizes).append(
            len(batch.ids_S if type(batch).__name__ == "PrefillBatch" else batch.ids_N)
        )
        return call(self, batch, cache)

    ours = engine()
    ours.generate(requests(1), SAMPLING)
    monkeypatch.setattr(FusedForward, "__call__", counting)
    groups = ours.generate(requests(8), replace(SAMPLING, eos_token_ids=(EOS, 17, 4, 9)))
    lengths = [len(ids) for ids in tokens(groups)]
    assert prefilled == [sum(len(prompt.token_ids) for prompt in PROMPTS)]
    assert sizes == [sum(length > t for length in lengths) for t in range(1, max(lengths))]
    assert len(set(sizes)) > 2, "the test needs ragged lengths"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_is_part_of_the_policy_and_is_not_merged_in_place(family: str) -> None:
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "v_proj", "down_proj"] if family == "llama" else ["c_proj"]
    config = peft.LoraConfig(
        r=2, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2"
    )
    model = peft.get_peft_model(model_of(family), config)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    ours, oracle = EmbeddedEngine(model), HFEngine(model)
    adapted = ours.generate(requests(), SAMPLING)
    assert tokens(adapted) == tokens(oracle.generate(requests(), SAMPLING))
    with model.disable_adapter():
        plain = ours.generate(requests(), SAMPLING)
        assert tokens(plain) == tokens(oracle.generate(requests(), SAMPLING))
    assert tokens(plain) != tokens(adapted)
    assert ours.health()["forward"] == ("fused" if family == "llama" else "modules")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_buffers_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """One long prompt among short ones: every prefix slot is as long."""
    from gruppo.rollout.kv_cache import KVCache

    made: list[int] = []
    init = KVCache.__init__

    def noting(self: KVCache, **sizes: int) -> None:
        made.append(sizes["num_prompts"] * sizes["prefix_tokens"] + sizes["num_rows"] * sizes["max_tail_tokens"])
        init(self, **sizes)

    prompts = [Prompt(i, "", [3 + i % 5] * (40 if i == 9 else 2)) for i in range(10)]
    expected = engine().generate(requests(3, prompts), SAMPLING)
    ours = engine(max_live_tokens=150)
    ours.generate(requests(1), SAMPLING)
    monkeypatch.setattr(KVCache, "__init__", noting)
    assert facts(ours.generate(requests(3, prompts), SAMPLING)) == facts(expected)
    assert len(made) == 1
    assert made[0] <= 150


def test_the_budget_is_of_what_the_weights_leave_free(monkeypatch: pytest.MonkeyPatch) -> None:
    from gruppo.rollout.fused_forward import FusedForward

    ours, order = engine(), []
    ours.generate(requests(1), SAMPLING)
    init = FusedForward.__init__

    def copying(self: Any, *args: Any, **kwargs: Any) -> None:
        order.append("copy")
        init(self, *args, **kwargs)

    monkeypatch.setattr(FusedForward, "__init__", copying)
    monkeypatch.setattr("gruppo.rollout.engine.free_bytes", lambda _: order.append("look"))
    ours.generate(requests(1), SAMPLING)
    assert order == ["copy", "look"]


def test_out_of_memory_halves_the_budget_and_changes_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from gruppo.rollout.fused_forward import FusedForward

    ours = engine()
    expected = facts(ours.generate(requests(6), SAMPLING))
    call, error = FusedForward.__call__, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")

    def tight(self: Any, batch: Any, cache: Any) -> Any:
        if cache.num_rows > 5:
            raise error
        return call(self, batch, cache)

    monkeypatch.setattr(FusedForward, "__call__", tight)
    assert facts(ours.generate(requests(6), SAMPLING)) == expected
    monkeypatch.setattr(FusedForward, "__call__", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(torch.OutOfMemoryError):
        ours.generate(requests(6), SAMPLING)
