"""token_logprobs against the plain way: each row alone, unpadded, through the model's own full logits."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gruppo.policy import head as head_module
from gruppo.policy.head import Float32Head, LogitTransform, score_tokens
from gruppo.policy.logprobs import token_logprobs
from gruppo.types import TrainBatch
from tiny_models import FAMILIES, PAD, VOCAB, tiny

# peft 0.21 asks transformers 5.23 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PROMPTS = [[5, 6, 7, 8, 9], [3], [4, 4], [2, 11, 12]]
COMPLETIONS = [[10, 11, 1], [12, 13, 14, 15, 16, 17], [], [0, 20, 0, 1]]
# Row 0 has a token that the model did not make; row 3 contains the pad id as a real token.
UNTRAINED = {(0, 1)}


def batch_of(prompts: list[list[int]] = PROMPTS, completions: list[list[int]] = COMPLETIONS) -> TrainBatch:
    longest = max((len(ids) for ids in completions), default=0)
    trained_NT = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for i, ids in enumerate(completions):
        for t in range(len(ids)):
            trained_NT[i, t] = (i, t) not in UNTRAINED
    return TrainBatch(
        prompt_ids=prompts,
        completion_ids=completions,
        trained_NT=trained_NT,
        advantages_N=torch.zeros(len(prompts)),
        group_ids=list(range(len(prompts))),
        slice_ids=[0] * len(prompts),
    )


def plainly(model: nn.Module, batch: TrainBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies (N, T), each row by itself."""
    logprobs_NT = torch.zeros(batch.trained_NT.shape, dtype=torch.float64)
    entropy_NT = torch.zeros_like(logprobs_NT)
    for i, (prompt, completion) in enumerate(zip(batch.prompt_ids, batch.completion_ids, strict=True)):
        ids = torch.tensor([prompt + completion])
        log_p_TV = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].double() / temperature, dim=-1)
        for t, token in enumerate(completion):
            if batch.trained_NT[i, t]:
                row_V = log_p_TV[len(prompt) + t - 1]
                logprobs_NT[i, t] = row_V[token]
                entropy_NT[i, t] = -(row_V.exp() * row_V).sum()
    return logprobs_NT, entropy_NT


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def ours(model: nn.Module, batch: TrainBatch, **kwargs: Any):
    return token_logprobs(model, batch, **{"temperature": 0.7, "pad_token_id": PAD, "with_entropy": True, **kwargs})


