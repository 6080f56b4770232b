"""packed_logprobs against the padded forward: values, gradients, fallbacks. The padded one has tests of its own."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import FalconMambaConfig, FalconMambaForCausalLM, GptOssConfig, GptOssForCausalLM
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from gruppo.policy import head as head_module
from gruppo.policy import shared_prefix
from gruppo.policy.attention_switch import _mask
from gruppo.policy.load import load_policy
from gruppo.policy.logprobs import Forward, token_logprobs
from gruppo.policy.packing import cut_by_tokens
from gruppo.policy.reference import reference_for
from gruppo.policy.shared_prefix import obstacle, packed_logprobs
from gruppo.types import TrainBatch
from tiny_models import FAMILIES, PAD, VOCAB, tiny

# peft 0.21 asks transformers 5.23 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

# Three groups, out of order: ragged prompts and completions, one of them empty, one of one token, one row alone.
PROMPTS = [[5, 6, 7, 8, 9, 2], [3], [5, 6, 7, 8, 9, 2], [4, 4], [5, 6, 7, 8, 9, 2], [3]]
COMPLETIONS = [[10, 11, 1], [0, 20, 0, 1], [12, 13, 14, 15, 16, 17], [7, 8, 2, 11, 12], [], [5]]
GROUPS = [0, 1, 0, 2, 0, 1]
# Tokens that the model did not make, in the middle and at the end.
UNTRAINED = {(2, 2), (2, 3), (3, 4)}


def batch_of(
    prompts: list[list[int]] = PROMPTS,
    completions: list[list[int]] = COMPLETIONS,
    groups: list[int] = GROUPS,
    untrained: set[tuple[int, int]] = UNTRAINED,
) -> TrainBatch:
    trained_NT = torch.zeros(len(prompts), max((len(ids) for ids in completions), default=0), dtype=torch.bool)
    for i, ids in enumerate(completions):
        for t in range(len(ids)):
            trained_NT[i, t] = (i, t) not in untrained
    return TrainBatch(prompts, completions, trained_NT, torch.zeros(len(prompts)), groups, [0] * len(prompts))


def run(function: Any, model: nn.Module, batch: TrainBatch, **kwargs: Any) -> Forward:
    settings = {"temperature": 0.7, "pad_token_id": PAD, "with_entropy": True, "entropy_needs_grad": True, **kwargs}
    return function(model, batch, **settings)


def with_gradients(function: Any, model: nn.Module, batch: TrainBatch, **kwargs: Any) -> dict[str, Tensor]:
    """Everything that a forward gives, and the gradient of a mix of it for every parameter."""
    forward = run(function, model, batch, **kwargs)
    mix_NT = torch.linspace(-1, 2, forward.logprobs_NT.numel(), dtype=torch.float64).view(forward.logprobs_NT.shape)
    loss = (forward.logprobs_NT * mix_NT).sum()
    if forward.entropy_NT is not None and forward.entropy_NT.requires_grad:
        loss = loss + 0.3 * (forward.entropy_NT * mix_NT).sum()
    if forward.aux_loss is not None:
        loss = loss + forward.aux_loss
    model.zero_grad()
    loss.backward()
    results = {f"grad {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for name in ("logprobs_NT", "entropy_NT", "aux_loss"):
        if getattr(forward, name) is not None:
            results[name] = getattr(forward, name).detach()
    return results


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor], rtol: float, atol: float) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(
            mine[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture(autouse=True)
def _no_fallback(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A test that compares the two must not compare the padded forward with itself."""
    if "falls_back" not in request.node.name:
        compared: list[int] = []

        def only_in_trial(model: Any, batch: TrainBatch, **kwargs: Any) -> Forward:
            compared.append(len(batch))
            assert len(batch) in (0, 5), "packed_logprobs fell back"
            return token_logprobs(model, batch, **kwargs)

        monkeypatch.setattr(shared_prefix, "token_logprobs", only_in_trial)


TRAITS: dict[str, dict[str, Any]] = {"gemma2": {"attn_logit_softcapping": 2.0}}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_padded_forward_with_gradients(family: str, dtype: torch.dtype) -> None:
    """Windows of four tokens cross the prompt of six. Norms and routers are float32 inside, whatever the model is."""
    model = tiny(family, dtype=dtype, **TRAITS.get(family, {}))
    theirs = with_gradients(token_logprobs, model, batch_of(), with_aux_loss=family == "mixtral")
    mine = with_gradients(packed_logprobs, model, batch_of(), with_aux_loss=family == "mixtral")
    tolerance = 2e-5 if dtype == torch.float64 else 5e-4
    assert_same(mine, theirs, rtol=tolerance, atol=tolerance)
    assert mine["logprobs_NT"].dtype == dtype


