"""KVCache: keys and values of one rollout, allocated ahead. Prompts and completions lie apart.

    prefix   one slot per live prompt   [slot, token, kv head, D]    written by the prefill, read by the whole group
    tail     one slot per live row      [slot, token, kv head, D]    one token more with each decoding step

A layer's buffers are made when its first keys arrive, which also say its shapes and type. Tails begin short and double
when they are full, since most rows end long before `max_tokens`; within that, a token is appended in place. Slots are
handed out by the scheduler; the cache only stores. It holds no positions and no lengths, and does not attend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from torch import Tensor

FIRST_TAIL: Final = 64
"""Tokens that a tail has room for at first."""


class LayerKV:
    """The buffers of one layer. Unwritten places hold zeros: padding is masked, and must be finite for that."""

    def __init__(self, cache: KVCache, key: Tensor, value: Tensor) -> None:
        def buffer(slots: int, tokens: int, like: Tensor) -> Tensor:
            return like.new_zeros(slots, tokens, *like.shape[-2:])

        self.prefix_k = buffer(cache.num_prompts, cache.prefix_tokens, key)
        self.prefix_v = buffer(cache.num_prompts, cache.prefix_tokens, value)
        self.tail_k = buffer(cache.num_rows, cache.tail_tokens, key)
        self.tail_v = buffer(cache.num_rows, cache.tail_tokens, value)

    def write_prefix(self, index_S: Tensor, key: Tensor, value: Tensor) -> None:
        """Stores (S, kv heads, D) at the flat places slot · tokens + token."""
        self.prefix_k.flatten(0, 1).index_copy_(0, index_S, key)
        self.prefix_v.flatten(0, 1).index_copy_(0, index_S, value)

    def prefixes(self, num_prompts: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """The first tokens of the first prompts, heads before tokens: (prompts, kv heads, tokens, D)."""
        size = num_prompts, num_tokens
        return _heads_first(self.prefix_k, *size), _heads_first(self.prefix_v, *size)

    def tails(self, num_rows: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """The same of the tails: (rows, kv heads, tokens, D)."""
        size = num_rows, num_tokens
        return _heads_first(self.tail_k, *size), _heads_first(self.tail_v, *size)

    def write_tail(self, index_N: Tensor, key: Tensor, value: Tensor) -> None:
        self.tail_k.flatten(0, 1).index_copy_(0, index_N, key)
        self.tail_v.flatten(0, 1).index_copy_(0, index_N, value)


class KVCache:
    """Buffers for at most `num_rows` live rows and `num_prompts` live prompts, layer by layer.

    Args:
        max_tail_tokens: the longest that a tail can become.
    """

    def __init__(self, *, num_prompts: int, prefix_tokens: int, num_rows: int, max_tail_tokens: int) -> None:
        self.num_prompts = num_prompts
        self.prefix_tokens = prefix_tokens
        self.num_rows = num_rows
        self.tail_tokens = min(max_tail_tokens, FIRST_TAIL)
        """Places in each tail, for now."""
        self._max_tail_tokens = max_tail_tokens
        self._layers: dict[int, LayerKV] = {}

    def reserve_tail(self, num_tokens: int) -> None:
        """Makes room for `num_tokens` in every tail; what is stored stays."""
        assert num_tokens <= self._max_tail_tokens
        if num_tokens <= self.tail_tokens:
            return
        self.tail_tokens = min(self._max_tail_tokens, max(num_tokens, 2 * self.tail_tokens))
        for kv in self._layers.values():
            kv.tail_k = _longer(kv.tail_k, self.tail_tokens)
            kv.tail_v = _longer(kv.tail_v, self.tail_tokens)

    def layer(self, index: int, key: Tensor, value: Tensor) -> LayerKV:
        """The buffers of layer `index`, made after the fashion of these keys and values (..., kv heads, D) if new."""
        if index not in self._layers:
            self._layers[index] = LayerKV(self, key, value)
        return self._layers[index]

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def bytes_per_token(self) -> int:
        """What one token takes in all layers."""
        halves = [half for kv in self._layers.values() for half in (kv.tail_k, kv.tail_v)]
        return sum(half[0, 0].numel() * half.element_size() for half in halves)

    def move_tails(self, moves: dict[int, int], num_tokens: int) -> None:
        """Copies the first `num_tokens` tokens of rows, {to slot: from slot}."""
        self._move([half for kv in self._layers.values() for half in (kv.tail_k, kv.tail_v)], moves, num_tokens)

    def move_prefixes(self, moves: dict[int, int]) -> None:
        halves = [half for kv in self._layers.values() for half in (kv.prefix_k, kv.prefix_v)]
        self._move(halves, moves, self.prefix_tokens)

    @torch.inference_mode()
    def _move(self, buffers: list[Tensor], moves: dict[int, int], num_tokens: int) -> None:
        if not moves:
            return
        to_slots, from_slots = (
            torch.tensor(list(slots), device=buffers[0].device) for slots in (moves, moves.values())
        )
        for buffer in buffers:
            used = buffer[:, :num_tokens]
            used.index_copy_(0, to_slots, used.index_select(0, from_slots))


def _heads_first(buffer: Tensor, num_slots: int, num_tokens: int) -> Tensor:
    """A view by one call, where slicing and transposing take three: this is asked for four times a layer and step."""
    _, capacity, num_heads, dim = buffer.shape
    strides = (capacity * num_heads * dim, dim, num_heads * dim, 1)
    return buffer.as_strided((num_slots, num_heads, num_tokens, dim), strides)


def _longer(buffer: Tensor, num_tokens: int) -> Tensor:
    longer = buffer.new_zeros(buffer.shape[0], num_tokens, *buffer.shape[2:])
    longer[:, : buffer.shape[1]] = buffer
    return longer