def assert_same_gradients(mine: dict[str, Tensor], theirs: dict[str, Tensor], rtol: float, atol: float) -> None:
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient, rtol=rtol, atol=atol, msg=name)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens per block, so that every test crosses block borders."""
    monkeypatch.setattr(head_module, "BLOCK_TOKENS", 1)
    monkeypatch.setattr(head_module, "BLOCK_ELEMENTS", 3 * VOCAB + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_plain_forward_in_fp64_with_gradients(family: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny(family, dtype=torch.float64)
    batch = batch_of()
    weights_NT = torch.linspace(-1, 2, batch.trained_NT.numel(), dtype=torch.float64).view(batch.trained_NT.shape)
    plain_NT, plain_entropy_NT = plainly(model, batch, 0.7)
    expected = gradients(model, (plain_NT * weights_NT).sum() + 0.3 * (plain_entropy_NT * weights_NT).sum())

    forward = ours(model, batch, entropy_needs_grad=True)
    # Mixtures of experts and norms keep some float32 inside, whatever the dtype of the model.
    torch.testing.assert_close(forward.logprobs_NT, plain_NT, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(forward.entropy_NT, plain_entropy_NT, rtol=1e-6, atol=1e-6)
    actual = gradients(model, (forward.logprobs_NT * weights_NT).sum() + 0.3 * (forward.entropy_NT * weights_NT).sum())
    assert_same_gradients(actual, expected, rtol=1e-5, atol=1e-6)
    assert not caplog.records, "this family must take the decoder/head path"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_equals_the_plain_forward_in_fp32(family: str) -> None:
    model = tiny(family)
    plain_NT, plain_entropy_NT = plainly(model, batch_of(), 0.7)
    forward = ours(model, batch_of())
    assert forward.logprobs_NT.dtype == torch.float32
    torch.testing.assert_close(forward.logprobs_NT.double(), plain_NT, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(forward.entropy_NT.double(), plain_entropy_NT, rtol=1e-5, atol=1e-5)


def test_untrained_positions_are_exactly_zero_and_T_is_the_masks() -> None:
    batch = batch_of()
    forward = ours(tiny("llama"), batch)
    assert forward.logprobs_NT.shape == batch.trained_NT.shape
    assert (forward.logprobs_NT[~batch.trained_NT] == 0).all()
    assert (forward.entropy_NT[~batch.trained_NT] == 0).all()
    assert (forward.logprobs_NT[batch.trained_NT] < 0).all()


def test_neighbours_and_pad_value_do_not_matter() -> None:
    model = tiny("gpt2", dtype=torch.float64)
    together = ours(model, batch_of(), pad_token_id=PAD).logprobs_NT
    other_pad = ours(model, batch_of(), pad_token_id=19).logprobs_NT
    torch.testing.assert_close(together, other_pad, rtol=0, atol=1e-12)
    alone = ours(model, batch_of().rows([3])).logprobs_NT
    torch.testing.assert_close(together[3:, :4], alone, rtol=0, atol=1e-12)


def test_temperature_divides_the_logits() -> None:
    model = tiny("qwen3", dtype=torch.float64)
    for temperature in (0.25, 1.0, 3.0):
        expected, _ = plainly(model, batch_of(), temperature)
        torch.testing.assert_close(
            ours(model, batch_of(), temperature=temperature).logprobs_NT, expected, rtol=1e-6, atol=1e-6
        )


def test_entropy_is_detached_unless_asked_for() -> None:
    model = tiny("llama")
    assert ours(model, batch_of()).entropy_NT.requires_grad is False
    assert ours(model, batch_of(), entropy_needs_grad=True).entropy_NT.requires_grad is True
    assert ours(model, batch_of(), with_entropy=False).entropy_NT is None


@pytest.mark.parametrize("is_tied", [True, False])
def test_tied_and_untied_heads_train(is_tied: bool) -> None:
    model = tiny("qwen2", dtype=torch.float64, tie_word_embeddings=is_tied)
    plain_NT, _ = plainly(model, batch_of(), 0.7)
    expected = gradients(model, plain_NT.sum())
    assert ("lm_head.weight" in expected) is not is_tied
    assert_same_gradients(gradients(model, ours(model, batch_of()).logprobs_NT.sum()), expected, rtol=1e-6, atol=1e-8)


def test_a_batch_without_rows() -> None:
    forward = ours(tiny("llama"), batch_of([], []))
    assert forward.logprobs_NT.shape == (0, 0)
    assert forward.entropy_NT.shape == (0, 0)


def test_rows_without_trained_tokens_can_be_differentiated() -> None:
    model = tiny("llama")
    batch = batch_of([[3, 4]], [[5, 6]])
    batch.trained_NT[:] = False
    gradient = gradients(model, ours(model, batch, entropy_needs_grad=True).logprobs_NT.sum())
    assert all((g == 0).all() for g in gradient.values())
    assert "model.embed_tokens.weight" in gradient


def test_only_empty_completions() -> None:
    assert ours(tiny("llama"), batch_of([[3, 4], [5]], [[], []])).logprobs_NT.shape == (2, 0)


def test_an_empty_prompt_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match="needs a prompt"):
        ours(tiny("llama"), batch_of([[]], [[3]]))


def test_the_model_keeps_its_mode_and_dropout_acts_in_train_mode() -> None:
    model = tiny("gpt2", resid_pdrop=0.5)
    still = ours(model, batch_of()).logprobs_NT
    model.train()
    torch.manual_seed(0)
    first = ours(model, batch_of()).logprobs_NT
    assert model.training
    assert all(module.training for module in model.modules())
    assert (first - still).abs().max() > 1e-3


def test_gradient_checkpointing_changes_nothing() -> None:
    model = tiny("llama", dtype=torch.float64).train()
    expected = gradients(model, ours(model, batch_of()).logprobs_NT.sum())
    model.activation_checkpointing_enable()
    assert_same_gradients(gradients(model, ours(model, batch_of()).logprobs_NT.sum()), expected, rtol=0, atol=1e-12)


def test_bf16_autocast_is_near_and_its_gradients_are_float32() -> None:
    model = tiny("llama")
    exact = ours(model, batch_of()).logprobs_NT
    with torch.autocast("cpu", dtype=torch.bfloat16):
        forward = ours(model, batch_of())
    assert forward.logprobs_NT.dtype == torch.float32
    difference = (forward.logprobs_NT - exact).abs().max()
    assert 1e-5 < difference < 0.1
    assert gradients(model, forward.logprobs_NT.sum())["lm_head.weight"].dtype == torch.float32


def test_float32_head_ignores_autocast() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(8, VOCAB)
    wide = Float32Head(8, VOCAB)
    wide.load_state_dict(plain.state_dict())
    hidden_SD, targets_S = torch.randn(7, 8), torch.arange(7)
    settings = {"transform": LogitTransform(), "temperature": 1.0, "with_entropy": False}
    expected, _ = score_tokens(plain, hidden_SD, targets_S, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, _ = score_tokens(plain, hidden_SD, targets_S, **settings)
        exact, _ = score_tokens(wide, hidden_SD, targets_S, **settings)
        assert wide(hidden_SD.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(exact, expected, rtol=0, atol=0)
    assert (rounded - expected).abs().max() > 1e-4


@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(0.5, 1.5)])
def test_the_head_by_gradcheck_and_by_module(transform: LogitTransform) -> None:
    """`nn.Sequential(linear)` is no plain linear layer, so it takes the other way through."""
    torch.manual_seed(0)
    linear = nn.Linear(4, VOCAB, dtype=torch.float64)
    hidden_SD = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    targets_S = torch.tensor([0, 3, 22, 7, 7])

    def score(head: nn.Module, h_SD: Tensor) -> tuple[Tensor, Tensor]:
        return score_tokens(
            head,
            h_SD,
            targets_S,
            transform=transform,
            temperature=0.8,
            with_entropy=True,
            entropy_needs_grad=True,
        )

    assert torch.autograd.gradcheck(lambda h_SD: score(linear, h_SD), hidden_SD)
    wrapped = nn.Sequential(linear)
    for i in range(2):
        plain_S, module_S = score(linear, hidden_SD)[i], score(wrapped, hidden_SD)[i]
        torch.testing.assert_close(plain_S, module_S, rtol=0, atol=1e-12)
        expected = gradients(linear, module_S.square().sum())
        assert_same_gradients(gradients(linear, plain_S.square().sum()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_kept", [0, 7, 1000])
def test_the_head_keeps_one_piece_and_projects_the_rest_twice_in_blocks(
    num_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "KEPT_ELEMENTS", num_kept * VOCAB)
    model = tiny("llama", dtype=torch.float64)
    expected = gradients(model, plainly(model, batch_of(), 0.7)[0].square().sum())
    sizes: list[int] = []
    project = head_module._project

    def spy(h_SD: Tensor, *args: Any) -> Tensor:
        sizes.append(h_SD.shape[0])
        return project(h_SD, *args)

    monkeypatch.setattr(head_module, "_project", spy)
    actual = gradients(model, ours(model, batch_of()).logprobs_NT.square().sum())
    num_trained = int(batch_of().trained_NT.sum())
    num_kept = min(num_kept, num_trained)
    assert sizes[0] == (num_kept or 3)
    assert max(sizes[1:], default=0) <= 3
    assert sum(sizes) == 2 * num_trained - num_kept
    assert_same_gradients(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_kept", [0, 5, 1000])
def test_the_head_adds_to_a_gradient_that_is_there(
    dtype: torch.dtype, num_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "KEPT_ELEMENTS", num_kept * VOCAB)
    torch.manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    head = nn.Linear(8, VOCAB, bias=False, dtype=wide)
    hidden_SD = torch.randn(7, 8, dtype=wide, requires_grad=True)

    def go_back(scale: float) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logprobs_S, _ = score_tokens(
                head, hidden_SD, torch.arange(7), transform=LogitTransform(), temperature=1.0, with_entropy=False
            )
        (scale * logprobs_S.sum()).backward()

    handed_over: list[bool] = []
    results = head_module._GradientSums.results

    def spy(sums: Any) -> list[torch.Tensor | None]:
        found = results(sums)
        handed_over.append(found[1] is not None)
        return found

    monkeypatch.setattr(head_module._GradientSums, "results", spy)
    go_back(1.0)
    assert head.weight.grad is not None
    once, there = head.weight.grad.clone(), head.weight.grad
    go_back(2.0)
    assert handed_over == [True, False], "the second gradient is no matrix of its own"
    assert head.weight.grad is there
    assert there.dtype == wide
    torch.testing.assert_close(there, 3 * once, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_who_watches_the_heads_gradient_sees_it(register: str) -> None:
    head = nn.Linear(8, VOCAB, bias=False)
    seen = []
    getattr(head.weight, register)(
        lambda x: seen.append(x.shape) if x is not head.weight else seen.append(x.grad.shape)
    )
    for _ in range(2):
        logprobs_S, _ = score_tokens(
            head, torch.ones(2, 8), torch.arange(2), transform=LogitTransform(), temperature=1.0, with_entropy=False
        )
        logprobs_S.sum().backward()
    assert seen == [head.weight.shape] * 2


def test_no_tokens_give_the_head_a_gradient_of_zeros() -> None:
    head = nn.Linear(8, VOCAB, bias=False)
    logprobs_S, _ = score_tokens(
        head, torch.ones(0, 8), torch.arange(0), transform=LogitTransform(), temperature=1.0, with_entropy=False
    )
    logprobs_S.sum().backward()
    assert head.weight.grad is not None
    assert not head.weight.grad.any()


def test_kept_logits_are_used_up_and_a_second_backward_pass_is_still_right() -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, VOCAB, bias=False, dtype=torch.float64)
    hidden_SD = torch.randn(7, 8, dtype=torch.float64, requires_grad=True)
    logprobs_S, _ = score_tokens(
        head, hidden_SD, torch.arange(7), transform=LogitTransform(), temperature=0.7, with_entropy=False
    )
    context: Any = logprobs_S.grad_fn
    assert context.kept_KV.shape == (7, VOCAB)
    first = torch.autograd.grad(logprobs_S.sum(), (hidden_SD, head.weight), retain_graph=True)
    assert context.kept_KV is None
    second = torch.autograd.grad(logprobs_S.sum(), (hidden_SD, head.weight))
    for mine, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_nothing_is_kept_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward of the reference must not hold logits: each block goes into the memory of the one before."""
    places: set[int] = set()
    project = head_module._project

    def spy(*args: Any) -> Tensor:
        logits_SV = project(*args)
        places.add(logits_SV.data_ptr())
        return logits_SV

    monkeypatch.setattr(head_module, "_project", spy)
    with torch.no_grad():
        ours(tiny("llama"), batch_of())
    assert len(places) == 1


