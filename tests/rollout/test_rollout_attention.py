"""Attention over shared prompts against one dense masked softmax per row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gruppo.rollout import attention
from gruppo.rollout.attention import AttentionTraits, DecodeBatch, PrefillBatch, attend_decode, attend_prefill
from gruppo.rollout.kv_cache import KVCache

KV, REPEATS, DIM = 2, 3, 4
LENGTHS = [150, 67]
PLAIN = AttentionTraits(scaling=0.7)
TRAITS = {
    "plain": PLAIN,
    "softcap": replace(PLAIN, softcap=0.8),
    "window": replace(PLAIN, window=10),
    "wide window": replace(PLAIN, window=140),
    "softcap and window": replace(PLAIN, softcap=0.8, window=70),
    "sinks": replace(PLAIN, sinks=torch.linspace(-2, 2, KV * REPEATS, dtype=torch.float64)),
    "sinks and window": replace(PLAIN, window=3, sinks=torch.linspace(-2, 2, KV * REPEATS, dtype=torch.float64)),
}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, traits: AttentionTraits) -> torch.Tensor:
    """Causal attention of one sequence, by the book: (T, R, K, D) -> (T, R, K, D)."""
    length = len(key)
    scores = torch.einsum("trkd,skd->krts", query, key) * traits.scaling
    if traits.softcap is not None:
        scores = torch.tanh(scores / traits.softcap) * traits.softcap
    age = torch.arange(length)[:, None] - torch.arange(length)
    is_seen = (age >= 0) & (age < (traits.window or length))
    scores = scores.masked_fill(~is_seen, -torch.inf)
    if traits.sinks is not None:
        sinks = traits.sinks.view(KV, REPEATS, 1, 1).expand(KV, REPEATS, length, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    return torch.einsum("krts,skd->trkd", torch.softmax(scores, dim=-1)[..., :length], value)


def prefill(lengths: list[int], cache: KVCache) -> PrefillBatch:
    positions = torch.cat([torch.arange(n) for n in lengths])
    rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return PrefillBatch(
        ids_S=positions,
        positions_S=positions,
        last_P=torch.tensor(lengths).cumsum(0) - 1,
        slots_S=rows * cache.prefix_tokens + positions,
        lengths=lengths,
        cells_S=rows * max(lengths) + positions,
    )


@pytest.mark.parametrize("traits", TRAITS.values(), ids=TRAITS.keys())
@pytest.mark.parametrize("lengths", [LENGTHS, [64, 64], [65], [5, 1, 3]])
def test_prefill_is_causal_attention_in_each_prompt(traits: AttentionTraits, lengths: list[int]) -> None:
    torch.manual_seed(0)
    total = sum(lengths)
    query, key, value = random(total, REPEATS, KV, DIM), random(total, KV, DIM), random(total, KV, DIM)
    cache = KVCache(num_prompts=len(lengths), prefix_tokens=max(lengths) + 2, num_rows=1, max_tail_tokens=1)
    kv = cache.layer(0, key, value)
    out = attend_prefill(query, key, value, kv=kv, batch=prefill(lengths, cache), traits=traits)
    parts = zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
    torch.testing.assert_close(out, torch.cat([dense(*part, traits) for part in parts]))
    for slot, part in enumerate(key.split(lengths)):
        torch.testing.assert_close(kv.prefix_k[slot, : len(part)], part)


@pytest.mark.parametrize("traits", TRAITS.values(), ids=TRAITS.keys())
@pytest.mark.parametrize("lengths", [LENGTHS, [12, 12]])
@pytest.mark.parametrize("tails", [[4, 4, 4, 4], [1, 4, 2, 20]])
@pytest.mark.parametrize("members", [[0, 0, 1, 1], [1, 0, 1, 1]])
def test_decoding_is_the_last_row_of_causal_attention(
    traits: AttentionTraits, lengths: list[int], tails: list[int], members: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of two prompts in any order, tails of any length, by torch's kernel and by plain products."""
    torch.manual_seed(1)
    width = max(members.count(0), members.count(1))
    places: list[int] = []
    for n, prompt in enumerate(members):
        places.append(prompt * width + members[:n].count(prompt))
    cells = [0] * (2 * width)
    for n, place in enumerate(places):
        cells[place] = n
    is_identity = cells == list(range(4))
    cache = KVCache(num_prompts=3, prefix_tokens=max(lengths) + 1, num_rows=5, max_tail_tokens=max(tails) + 1)
    prompt_kv = [(random(n, KV, DIM), random(n, KV, DIM)) for n in lengths]
    tail_kv = [(random(n, KV, DIM), random(n, KV, DIM)) for n in tails]
    query = random(4, REPEATS, KV, DIM)
    kv = cache.layer(0, query[:, 0], query[:, 0])
    for slot, (key, value) in enumerate(prompt_kv):
        kv.prefix_k[slot, : len(key)], kv.prefix_v[slot, : len(key)] = key, value
    for slot, (key, value) in enumerate(tail_kv):
        kv.tail_k[slot, : len(key) - 1], kv.tail_v[slot, : len(key) - 1] = key[:-1], value[:-1]
    positions = torch.tensor([lengths[p] + t - 1 for p, t in zip(members, tails, strict=True)])

    def batch() -> DecodeBatch:
        return DecodeBatch(
            ids_N=positions,
            positions_N=positions,
            slots_N=torch.tensor([n * cache.tail_tokens + t - 1 for n, t in enumerate(tails)]),
            tail_lengths_N=torch.tensor(tails),
            longest_tail=max(tails),
            is_even=len(set(tails)) == 1,
            longest_position=int(positions.max()),
            prompt_lengths_P=torch.tensor(lengths),
            longest_prompt=max(lengths),
            has_even_prompts=len(set(lengths)) == 1,
            cell_rows=None if is_identity else torch.tensor(cells),
            row_cells=None if is_identity else torch.tensor(places),
            width=width,
        )

    newest: dict[str, Any] = {
        "key": torch.stack([key[-1] for key, _ in tail_kv]),
        "value": torch.stack([value[-1] for _, value in tail_kv]),
    }
    out = attend_decode(query, **newest, kv=kv, batch=batch(), traits=traits)
    for n, prompt in enumerate(members):
        key, value = (torch.cat([prompt_kv[prompt][i], tail_kv[n][i]]) for i in (0, 1))
        expected = dense(query[n].expand(len(key), REPEATS, KV, DIM), key, value, traits)[-1]
        torch.testing.assert_close(out[n], expected)
    monkeypatch.setattr(attention, "_can_flash", lambda *_: False)
    plain = attend_decode(query, **newest, kv=kv, batch=batch(), traits=traits)
    torch.testing.assert_close(plain, out)


