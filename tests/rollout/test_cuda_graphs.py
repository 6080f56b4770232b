"""CudaGraphs. Where there is no CUDA device: that recording fails once, aloud, and the rollout goes on.

Pools and streams are tried on a stand-in that knows torch's rules for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine_models import FUSED, model_of
from gruppo.rollout.choose import Choice
from gruppo.rollout.cuda_graphs import CudaGraphs
from gruppo.rollout.engine import EmbeddedEngine
from gruppo.rollout.static_decode import StepOutput
from gruppo.types import Group, Prompt, RolloutRequest, SamplingParams
from tiny_models import EOS, PAD

SAMPLING = SamplingParams(max_tokens=80, temperature=0.9, eos_token_ids=(EOS, 17), pad_token_id=PAD, seed=3, step=1)
REQUESTS = [RolloutRequest(Prompt(i, "", ids), range(5)) for i, ids in enumerate([[5, 6, 7, 8, 9, 3, 2], [3], [4, 2]])]


def on_a_device(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


def facts(groups: list[Group]) -> list[tuple[int, int, list[int]]]:
    return [(group.prompt.id, c.sample, c.token_ids) for group in groups for c in group.completions]


def logprobs(groups: list[Group]) -> torch.Tensor:
    return torch.tensor([x for group in groups for c in group.completions for x in c.sampler_logprobs or []])


def without_a_device() -> CudaGraphs:
    """Fails to record: a CPU build of torch has no graphs, and a CUDA build has no device of this number."""
    return CudaGraphs(torch.device("cuda", 99))


def nothing() -> StepOutput:
    empty = torch.zeros(0)
    return StepOutput(empty, Choice(empty, empty, empty, None))


class FakeStream:
    def wait_stream(self, _stream: FakeStream) -> None:
        """All work is done at once here."""


class FakeCuda:
    """In the place of torch.cuda: a current stream, and pools that may not be used again once their graphs are gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, can_capture: bool = True) -> None:
        self.default = self.current = FakeStream()
        self.uses: list[int] = []
        cuda = self

        class Graph:
            pool: int | None = None

            def replay(self) -> None:
                """The outputs are there already."""

            def __del__(self) -> None:
                if self.pool is not None:
                    cuda.uses[self.pool] -= 1

        @contextmanager
        def graph(graph: Graph, *, pool: int, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
            assert capture_error_mode == "thread_local"
            if cuda.uses[pool] == 0:
                raise RuntimeError("use_count > 0 INTERNAL ASSERT FAILED")
            graph.pool = pool
            cuda.uses[pool] = max(cuda.uses[pool], 0) + 1
            cuda.current = stream
            yield
            # As torch does it: who cannot end the capture does not come to the line that restores the stream.
            if not can_capture:
                raise RuntimeError("operation failed due to a previous error during capture")
            cuda.current = cuda.default

        fakes: dict[str, Any] = {
            "device": nullcontext,
            "graph_pool_handle": self._new_pool,
            "current_stream": lambda: self.current,
            "stream": self._stream,
            "Stream": lambda _device: FakeStream(),
            "CUDAGraph": Graph,
            "graph": graph,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def _new_pool(self) -> int:
        self.uses.append(-1)
        return len(self.uses) - 1

    @contextmanager
    def _stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


def test_graphs_share_a_pool_until_the_last_one_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, graphs = FakeCuda(monkeypatch), CudaGraphs(torch.device("cuda"))
    record = graphs.recorder()
    kept = [record(nothing), record(nothing)]
    assert cuda.uses == [2]
    del kept[0]
    kept.append(record(nothing))
    assert cuda.uses == [2]
    kept.clear()
    again = record(nothing)
    assert again is not None
    assert cuda.uses == [0, 1]
    assert not graphs.has_failed


def test_a_rollout_whose_tails_grow_stays_with_its_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every growth drops all graphs. (The stand-in gives the outputs of the recording again: tokens mean nothing.)"""
    monkeypatch.setattr("gruppo.rollout.kv_cache.FIRST_TAIL", 4)
    cuda, engine = FakeCuda(monkeypatch), EmbeddedEngine(model_of("qwen3"))
    engine._graphs = CudaGraphs(torch.device("cuda"))
    engine.generate(REQUESTS, replace(SAMPLING, max_tokens=33, eos_token_ids=()))
    assert not engine._graphs.has_failed
    assert cuda.uses == [0, 0, 0, 0]


def test_a_failed_capture_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, graphs = FakeCuda(monkeypatch, can_capture=False), CudaGraphs(torch.device("cuda"))
    assert graphs.recorder()(nothing) is None
    assert graphs.has_failed
    assert cuda.current is cuda.default


def test_a_failed_recording_is_told_once_and_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    graphs, calls = without_a_device(), []

    def step() -> StepOutput:
        calls.append(1)
        return nothing()

    with caplog.at_level(logging.WARNING):
        assert graphs.recorder()(step) is None
        assert graphs.recorder()(step) is None
    assert not calls
    assert len(caplog.records) == 1
    assert "recording a CUDA graph failed" in caplog.text
    assert "run one by one" in caplog.text


def test_rollouts_go_on_without_graphs(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("qwen3")
    engine = EmbeddedEngine(model)
    engine._graphs = without_a_device()
    sampling = replace(SAMPLING, max_tokens=6)
    with caplog.at_level(logging.WARNING):
        groups = [engine.generate(REQUESTS, sampling) for _ in range(2)]
    assert [facts(g) for g in groups] == [facts(EmbeddedEngine(model).generate(REQUESTS, sampling))] * 2
    assert len(caplog.records) == 1


def test_there_are_none_on_a_cpu() -> None:
    assert EmbeddedEngine(model_of("qwen3"), cuda_graphs=True)._graphs is None


@on_a_device
@pytest.mark.parametrize("family", sorted(FUSED))
def test_graphs_sample_what_single_steps_sample(family: str) -> None:
    model = model_of(family, dtype=torch.float64).to("cuda")
    eager, graphs = EmbeddedEngine(model, cuda_graphs=False), EmbeddedEngine(model)
    for sampling in (SAMPLING, replace(SAMPLING, top_k=5), replace(SAMPLING, is_greedy=True)):
        expected, groups = eager.generate(REQUESTS, sampling), graphs.generate(REQUESTS, sampling)
        assert facts(groups) == facts(expected)
        torch.testing.assert_close(logprobs(groups), logprobs(expected), rtol=1e-5, atol=1e-6)
    assert graphs._graphs is not None
    assert not graphs._graphs.has_failed


@on_a_device
def test_half_precision(caplog: pytest.LogCaptureFixture) -> None:
    model = model_of("qwen3", dtype=torch.bfloat16).to("cuda")
    graphs = EmbeddedEngine(model)
    first = graphs.generate(REQUESTS, SAMPLING)
    # New weights, new copies of them, new graphs.
    assert facts(graphs.generate(REQUESTS, SAMPLING)) == facts(first)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3.0)
    assert facts(graphs.generate(REQUESTS, SAMPLING)) != facts(first)
    assert not caplog.records


@on_a_device
def test_as_on_the_cpu() -> None:
    model = model_of("qwen3", dtype=torch.float64)
    expected = EmbeddedEngine(model).generate(REQUESTS, SAMPLING)
    assert facts(EmbeddedEngine(model.to("cuda")).generate(REQUESTS, SAMPLING)) == facts(expected)
