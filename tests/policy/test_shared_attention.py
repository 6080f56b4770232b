"""Attention of a packed row against one dense masked softmax, and the kernels against each other."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from gruppo.policy import attention_cuda
from gruppo.policy import attention_kernels as kernels
from gruppo.policy.attention_cuda import FLASH_CUDA, cuda_kernel
from gruppo.policy.attention_kernels import FLASH_CPU, PLAIN, Kernel, Scores
from gruppo.policy.packing import PackedRow, pack
from gruppo.policy.shared_attention import _kernel, shared_attention
from gruppo.types import TrainBatch

KV_HEADS, REPEATS, WIDTH = 2, 3, 4


def packed(prompt_lengths: list[int], completion_lengths: list[list[int]]) -> PackedRow:
    prompts = [[g] * n for g, n in enumerate(prompt_lengths) for _ in completion_lengths[g]]
    completions = [[9] * n for lengths in completion_lengths for n in lengths]
    groups = [g for g, lengths in enumerate(completion_lengths) for _ in lengths]
    num = len(prompts)
    trained_NT = torch.zeros(num, max(map(len, completions)), dtype=torch.bool)
    return pack(TrainBatch(prompts, completions, trained_NT, torch.zeros(num), groups, [0] * num), is_whole=True)


ROWS = {
    "one of all": lambda: packed([5], [[3]]),
    "equal lengths": lambda: packed([6, 6], [[4, 4, 4], [4, 4, 4]]),
    "ragged": lambda: packed([7, 2, 9], [[5, 1, 6, 4], [3], [2, 8]]),
    "some empty": lambda: packed([3, 4], [[0, 2, 0], [0]]),
}


def tensors(row: PackedRow, dtype: torch.dtype = torch.float64, repeats: int = REPEATS) -> list[Tensor]:
    torch.manual_seed(0)
    heads = [KV_HEADS * repeats, KV_HEADS, KV_HEADS]
    # Laid out as the projections leave them.
    return [torch.randn(len(row), h, WIDTH, dtype=torch.float64).to(dtype).requires_grad_() for h in heads]


def visible(row: PackedRow, window: int | None) -> Tensor:
    """(S, S): may query s see key s'? By its definition, token by token."""
    segment, prompt_of = [-1] * len(row), [-1] * len(row)
    # Positions restart at a segment; the first completion may happen to go on from the last prompt's.
    starts = {s for s in range(len(row)) if s == 0 or row.positions_S[s] != row.positions_S[s - 1] + 1}
    starts |= {branch.completions.start for branch in row.branches}
    for number, (start, stop) in enumerate(itertools.pairwise([*sorted(starts), len(row)])):
        segment[start:stop] = [number] * (stop - start)
    for branch in row.branches:
        for s in range(branch.completions.start, branch.completions.stop):
            prompt_of[s] = segment[branch.prompt.start]
    allowed = torch.zeros(len(row), len(row), dtype=torch.bool)
    for q, k in itertools.product(range(len(row)), repeat=2):
        distance = int(row.positions_S[q] - row.positions_S[k])
        is_related = segment[q] == segment[k] or prompt_of[q] == segment[k]
        allowed[q, k] = is_related and 0 <= distance < (window or 10**9)
    return allowed


def densely(q: Tensor, k: Tensor, v: Tensor, row: PackedRow, settings: Scores) -> Tensor:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("qhe,khe->hqk", q, k) * settings.scale
    if settings.softcap is not None:
        scores = settings.softcap * torch.tanh(scores / settings.softcap)
    p = scores.masked_fill(~visible(row, settings.window), -torch.inf).softmax(dim=-1)
    return torch.einsum("hqk,khe->qhe", p, v)


def with_gradients(attend: Any, inputs: list[Tensor], *args: Any) -> list[Tensor]:
    out = attend(*inputs, *args)
    mix = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * mix).sum(), inputs)]


@pytest.mark.parametrize("chunk", [40, 2**22])
@pytest.mark.parametrize(("softcap", "window"), [(None, None), (1.5, None), (None, 4), (None, 1), (1.5, 3)])
@pytest.mark.parametrize("name", ROWS)
def test_equals_the_dense_form_in_fp64_with_gradients(
    name: str, softcap: float | None, window: int | None, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "CHUNK_ELEMENTS", chunk)
    row = ROWS[name]()
    inputs = tensors(row)
    settings = (row, Scores(0.7, softcap, window=window))
    for mine, theirs in zip(
        with_gradients(shared_attention, inputs, *settings), with_gradients(densely, inputs, *settings), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_one_query_head_for_each_key_head_and_values_of_another_width() -> None:
    row = ROWS["ragged"]()
    for q, k, v in (tensors(row, repeats=1), [*tensors(row)[:2], tensors(row)[2][..., :3].detach().requires_grad_()]):
        for mine, theirs in zip(
            with_gradients(shared_attention, [q, k, v], row, Scores(0.5)),
            with_gradients(densely, [q, k, v], row, Scores(0.5)),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-2)])
def test_in_narrow_types(dtype: torch.dtype, tolerance: float) -> None:
    row = ROWS["ragged"]()
    exact = with_gradients(shared_attention, tensors(row), row, Scores(0.7))
    for mine, theirs in zip(
        with_gradients(shared_attention, tensors(row, dtype), row, Scores(0.7)), exact, strict=True
    ):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("window", [None, 3])