class _Products(TorchDispatchMode):
    """The types of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.bmm:
            self.types.append(result.dtype)
        return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("traits", [PLAIN, replace(PLAIN, softcap=0.8)], ids=["plain", "softcap"])
def test_scores_are_in_float32_on_a_device(traits: AttentionTraits, dtype: torch.dtype) -> None:
    """On the meta device, where code takes the ways of a CUDA device.

    In half precision scores lose what the softmax needs, and float16 has no number for large ones. Probabilities meet
    the values in half precision.
    """
    query, key = (torch.zeros(2, heads, 5, DIM, dtype=dtype, device="meta") for heads in (KV, KV))
    with _Products() as decode:
        out, lse = attention._attend_plain(query, key, key, traits, None)
    assert decode.types == [torch.float32, dtype]
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    query, key = (torch.zeros(2, 5, *heads, DIM, dtype=dtype, device="meta") for heads in ((REPEATS, KV), (KV,)))
    with _Products() as blocks:
        out = attention._attend_blocks(query, key, key, traits)
    assert blocks.types == [torch.float32, dtype]
    assert out.dtype == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("traits", [PLAIN, replace(PLAIN, softcap=30.0)], ids=["plain", "softcap"])
def test_large_scores_on_a_device(traits: AttentionTraits) -> None:
    """Products above the largest number of float16, which their scaling brings back."""
    traits = replace(traits, scaling=1e-4)
    torch.manual_seed(0)
    query, key, value = (100 * random(2, KV, 5, 64).cuda() for _ in range(3))
    expected, expected_lse = attention._attend_plain(query, key, value, traits, None)
    out, lse = attention._attend_plain(query.half(), key.half(), value.half(), traits, None)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-3, atol=2e-2)
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2.0)
