"""Types of the embedded engine's products: coarser ones, a head in float32, and how often weights are cast."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine_models import model_of
from gruppo.policy.load import _cast_head
from gruppo.rollout.choose import choose
from gruppo.rollout.engine import EmbeddedEngine
from gruppo.rollout.hf import HFEngine
from gruppo.rollout.linear import effective_weight
from gruppo.types import Group, Prompt, RolloutRequest, SamplingParams
from tiny_models import EOS, PAD

SAMPLING = SamplingParams(max_tokens=9, temperature=0.9, eos_token_ids=(EOS,), pad_token_id=PAD, seed=3, step=1)


def requests() -> list[RolloutRequest]:
    prompts = enumerate([[5, 6, 7, 8, 9, 3, 2], [3], [4, 4, 2]])
    return [RolloutRequest(Prompt(i, "", ids), range(3)) for i, ids in prompts]


def logprobs(groups: list[Group]) -> torch.Tensor:
    return torch.tensor([x for group in groups for c in group.completions for x in c.sampler_logprobs or []])


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_a_coarser_rollout_dtype_moves_logprobs_a_little(family: str) -> None:
    model = model_of(family)
    exact = EmbeddedEngine(model).generate(requests(), SAMPLING)[0].completions[0]
    coarse = EmbeddedEngine(model, rollout_dtype=torch.bfloat16)
    rounded = coarse.generate(requests(), SAMPLING)[0].completions[0]
    gap = abs((exact.sampler_logprobs or [0])[0] - (rounded.sampler_logprobs or [0])[0])
    assert 0 < gap < 0.1
    assert coarse.health()["forward"] == ("fused" if family == "qwen3" else "modules")
    assert model.dtype == torch.float32


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_autocast_holds_for_the_fused_and_the_modules_forward(family: str) -> None:
    model = model_of(family)
    exact = EmbeddedEngine(model).generate(requests(), SAMPLING)
    context = lambda: torch.autocast("cpu", dtype=torch.bfloat16)  # noqa: E731
    rounded = EmbeddedEngine(model, autocast=context).generate(requests(), SAMPLING)
    gap = abs(float(logprobs(exact)[0] - logprobs(rounded)[0]))
    assert 0 < gap < 0.1


def with_float32_head(family: str, **traits: Any) -> Any:
    """As the policy's `cast_lm_head_to_fp32` makes it."""
    model = model_of(family, **traits)
    _cast_head(model)
    return model


@pytest.mark.parametrize(("family", "forward"), [("qwen3", "fused"), ("llama-biased", "fused"), ("gpt2", "modules")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_float32_head_stays_one(
    family: str, forward: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast and with weights in half precision; tied to the embedding (llama-biased, gpt2) or not."""
    seen: list[torch.Tensor] = []

    def seeing(logits_NV: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(logits_NV)
        return choose(logits_NV, *args, **kwargs)

    monkeypatch.setattr("gruppo.rollout.generation.choose", seeing)
    model = with_float32_head(family, dtype=dtype)
    half = torch.bfloat16
    context = nullcontext if dtype == half else lambda: torch.autocast("cpu", dtype=half)
    ours = EmbeddedEngine(model, autocast=context)
    mine = ours.generate(requests(), SAMPLING)
    assert ours.health()["forward"] == forward
    for logits_NV in seen:
        assert logits_NV.dtype == torch.float32
        assert not torch.equal(logits_NV, logits_NV.to(half).float())
    theirs = HFEngine(model, autocast=context).generate(requests(), SAMPLING)
    gap = abs(float(logprobs(mine)[0] - logprobs(theirs)[0]))
    assert gap < 0.1


def test_the_products_of_a_tied_model_stay_in_its_type() -> None:
    """The head's float32 is the embedding's too, but what the embedding gives is not."""
    model = with_float32_head("llama-biased", dtype=torch.bfloat16)
    assert model.get_input_embeddings().weight.dtype == torch.float32
    assert EmbeddedEngine(model)._product_dtype() == torch.bfloat16


def test_a_float32_head_is_read_and_not_multiplied_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it does to unit vectors, a large head would cost as much as a prefill."""
    model = with_float32_head("qwen3")
    monkeypatch.setattr(torch, "eye", None)
    weight_VD, bias_V = effective_weight(model.get_output_embeddings(), model.config.hidden_size)
    assert weight_VD is model.get_output_embeddings().weight
    assert bias_V is None


def test_a_layer_with_a_twist_is_multiplied_out() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    layer = Doubled(3, 5)
    weight_VD, bias_V = effective_weight(layer, 3)
    assert bias_V is not None
    torch.testing.assert_close((weight_VD, bias_V), (2 * layer.weight, 2 * layer.bias))


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_weights_are_cast_once_in_a_rollout(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast forgets its copies when the outermost context ends, so one has to be open all the time."""
    monkeypatch.setattr("gruppo.rollout.engine.is_recognised", lambda _: False)
    model = model_of(family)
    ours = EmbeddedEngine(model, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    ours.generate(requests(), SAMPLING)
    assert ours.health()["forward"] == "modules"
    head = model.get_output_embeddings().weight
    casts: list[int] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and args[0].data_ptr() == head.data_ptr():
                casts.append(1)
            return func(*args, **(kwargs or {}))

    with Counting():
        first = ours.generate(requests(), SAMPLING)
        with torch.no_grad():
            head.mul_(1.5)
        second = ours.generate(requests(), SAMPLING)
    assert sum(casts) == 2
    assert logprobs(second)[0] != logprobs(first)[0]
