"""The CUDA flash kernel: what its ops take and give, on any machine; its numbers against PLAIN, on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gruppo.policy.attention_cuda import FLASH_CUDA, cuda_kernel
from gruppo.policy.attention_kernels import PLAIN, Scores
from gruppo.policy.packing import pack
from gruppo.policy.shared_attention import shared_attention
from gruppo.types import TrainBatch


def on_a_device(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


HEADS = [(2, 3, 64), (4, 1, 128), (1, 8, 32), (2, 2, 256)]


def qkv(
    heads: tuple[int, int, int], *, num_queries: int = 9, num_keys: int = 5, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    num_kv, num_repeats, width = heads
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, num_queries, num_kv, num_repeats, width), *[(2, num_keys, num_kv, width)] * 2]
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return q, k, v


@pytest.mark.parametrize("heads", HEADS)
def test_the_ops_take_our_arguments_and_shapes(heads: tuple[int, int, int]) -> None:
    """On meta tensors: argument order, optional sequence offsets and layouts, by the signatures of this torch."""
    q, k, v = qkv(heads, dtype=torch.bfloat16, device="meta")
    scores = Scores(0.1)
    out, lse = FLASH_CUDA.forward((q, k, v), scores)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    assert (lse.shape, lse.dtype) == (q.shape[:-1], torch.float32)
    grads = FLASH_CUDA.backward(torch.empty_like(q), (q, k, v), out, lse, scores)
    assert [grad.shape for grad in grads] == [q.shape, k.shape, v.shape]


def test_the_log_sum_exp_is_heads_first_in_the_op_and_tokens_first_here() -> None:
    q, k, v = qkv((2, 3, 64), dtype=torch.bfloat16, device="meta")
    lse_BHL = torch.ops.aten._flash_attention_forward(q.flatten(2, 3), k, v, None, None, 9, 5, 0.0, False, False)[1]
    assert lse_BHL.shape == (2, 6, 9)


def test_full_precision_is_plain() -> None:
    for dtype in (torch.float32, torch.float64):
        assert cuda_kernel(torch.device("cuda"), dtype, (2, 3, 64)) is PLAIN


@on_a_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("is_causal", "num_keys"), [(True, 70), (False, 45), (False, 1)])
def test_flash_is_plain(heads: tuple[int, int, int], dtype: torch.dtype, is_causal: bool, num_keys: int) -> None:
    given = qkv(heads, num_queries=70, num_keys=num_keys, dtype=dtype, device="cuda")
    scores = Scores(heads[2] ** -0.5, is_causal=is_causal)
    out, lse = PLAIN.forward(given, scores)
    flash_out, flash_lse = FLASH_CUDA.forward(given, scores)
    torch.testing.assert_close(flash_out, out, rtol=0.02, atol=0.02)
    torch.testing.assert_close(flash_lse, lse, rtol=1e-3, atol=1e-3)
    grad = torch.randn_like(out)
    # Out and log-sum-exp of a merge, which are not this call's own.
    merged_out, merged_lse = out * 0.5, lse + 0.7
    grads = FLASH_CUDA.backward(grad, given, merged_out, merged_lse, scores)
    for ours, theirs in zip(grads, PLAIN.backward(grad, given, merged_out, merged_lse, scores), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.05, atol=0.05)


@on_a_device
def test_one_query() -> None:
    """Flash attention treats a single query with several heads to a key head as a case of its own."""
    given = qkv((2, 4, 64), num_queries=1, num_keys=33, dtype=torch.bfloat16, device="cuda")
    scores = Scores(0.125)
    for ours, theirs in zip(FLASH_CUDA.forward(given, scores), PLAIN.forward(given, scores), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.02, atol=0.02)


@on_a_device
@pytest.mark.parametrize("heads", HEADS[:3])
def test_it_is_chosen(heads: tuple[int, int, int]) -> None:
    assert cuda_kernel(torch.device("cuda", 0), torch.bfloat16, heads) is FLASH_CUDA


@on_a_device
def test_a_packed_row() -> None:
    completions = [[5, 6, 7], [8], [9, 10]]
    trained_NT = torch.tensor([[t < len(ids) for t in range(3)] for ids in completions])
    row = pack(TrainBatch([[1, 2, 3, 4]] * 3, completions, trained_NT, torch.zeros(3), [0] * 3, [0] * 3), is_whole=True)
    generator = torch.Generator().manual_seed(1)
    num_tokens = len(row)
    q, k, v = (torch.randn(num_tokens, heads, 64, generator=generator) for heads in (6, 2, 2))
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.bfloat16)):
        inputs = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]
        out = shared_attention(*inputs, row.to(device), Scores(0.125))
        out.square().sum().backward()
        results.append([x.cpu().double() for x in (out.detach(), *(x.grad for x in inputs))])
    for exact, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, exact, rtol=0.06, atol=0.06)