def test_an_unknown_twist_falls_back_to_the_models_own_logits(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("llama", dtype=torch.float64)
    own_forward = model.forward

    def twisted(*args: Any, **kwargs: Any) -> Any:
        output = own_forward(*args, **kwargs)
        output.logits = output.logits * 1.7 + torch.arange(VOCAB) / 10
        return output

    model.forward = twisted
    plain_NT, plain_entropy_NT = plainly(model, batch_of(), 0.7)
    expected = gradients(model, plain_NT.sum())
    with caplog.at_level(logging.WARNING):
        forward = ours(model, batch_of())
        ours(model, batch_of())
    assert len(caplog.records) == 1
    torch.testing.assert_close(forward.logprobs_NT, plain_NT, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(forward.entropy_NT, plain_entropy_NT, rtol=1e-6, atol=1e-6)
    assert_same_gradients(gradients(model, forward.logprobs_NT.sum()), expected, rtol=1e-6, atol=1e-8)


def test_aux_loss_is_the_models_own() -> None:
    model = tiny("mixtral", dtype=torch.float64)
    batch = batch_of([[3, 4, 5], [6, 7, 8]], [[9, 10], [11, 12]])
    ids = torch.tensor([[3, 4, 5, 9, 10], [6, 7, 8, 11, 12]])
    expected = model(input_ids=ids, output_router_logits=True, use_cache=False).aux_loss
    forward = ours(model, batch, with_aux_loss=True)
    torch.testing.assert_close(forward.aux_loss, expected)
    assert forward.aux_loss.requires_grad
    # Padding has no expert: a longer neighbour adds its own tokens and nothing else.
    uneven = ours(model, batch_of([[3, 4, 5], [6, 7, 8]], [[9], [11, 12]]), with_aux_loss=True).aux_loss
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    own = model(input_ids=ids, attention_mask=mask, output_router_logits=True, use_cache=False).aux_loss
    torch.testing.assert_close(uneven, own)
    assert ours(model, batch).aux_loss is None


def test_under_an_adapter_on_body_and_head() -> None:
    peft = pytest.importorskip("peft")
    base = tiny("llama", dtype=torch.float64)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config)
    plain_NT, _ = plainly(model, batch_of(), 0.7)
    expected = gradients(model, plain_NT.sum())
    assert any("lm_head.lora_A" in name for name in expected)
    forward = ours(model, batch_of())
    torch.testing.assert_close(forward.logprobs_NT, plain_NT, rtol=1e-6, atol=1e-6)
    assert_same_gradients(gradients(model, forward.logprobs_NT.sum()), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_is_trls_kernel(dtype: torch.dtype) -> None:
    """Forward and gradients of TRL 1.16's torch path, with a softcap, a scale and both gradients; autocast too."""
    kernel = pytest.importorskip("trl.kernels.chunked_logprob").ChunkedLogProbFunction
    torch.manual_seed(0)
    # In bfloat16 TRL rounds before it adds a bias, and models (and we) after.
    linear = nn.Linear(16, 300, bias=dtype == torch.float32)
    targets_S = torch.randint(300, (11,))
    mix_S, mix_entropy_S = torch.randn(11), torch.randn(11)
    results = []
    for is_ours in (True, False):
        linear.zero_grad()
        hidden_SD = torch.linspace(-2, 2, 11 * 16).view(11, 16).sin().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            if is_ours:
                logprobs_S, entropy_S = score_tokens(
                    linear,
                    hidden_SD,
                    targets_S,
                    transform=LogitTransform(2.0, 3.0),
                    temperature=0.7,
                    with_entropy=True,
                    entropy_needs_grad=True,
                )
            else:
                logprobs_S, entropy_S, *_ = kernel.apply(
                    hidden_SD, linear.weight, linear.bias, targets_S, 0.7, 128, 3.0, 2.0, ("entropy",)
                )
            assert entropy_S is not None
        ((logprobs_S * mix_S).sum() + (entropy_S * mix_entropy_S).sum()).backward()
        results.append([logprobs_S, entropy_S, hidden_SD.grad, *(p.grad.clone() for p in linear.parameters())])
    # In bfloat16 a last-bit difference before the rounding of a gradient may become one bfloat16 step of it.
    rtol, atol = (2e-5, 2e-6) if dtype == torch.float32 else (1e-2, 4e-3)
    for i, (mine, theirs) in enumerate(zip(*results, strict=True)):
        is_forward = i < 2
        torch.testing.assert_close(
            mine, theirs, rtol=2e-5 if is_forward else rtol, atol=2e-6 if is_forward else atol, msg=str(i)
        )
