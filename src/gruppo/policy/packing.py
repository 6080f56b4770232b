"""Packing: rows that share a prompt become one row in which the prompt stands once. Geometry only, no model.

A packed row holds the prompts of all groups first, then the completions, group by group:

    [prompt_1 | prompt_2 | ... | c_11 c_12 ... c_1G | c_21 ... c_2G | ...]

Positions restart: those of a completion go on from its prompt. A token attends to what stands before it in its own
segment (prompt or completion) and, in a completion, to the whole prompt of its group; nothing else. So every trained
token is predicted from what it would see in a row of its own, and its gradient is the same up to summation order.

Tokens that nothing trained depends on are left out: what follows the last prediction of a completion, completions
without trained tokens, and prompts that no completion is left of.

Also here: how the rows of a step are cut into forwards by a budget of packed tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gruppo.types import TrainBatch

_MIN_FILL = 0.8
"""Segments share a bucket if the shorter ones fill at least this much of the longest."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` to `stop` of a packed row."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class Branch:
    """All completions of one group, which lie side by side, and their prompt."""

    completions: Span
    prompt: Span
    longest: int
    """Tokens of the longest completion."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Segments of similar length, as a right-padded batch of `num` by `length`.

    Where segments have one length and lie side by side, the batch is a view of the packed row.
    """

    num: int
    length: int
    start: int | None
    """First token, if the batch is a view."""
    padded_index: Tensor
    """(num * length,) packed token in each place; padding repeats the last token of its segment."""
    places: Tensor
    """Places that are no padding, in the order of `tokens`."""
    tokens: Tensor
    """The packed token of each place."""

    def take(self, values: Tensor) -> Tensor:
        """(S, ...) -> (num, length, ...)."""
        if self.start is not None:
            flat = values[self.start : self.start + self.num * self.length]
        else:
            flat = values.index_select(0, self.padded_index)
        return flat.unflatten(0, (self.num, self.length))

    def put(self, target: Tensor, values: Tensor) -> None:
        """Writes (num, length, ...) to its places in (S, ...)."""
        if self.start is not None:
            flat = target[self.start : self.start + self.num * self.length]
            flat.unflatten(0, (self.num, self.length)).copy_(values)
        else:
            target.index_copy_(0, self.tokens, values.flatten(0, 1).index_select(0, self.places).to(target.dtype))

    def without_padding(self, values: Tensor) -> Tensor:
        """(num, length, ...) with zeros where there is padding."""
        if self.start is not None:
            return values
        kept = torch.zeros_like(values).flatten(0, 1)
        kept.index_copy_(0, self.places, values.flatten(0, 1).index_select(0, self.places))
        return kept.unflatten(0, (self.num, self.length))

    def to(self, device: torch.device) -> Bucket:
        index = (self.padded_index.to(device), self.places.to(device), self.tokens.to(device))
        return Bucket(self.num, self.length, self.start, *index)


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One packed row. M is the number of trained tokens, in the order of `trained_NT.nonzero()`."""

    token_ids_S: Tensor
    positions_S: Tensor
    copies_S: Tensor
    """How many tokens of the separate rows each packed token stands for."""
    sources_M: Tensor
    """The packed token whose hidden state predicts each trained token."""
    targets_M: Tensor
    buckets: list[Bucket]
    branches: list[Branch]

    def __len__(self) -> int:
        return self.token_ids_S.shape[0]

    def to(self, device: torch.device) -> PackedRow:
        return PackedRow(
            token_ids_S=self.token_ids_S.to(device),
            positions_S=self.positions_S.to(device),
            copies_S=self.copies_S.to(device),
            sources_M=self.sources_M.to(device),
            targets_M=self.targets_M.to(device),
            buckets=[bucket.to(device) for bucket in self.buckets],
            branches=self.branches,
        )


def pack(batch: TrainBatch, *, is_whole: bool = False) -> PackedRow:
    """The packed row of a batch, on the CPU.

    Args:
        batch: prompts must not be empty. Rows share their prompt if both group id and prompt ids are equal.
        is_whole: keep every token, needed or not (a load-balancing loss counts them all).
    """
    assert all(batch.prompt_ids), "the first completion token needs a prompt to be predicted from"
    row_M, token_M = batch.trained_NT.cpu().nonzero(as_tuple=True)
    length_N = torch.tensor([len(ids) for ids in batch.completion_ids], dtype=torch.long)
    assert bool((token_M < length_N[row_M]).all()), "a trained token lies behind its completion"
    num_inputs = length_N.tolist() if is_whole else _num_inputs(len(batch), row_M, token_M)
    families = _families(batch, num_inputs)

    ids: list[int] = []
    positions: list[int] = []
    copies: list[int] = []
    last_of_prompt, start_of_row = [0] * len(batch), [0] * len(batch)
    prompts: list[Span] = []
    for rows in families:
        prompt = batch.prompt_ids[rows[0]]
        prompts.append(Span(len(ids), len(ids) + len(prompt)))
        ids += prompt
        positions += range(len(prompt))
        copies += [len(rows)] * len(prompt)
        for row in rows:
            last_of_prompt[row] = len(ids) - 1
    segments, branches = list(prompts), []
    for prompt_span, rows in zip(prompts, families, strict=True):
        first = len(ids)
        for row in rows:
            start_of_row[row] = len(ids)
            length = max(num_inputs[row], 0)
            ids += batch.completion_ids[row][:length]
            positions += range(len(prompt_span), len(prompt_span) + length)
            segments.append(Span(len(ids) - length, len(ids)))
        if len(ids) > first:
            longest = max(num_inputs[row] for row in rows)
            branches.append(Branch(Span(first, len(ids)), prompt_span, longest))
    copies += [1] * (len(ids) - len(copies))

    source_M = torch.tensor(start_of_row, dtype=torch.long)[row_M] + token_M - 1
    source_M = torch.where(token_M == 0, torch.tensor(last_of_prompt, dtype=torch.long)[row_M], source_M)
    targets = [batch.completion_ids[row][token] for row, token in zip(row_M.tolist(), token_M.tolist(), strict=True)]
    return PackedRow(
        token_ids_S=torch.tensor(ids),
        positions_S=torch.tensor(positions),
        copies_S=torch.tensor(copies),
        sources_M=source_M,
        targets_M=torch.tensor(targets, dtype=torch.long),
        buckets=_buckets([segment for segment in segments if len(segment)]),
        branches=branches,
    )


def cut_by_tokens(
    prompt_lengths: Sequence[int], completion_lengths: Sequence[int], group_ids: Sequence[int], budget: int
) -> list[list[int]]:
    """Rows of each forward: siblings together, at most `budget` packed tokens, prompts counted once for each forward.

    A group that does not fit beside others starts a forward of its own; one that is larger than the budget is split
    over as few forwards as its order allows, each with its prompt. A single row may exceed the budget: it cannot be
    cut. Groups keep the order of their first rows, and rows that of their group.
    """
    assert budget > 0
    families: dict[tuple[int, int], list[int]] = {}
    for row, key in enumerate(zip(group_ids, prompt_lengths, strict=True)):
        families.setdefault(key, []).append(row)
    parts: list[list[int]] = [[]]
    used = 0
    for (_, prompt_length), rows in families.items():
        size = prompt_length + sum(completion_lengths[row] for row in rows)
        if parts[-1] and used + size > budget:
            parts.append([])
            used = 0
        used += prompt_length
        for row in rows:
            if parts[-1] and used + completion_lengths[row] > budget:
                parts.append([])
                used = prompt_length
            parts[-1].append(row)
            used += completion_lengths[row]
    return [part for part in parts if part]


def _num_inputs(num_rows: int, row_M: Tensor, token_M: Tensor) -> list[int]:
    """Completion tokens that a prediction is made from: all before the last trained one. -1: nothing is trained."""
    last_N = torch.full((num_rows,), -1, dtype=torch.long)
    return last_N.scatter_reduce(0, row_M, token_M, reduce="amax").tolist()


def _families(batch: TrainBatch, num_inputs: list[int]) -> list[list[int]]:
    """Rows by (group, prompt), in order of first appearance; without rows that nothing is trained in."""
    families: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for row, (group_id, prompt) in enumerate(zip(batch.group_ids, batch.prompt_ids, strict=True)):
        if num_inputs[row] >= 0:
            families.setdefault((group_id, tuple(prompt)), []).append(row)
    # A batch without trained tokens still needs a forward that its zeros are connected to.
    return list(families.values()) or [[0]]


def _buckets(segments: list[Span]) -> list[Bucket]:
    """Longest first; of one length in packed order, so that neighbours stay neighbours."""
    buckets: list[list[Span]] = []
    for segment in sorted(segments, key=lambda segment: (-len(segment), segment.start)):
        if buckets and len(segment) >= _MIN_FILL * len(buckets[-1][0]):
            buckets[-1].append(segment)
        else:
            buckets.append([segment])
    return [_bucket(members) for members in buckets]


def _bucket(segments: list[Span]) -> Bucket:
    length = len(segments[0])
    is_view = all(len(segment) == length for segment in segments) and all(
        left.stop == right.start for left, right in itertools.pairwise(segments)
    )
    start_B = torch.tensor([segment.start for segment in segments])
    length_B = torch.tensor([len(segment) for segment in segments])
    step_L = torch.arange(length)
    index_BL = start_B[:, None] + torch.minimum(step_L, length_B[:, None] - 1)
    places = (step_L < length_B[:, None]).flatten().nonzero()[:, 0]
    flat = index_BL.flatten()
    return Bucket(len(segments), length, segments[0].start if is_view else None, flat, places, flat[places])
