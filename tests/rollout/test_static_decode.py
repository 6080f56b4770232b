"""Recorded decoding steps against steps of the live rows: same tokens, same log-probs, whatever the bucket."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine_models import FUSED, model_of
from graph_tape import Tape, Tapes
from gruppo.errors import RolloutError
from gruppo.rollout.batches import Slots, prefill_batch
from gruppo.rollout.engine import EmbeddedEngine
from gruppo.rollout.fused_forward import FusedForward
from gruppo.rollout.kv_cache import KVCache
from gruppo.rollout.scheduler import Scheduler
from gruppo.rollout.sequence import Sequences
from gruppo.rollout.settings import settings_of
from gruppo.rollout.static_batch import Bucket, StaticBatch
from gruppo.rollout.static_decode import StaticDecode, StaticSteps
from gruppo.types import Completion, Group, Prompt, RolloutRequest, SamplingParams
from tiny_models import EOS, PAD, VOCAB

SAMPLING = SamplingParams(
    max_tokens=9, temperature=0.9, eos_token_ids=(EOS, 17, 4, 9), pad_token_id=PAD, seed=3, step=1
)
PROMPTS = [Prompt(i, "", ids) for i, ids in enumerate([[5, 6, 7, 8, 9, 3, 2], [3], [4, 4, 2]])]


def requests(*num_samples: int) -> list[RolloutRequest]:
    return [RolloutRequest(prompt, range(num)) for prompt, num in zip(PROMPTS, num_samples, strict=True)]


def facts(groups: list[Group]) -> list[tuple[int, int, list[int], str]]:
    return [(g.prompt.id, c.sample, c.token_ids, c.finish_reason) for g in groups for c in g.completions]


def logprobs(groups: list[Group]) -> torch.Tensor:
    rows: list[Completion] = [c for group in groups for c in group.completions]
    return torch.tensor([x for c in rows for x in c.sampler_logprobs or []])


def taped(engine: EmbeddedEngine) -> Tapes:
    """Makes the engine record its steps, as on a CUDA device."""
    tapes = Tapes()
    engine._graphs = tapes  # type: ignore[assignment]
    return tapes


@pytest.mark.parametrize("family", sorted(FUSED))
def test_replayed_steps_give_the_tokens_of_live_ones(family: str) -> None:
    model = model_of(family, dtype=torch.float64)
    plain, replayed = EmbeddedEngine(model), EmbeddedEngine(model)
    tapes, lengths = taped(replayed), set[int]()
    for sampling in (SAMPLING, replace(SAMPLING, step=2, temperature=1.0), replace(SAMPLING, is_greedy=True)):
        expected = plain.generate(requests(5, 2, 4), sampling)
        groups = replayed.generate(requests(5, 2, 4), sampling)
        assert facts(groups) == facts(expected)
        torch.testing.assert_close(logprobs(groups), logprobs(expected), rtol=1e-5, atol=1e-6)
        lengths |= {len(c.token_ids) for g in groups for c in g.completions}
    assert len(lengths) > 2, "the test needs ragged lengths"
    assert 0 < tapes.num_recorded < tapes.num_played


@pytest.mark.parametrize("change", [{"top_p": 0.8}, {"top_k": 5, "min_p": 0.02}, {"repetition_penalty": 1.3}])
def test_other_draws_are_made_outside(change: dict[str, Any]) -> None:
    model, sampling = model_of("qwen3", dtype=torch.float64), replace(SAMPLING, **change)
    replayed = EmbeddedEngine(model)
    tapes = taped(replayed)
    assert facts(replayed.generate(requests(4, 4, 4), sampling)) == facts(
        EmbeddedEngine(model).generate(requests(4, 4, 4), sampling)
    )
    assert tapes.num_played > 0


@pytest.mark.parametrize("budget", [1, 20, 33, 60])
def test_rows_that_are_admitted_later(budget: int) -> None:
    model = model_of("gemma3", dtype=torch.float64)
    replayed = EmbeddedEngine(model, max_live_tokens=budget)
    taped(replayed)
    expected = EmbeddedEngine(model).generate(requests(3, 6, 4), SAMPLING)
    assert facts(replayed.generate(requests(3, 6, 4), SAMPLING)) == facts(expected)


def test_growing_tails_are_recorded_anew_and_buckets_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gruppo.rollout.kv_cache.FIRST_TAIL", 4)
    model, sampling = model_of("qwen3", dtype=torch.float64), replace(SAMPLING, max_tokens=33, eos_token_ids=())
    replayed = EmbeddedEngine(model)
    tapes = taped(replayed)
    expected = EmbeddedEngine(model).generate(requests(5, 1, 2), sampling)
    assert facts(replayed.generate(requests(5, 1, 2), sampling)) == facts(expected)
    # Tails of 4, 8, 16 and 32 tokens (the last token is not stored), and the same rows all the time.
    assert (tapes.num_recorded, tapes.num_played) == (4, 32)


def test_a_step_that_cannot_be_recorded_is_run_and_not_asked_for_again() -> None:
    model = model_of("qwen3")
    engine = EmbeddedEngine(model)
    asked = []

    class Nothing:
        def recorder(self) -> Any:
            return asked.append

    engine._graphs = Nothing()  # type: ignore[assignment]
    assert facts(engine.generate(requests(3, 3, 3), SAMPLING)) == facts(
        EmbeddedEngine(model).generate(requests(3, 3, 3), SAMPLING)
    )
    assert len(asked) == 1


def test_diverged_weights_are_reported() -> None:
    model = model_of("qwen3")
    engine = EmbeddedEngine(model)
    taped(engine).recorder()
    engine.generate(requests(1, 1, 1), SAMPLING)
    sequences, slots, cache, decode = live_rows(model)
    steps = StaticSteps(decode, Tapes().recorder(), width=3)
    assert steps.step(slots, sequences, cache) is not None
    decode.forward._layout.norm_D.fill_(torch.nan)  # type: ignore[attr-defined]
    with pytest.raises(RolloutError, match="diverged"):
        steps.step(slots, sequences, cache)


def live_rows(model: Any, *, num_rows: int = 4, num_prompts: int = 2) -> tuple[Sequences, Slots, KVCache, StaticDecode]:
    """Two prompts with three rows and one, two tokens on, in a cache with room for more."""
    sequences = Sequences(requests(3, 1, 0), SAMPLING, max_tokens=9, needs_uniforms=True)
    scheduler = Scheduler(sequences.prompt_N.tolist(), [7, 1, 3], max_tokens=9, budget=None)
    scheduler.admit()
    cache = KVCache(num_prompts=num_prompts, prefix_tokens=7, num_rows=num_rows, max_tail_tokens=9)
    forward = FusedForward(model, dtype=model.dtype, num_positions=16)
    forward(prefill_batch(sequences, [0, 1], first_slot=0, cache=cache, device=torch.device("cpu")), cache)
    slots = Slots.of(scheduler, sequences, torch.device("cpu"))
    for tokens in ([3, 8, 5, 2], [9, 9, 4, 6]):
        sequences.append(slots.rows, np.array(tokens), np.zeros(4, dtype=np.float32))
        forward(slots.decode_batch(sequences, cache), cache)
    return sequences, slots, cache, StaticDecode(forward, settings_of(SAMPLING))


@pytest.mark.parametrize("family", ["qwen3", "gemma2-softcap", "mistral"])
@pytest.mark.parametrize("bucket", [(4, 2, 3), (8, 2, 3), (4, 4, 5), (16, 8, 8)])
def test_padding_changes_nothing_for_live_rows(family: str, bucket: tuple[int, int, int]) -> None:
    model = model_of(family, dtype=torch.float64)
    sequences, slots, cache, decode = live_rows(model, num_rows=16, num_prompts=8)
    expected_NV = decode.forward(slots.decode_batch(sequences, cache), cache)
    num_rows, num_prompts, width = bucket
    batch = StaticBatch(Bucket(num_rows, num_prompts, width, cache.tail_tokens), torch.device("cpu"))
    batch.place(slots)
    batch.load(slots, sequences)
    before = [half[:4].clone() for half in (cache._layers[0].tail_k, cache._layers[1].tail_v)]
    output = decode(batch, cache)
    torch.testing.assert_close(output.logits_NV[:4], expected_NV, rtol=1e-9, atol=1e-9)
    assert output.choice is not None
    assert output.choice.tokens_N.shape == (num_rows,)
    assert bool(torch.isfinite(output.choice.logprobs_N).all())
    assert ((output.choice.tokens_N >= 0) & (output.choice.tokens_N < VOCAB)).all()
    # A second time gives the same, and padding rows wrote nowhere but to the beginning of free tails.
    torch.testing.assert_close(decode(batch, cache).logits_NV[:4], expected_NV, rtol=1e-9, atol=1e-9)
    after = [half[:4] for half in (cache._layers[0].tail_k, cache._layers[1].tail_v)]
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    assert not cache._layers[0].tail_k[4:, 1:].any()


def test_buckets_are_powers_of_two_within_the_cache() -> None:
    _, slots, cache, _ = live_rows(model_of("qwen3"), num_rows=6, num_prompts=3)
    assert Bucket.of(slots, cache, width=3) == Bucket(4, 2, 3, 9)
    more = replace(slots, rows=np.arange(5), prompt_lengths_P=torch.tensor([7, 1, 1]))
    assert Bucket.of(more, cache, width=3) == Bucket(6, 3, 3, 9)
    assert Bucket.of(replace(slots, rows=np.arange(1)), cache, width=3).num_rows == 1


@pytest.mark.parametrize(
    "ask", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: bool(x[0])]
)
def test_the_tape_refuses_what_a_graph_cannot_hold(ask: Any) -> None:
    with pytest.raises(AssertionError, match="asks for data"), Tape():
        ask(torch.ones(3))


class _StaysOnDevice(TorchDispatchMode):
    """Fails when a tensor comes from another device or goes to one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in [x for x in (*args, result) if isinstance(x, torch.Tensor)]:
            assert tensor.device.type == "meta", f"{func} with a tensor on {tensor.device}"
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", sorted(FUSED))
def test_a_step_stays_on_the_device(family: str, dtype: torch.dtype) -> None:
    """On the meta device: code takes the same ways as on a CUDA device, and whoever asked for a value would fail."""
    with torch.no_grad():
        model = model_of(family, dtype=dtype).to("meta")
        forward = FusedForward(model, dtype=dtype, num_positions=16)
        cache = KVCache(num_prompts=2, prefix_tokens=7, num_rows=4, max_tail_tokens=9)
        batch = StaticBatch.__new__(StaticBatch)
        for name, shape in {
            "_columns_CN": (4, 4),
            "_prompt_lengths_P": (2,),
            "_cell_rows": (6,),
            "_row_cells": (4,),
        }.items():
            setattr(batch, name, torch.zeros(shape, dtype=torch.int64, device="meta"))
        batch.uniforms_N = torch.zeros(4, dtype=torch.float64, device="meta")
        batch.bucket = Bucket(4, 2, 3, cache.tail_tokens)
        decode = StaticDecode(forward, settings_of(SAMPLING))
        decode(batch, cache)
        with _StaysOnDevice():
            output = decode(batch, cache)
    assert output.logits_NV.shape == (4, VOCAB)
    assert output.choice is not None
    assert output.choice.tokens_N.dtype == torch.int64