def test_is_exact_to_rounding_in_fp64() -> None:
    """GPT-2 has no float32 inside."""
    model = tiny("gpt2", dtype=torch.float64)
    theirs = with_gradients(token_logprobs, model, batch_of())
    assert_same(with_gradients(packed_logprobs, model, batch_of()), theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("prompts", "completions", "groups"),
    [
        ([[3, 4, 5]], [[6, 7]], [0]),  # G = 1
        ([[3]] * 3, [[6], [7], [8]], [0, 0, 0]),  # T = 1, P = 1
        ([[3, 4]] * 2, [[], [8, 9]], [0, 0]),
        ([[3, 4], [3, 5]], [[8, 9], [8, 9]], [0, 0]),  # one group id, two prompts
        ([[3, 4]] * 4, [[8, 9, 10]] * 4, [0, 0, 1, 1]),  # equal in everything
    ],
)
def test_shapes_at_the_edge(prompts: list[list[int]], completions: list[list[int]], groups: list[int]) -> None:
    batch = batch_of(prompts, completions, groups, untrained=set())
    model = tiny("gpt2", dtype=torch.float64)
    theirs = with_gradients(token_logprobs, model, batch)
    assert_same(with_gradients(packed_logprobs, model, batch), theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("needs_grad", [True, False])
def test_entropy_is_detached_unless_asked_for(needs_grad: bool) -> None:
    forward = run(packed_logprobs, tiny("llama"), batch_of(), entropy_needs_grad=needs_grad)
    assert forward.entropy_NT is not None
    assert forward.entropy_NT.requires_grad is needs_grad
    assert run(packed_logprobs, tiny("llama"), batch_of(), with_entropy=False).entropy_NT is None


def test_untrained_positions_are_zero_and_batches_without_anything_to_train_work() -> None:
    model = tiny("llama")
    batch = batch_of()
    forward = run(packed_logprobs, model, batch)
    assert forward.logprobs_NT.shape == batch.trained_NT.shape
    assert (forward.logprobs_NT[~batch.trained_NT] == 0).all()
    assert (forward.logprobs_NT[batch.trained_NT] < 0).all()
    assert run(packed_logprobs, model, batch_of([], [], [])).logprobs_NT.shape == (0, 0)
    batch.trained_NT[:] = False
    gradients = with_gradients(packed_logprobs, model, batch)
    assert all((value == 0).all() for value in gradients.values())
    assert "grad model.embed_tokens.weight" in gradients


def test_a_changed_sibling_changes_nothing_of_its_brothers() -> None:
    """Neither their log-probs nor what they give the prompt's gradient; and a longer one must not move them, either."""
    model = tiny("llama", dtype=torch.float64)
    prompt, others = [5, 6, 7, 8], [[10, 11, 12], [13, 14]]
    results = []
    for sibling in ([15, 16, 17], [18, 19, 2], [15] * 9):
        batch = batch_of([prompt] * 3, [others[0], sibling, others[1]], [0] * 3, untrained=set())
        logprobs_NT = run(packed_logprobs, model, batch).logprobs_NT
        brothers = torch.cat([logprobs_NT[0, :3], logprobs_NT[2, :2]])
        embedding = model.model.embed_tokens.weight
        (gradient,) = torch.autograd.grad(brothers.sum(), embedding)
        results.append((brothers.detach(), gradient))
    for brothers, gradient in results[1:]:
        torch.testing.assert_close(brothers, results[0][0], rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient, results[0][1], rtol=0, atol=1e-6)
        assert (gradient[15:20] == 0).all(), "a brother's loss reached the sibling's tokens"


@pytest.mark.parametrize("budget", [1, 9, 14, 1000])
def test_cut_into_forwards_the_gradients_add_up(budget: int) -> None:
    """Groups larger than the budget are split, each part with its prompt."""
    model = tiny("gpt2", dtype=torch.float64)
    batch = batch_of()
    expected = with_gradients(packed_logprobs, model, batch, with_entropy=False)
    mix_NT = torch.linspace(-1, 2, batch.trained_NT.numel(), dtype=torch.float64).view(batch.trained_NT.shape)
    lengths = ([len(ids) for ids in batch.prompt_ids], [len(ids) for ids in batch.completion_ids])
    model.zero_grad()
    for part in cut_by_tokens(*lengths, batch.group_ids, budget):
        logprobs_NT = run(packed_logprobs, model, batch.rows(part), with_entropy=False).logprobs_NT
        torch.testing.assert_close(
            logprobs_NT, expected["logprobs_NT"][part][:, : logprobs_NT.shape[1]], rtol=0, atol=1e-12
        )
        (logprobs_NT * mix_NT[part][:, : logprobs_NT.shape[1]]).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[f"grad {name}"], rtol=0, atol=1e-11)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_gradient_checkpointing_changes_nothing(family: str, use_reentrant: bool) -> None:
    """Layers run again in the backward pass, when the model's configs say something else already."""
    model = load_policy(tiny(family, dtype=torch.float64), disable_dropout=True).train()
    expected = with_gradients(packed_logprobs, model, batch_of())
    load_policy(model, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    own = [vars(module).get("_gradient_checkpointing_func") for module in model.modules()]
    assert_same(with_gradients(packed_logprobs, model, batch_of()), expected, rtol=0, atol=1e-12)
    assert [vars(module).get("_gradient_checkpointing_func") for module in model.modules()] == own


def test_under_an_adapter_on_body_and_head() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny("llama", dtype=torch.float64), config)
    theirs = with_gradients(token_logprobs, model, batch_of())
    assert any("lora_A" in name for name in theirs)
    assert_same(with_gradients(packed_logprobs, model, batch_of()), theirs, rtol=1e-5, atol=1e-5)