def test_autocast_around_it_rounds_nothing(window: int | None) -> None:
    row = ROWS["ragged"]()
    scores = Scores(scale=0.5, window=window)
    plain = with_gradients(shared_attention, tensors(row, torch.float32), row, scores)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = with_gradients(shared_attention, tensors(row, torch.float32), row, scores)
    for mine, theirs in zip(under_autocast, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("num_batch", [1, 3])
def test_flash_is_plain(is_causal: bool, num_batch: int) -> None:
    """Also with an out and a log-sum-exp that are not its own, as in a merge."""
    torch.manual_seed(0)
    num_queries, num_keys = 70, 70 if is_causal else 45
    q = torch.randn(num_batch, num_queries, KV_HEADS, REPEATS, 8, dtype=torch.float64)
    k, v = (torch.randn(num_batch, num_keys, KV_HEADS, 8, dtype=torch.float64) for _ in range(2))
    scores = Scores(0.3, is_causal=is_causal)
    assert _kernel((q, k, v), scores) is FLASH_CPU
    (out, lse), (plain_out, plain_lse) = FLASH_CPU.forward((q, k, v), scores), PLAIN.forward((q, k, v), scores)
    torch.testing.assert_close(out, plain_out, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, plain_lse, rtol=0, atol=1e-12)
    merged = (torch.randn_like(q), (q, k, v), out + 0.1, lse + 0.5, scores)
    for mine, theirs in zip(FLASH_CPU.backward(*merged), PLAIN.backward(*merged), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


def fake_forward_op(q: Tensor, k: Tensor, v: Tensor, *args: Any, scale: float) -> tuple[Any, ...]:
    """The layouts of aten::_flash_attention_forward: (B, L, H, E) in, out, and log-sum-exps (B, H, L)."""
    assert args[:4] == (None, None, q.shape[1], k.shape[1])
    q5 = q.unflatten(2, (k.shape[2], -1))
    out, lse = PLAIN.forward((q5, k, v), Scores(scale, is_causal=args[5]))
    return out.flatten(2, 3), lse.flatten(2, 3).transpose(1, 2).contiguous(), None, None, None


def fake_backward_op(  # noqa: PLR0917 - as the op
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *args: Any, scale: float
) -> tuple[Tensor, ...]:
    assert args[:4] == (None, None, q.shape[1], k.shape[1])
    assert lse.shape == (q.shape[0], q.shape[2], q.shape[1])
    grad_out, q, out = (x.unflatten(2, (k.shape[2], -1)) for x in (grad_out, q, out))
    lse = lse.transpose(1, 2).unflatten(2, (k.shape[2], -1))
    grads = PLAIN.backward(grad_out, (q, k, v), out, lse, Scores(scale, is_causal=args[5]))
    return grads[0].flatten(2, 3), *grads[1:]


def test_flash_on_cuda_is_used_where_it_agrees_with_plain(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No GPU here: the ops are fakes with the documented layouts, and the choice is what is tested."""

    def choice(heads: tuple[int, int, int], dtype: torch.dtype = torch.bfloat16) -> Kernel:
        cuda_kernel.cache_clear()
        return cuda_kernel(torch.device("cpu"), dtype, heads)

    monkeypatch.setattr(attention_cuda, "_forward_op", fake_forward_op)
    monkeypatch.setattr(attention_cuda, "_backward_op", fake_backward_op)
    assert choice((2, 3, 8)) is FLASH_CUDA
    assert choice((2, 1, 8)) is FLASH_CUDA
    assert choice((2, 3, 8), torch.float32) is PLAIN
    assert not caplog.records
    monkeypatch.setattr(
        attention_cuda, "_backward_op", lambda *args, **kw: [2 * x for x in fake_backward_op(*args, **kw)]
    )
    assert choice((2, 3, 8)) is PLAIN
    assert "is off by" in caplog.text
    monkeypatch.setattr(attention_cuda, "_forward_op", lambda *args, **kw: 1 // 0)
    assert choice((2, 3, 8)) is PLAIN
    assert "flash attention failed: ZeroDivisionError" in caplog.text
    cuda_kernel.cache_clear()


def test_a_query_without_keys() -> None:
    q, k = torch.randn(1, 2, 1, 1, 4, dtype=torch.float64), torch.randn(1, 3, 1, 4, dtype=torch.float64)
    positions = {"query_positions_L": torch.tensor([3, 9]), "key_positions_K": torch.tensor([0, 1, 2])}
    scores = Scores(1.0, window=2, **positions)
    assert _kernel((q, k, k), scores) is PLAIN
    out, lse = PLAIN.forward((q, k, k), scores)
    assert lse[0, 1].item() == -torch.inf
    assert torch.equal(out[0, 1], torch.zeros_like(out[0, 1]))
    # Only key 2 is seen by the query at 3.
    torch.testing.assert_close(out[0, 0, 0, 0], k[0, 2, 0])
    for gradient in PLAIN.backward(torch.ones_like(out), (q, k, k), out, lse, scores):
        assert gradient.isfinite().all()


def test_flash_computes_half_precision_in_float32() -> None:
    torch.manual_seed(0)
    q, grad = (torch.randn(2, 5, 2, 3, 8, dtype=torch.bfloat16) for _ in range(2))
    k, v = (torch.randn(2, 5, 2, 8, dtype=torch.bfloat16) for _ in range(2))
    scores = Scores(0.3, is_causal=True)
    half, full = (q, k, v), (q.float(), k.float(), v.float())
    out, lse = FLASH_CPU.forward(half, scores)
    for mine, wanted in zip((out, lse), FLASH_CPU.forward(full, scores), strict=True):
        assert torch.equal(mine, wanted)
    grads = FLASH_CPU.backward(grad, half, out, lse, scores)
    for mine, wanted in zip(grads, FLASH_CPU.backward(grad.float(), full, out, lse, scores), strict=True):
        assert torch.equal(mine, wanted)