def test_the_reference_takes_the_same_path() -> None:
    peft = pytest.importorskip("peft")
    settings = {"temperature": 0.7, "pad_token_id": PAD}
    adapted = peft.get_peft_model(tiny("qwen2"), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for policy, is_fresh_adapter in ((tiny("qwen2"), False), (adapted, True)):
        packed = reference_for(policy, is_fresh_adapter=is_fresh_adapter, logprobs=packed_logprobs)
        padded = reference_for(policy, is_fresh_adapter=is_fresh_adapter)
        torch.testing.assert_close(
            packed.logprobs(batch_of(), **settings), padded.logprobs(batch_of(), **settings), rtol=0, atol=1e-5
        )


def test_bf16_autocast_is_near_and_its_gradients_are_float32() -> None:
    model = tiny("qwen3")
    exact = run(packed_logprobs, model, batch_of()).logprobs_NT
    with torch.autocast("cpu", dtype=torch.bfloat16):
        forward = run(packed_logprobs, model, batch_of())
    assert forward.logprobs_NT.dtype == torch.float32
    assert 1e-5 < (forward.logprobs_NT - exact).abs().max() < 0.15
    forward.logprobs_NT.sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.dtype == torch.float32


def test_the_model_is_left_as_it_was() -> None:
    model = tiny("gemma2").train()
    model.config._attn_implementation = "eager"
    run(packed_logprobs, model, batch_of())
    assert model.config._attn_implementation == "eager"
    assert all(module.training for module in model.modules())
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(model(ids).logits, tiny("gemma2")(ids).logits)


def test_prompts_are_computed_once_and_nothing_unneeded_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    run(packed_logprobs, model, batch_of())
    seen: list[torch.Size] = []
    model.model.embed_tokens.register_forward_hook(lambda _, args, __: seen.append(args[0].shape))
    run(packed_logprobs, model, batch_of())
    # Prompts 6 + 1 + 2; of the completions all but what follows the last prediction: 2 + 3 + 5 + 3 + 0 + 0.
    assert seen == [(1, 9 + 13)]


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple) else [result]:
            if isinstance(x, Tensor) and x.untyped_storage().nbytes() // x.element_size() > self.numel:
                self.numel = x.untyped_storage().nbytes() // x.element_size()
        return result


def test_no_tensor_grows_with_tokens_times_vocabulary_or_with_tokens_squared(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, block = 2003, 4 * 2003
    monkeypatch.setattr(head_module, "BLOCK_TOKENS", 1)
    monkeypatch.setattr(head_module, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(head_module, "KEPT_ELEMENTS", block)
    model = tiny("llama", vocab_size=vocab, max_position_embeddings=1024)
    prompt = [i % vocab for i in range(300)]
    batch = batch_of([prompt] * 4, [[5] * 100] * 4, [0] * 4, untrained=set())
    run(packed_logprobs, model, batch)  # the trial
    with LargestTensor() as seen:
        run(packed_logprobs, model, batch).logprobs_NT.sum().backward()
    num_tokens = 300 + 4 * 99
    weights = max(parameter.numel() for parameter in model.parameters())
    assert weights < 400 * vocab < num_tokens**2 * 2
    assert seen.numel <= max(weights, block, num_tokens * 2 * 24), "24 is the widest activation"


# -- what falls back


def fallback_of(model: Any, batch: TrainBatch, caplog: pytest.LogCaptureFixture) -> tuple[dict[str, Tensor], str]:
    with caplog.at_level(logging.WARNING):
        mine = with_gradients(packed_logprobs, model, batch)
    return mine, caplog.text


def test_attention_dropout_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("llama", attention_dropout=0.5).train()
    torch.manual_seed(0)
    mine, text = fallback_of(model, batch_of(), caplog)
    torch.manual_seed(0)
    assert_same(mine, with_gradients(token_logprobs, model, batch_of()), rtol=0, atol=0)
    assert text.count("attention dropout") == 1
    assert obstacle(model) == "its attention asks for attention dropout", "the next forward does not try again"
    assert obstacle(model.eval()) is None, "without dropout it can be packed"


def test_attention_sinks_fall_back_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=4,
        pad_token_id=PAD,
    )  # fmt: skip
    model = GptOssForCausalLM(config).eval()
    model.set_experts_implementation("eager")
    mine, text = fallback_of(model, batch_of(), caplog)
    assert_same(mine, with_gradients(token_logprobs, model, batch_of()), rtol=0, atol=0)
    assert "attention sinks" in text


def test_recurrent_models_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    config = FalconMambaConfig(
        vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=2, pad_token_id=PAD, use_mambapy=False
    )
    model = FalconMambaForCausalLM(config).eval()
    assert obstacle(model) is not None


def test_leaking_rows_are_noticed_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    """A layer that mixes neighbouring tokens, with nothing in the config to tell."""
    model = tiny("llama", dtype=torch.float64)
    norm = model.model.layers[1].post_attention_layernorm
    norm.register_forward_hook(lambda _, __, out: out + 0.5 * torch.roll(out, 1, dims=1) * (out.shape[1] > 1))
    mine, text = fallback_of(model, batch_of(), caplog)
    assert_same(mine, with_gradients(token_logprobs, model, batch_of()), rtol=0, atol=0)
    assert "differ from the padded ones" in text


def test_the_warning_comes_once_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("llama")
    model.config.layer_types = ["full_attention", "linear_attention"]
    for _ in range(2):
        _, text = fallback_of(model, batch_of(), caplog)
    assert text.count("has layers of type linear_attention") == 1


def test_masks_of_another_kind_falls_back() -> None:
    """A model that makes its masks itself, one whose mask is neither causal nor a window, one that raises."""
    changes = {
        "its attention asks for masks of its own making": lambda mask: None,
        "its attention asks for a mask that is neither causal nor a window": lambda mask: torch.full_like(mask, -1),
        "its packed forward failed: ZeroDivisionError": lambda mask: 1 // 0,
    }
    for reason, change in changes.items():
        model = tiny("llama")
        attention = model.model.layers[0].self_attn

        def forward(*args: Any, own: Any = attention.forward, change: Any = change, **kwargs: Any) -> Any:
            if kwargs["attention_mask"] is not None:  # sdpa needs none
                kwargs["attention_mask"] = change(kwargs["attention_mask"])
            return own(*args, **kwargs)

        attention.forward = forward
        assert str(obstacle(model)).startswith(reason)


def test_masks_are_known_by_what_they_let_see() -> None:
    window = {"config": SimpleNamespace(sliding_window=5)}
    assert _mask(mask_function=causal_mask_function, **window).item() == 0
    assert _mask(mask_function=sliding_window_causal_mask_function(5), **window).item() == 5
    for other in (sliding_window_causal_mask_function(6), bidirectional_mask_function, chunked_causal(5)):
        assert _mask(mask_function=other, **window).item() == -1


def chunked_causal(size: int) -> Any:
    return chunked_causal_mask_function(size, torch.zeros(1, dtype=torch.long))


def test_in_one_model_the_trial_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    seen: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda *_: seen.append(1))
    run(packed_logprobs, model, batch_of())
    first = len(seen)
    run(packed_logprobs, model, replace(batch_of()))
    assert len(seen) == first + 1
