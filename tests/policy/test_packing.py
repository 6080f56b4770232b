"""Packed rows: what lies where, what is left out, and how rows are cut into forwards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gruppo.policy.packing import Branch, Span, cut_by_tokens, pack
from gruppo.types import TrainBatch


def batch_of(
    prompts: list[list[int]], completions: list[list[int]], groups: list[int], untrained: frozenset[tuple[int, int]]
) -> TrainBatch:
    longest = max(len(ids) for ids in completions)
    trained_NT = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for i, ids in enumerate(completions):
        for t in range(len(ids)):
            trained_NT[i, t] = (i, t) not in untrained
    return TrainBatch(prompts, completions, trained_NT, torch.zeros(len(prompts)), groups, [0] * len(prompts))


TWO_GROUPS = (
    [[5, 6, 7], [3, 4], [5, 6, 7], [5, 6, 7]],
    [[10, 11, 12], [20], [], [13, 14]],
    [0, 1, 0, 0],
)


def test_a_packed_row_by_hand() -> None:
    """Prompts first, then completions by group, each without its last token: nothing is predicted from that."""
    row = pack(batch_of(*TWO_GROUPS, untrained=frozenset()))
    #                                  prompt 0  prompt 1  row 0   row 3
    assert row.token_ids_S.tolist() == [5, 6, 7, 3, 4, 10, 11, 13]
    assert row.positions_S.tolist() == [0, 1, 2, 0, 1, 3, 4, 3]
    assert row.copies_S.tolist() == [2, 2, 2, 1, 1, 1, 1, 1]
    # Trained tokens row by row: 10 11 12 | 20 | 13 14; the first of each row is predicted from the prompt's last.
    assert row.targets_M.tolist() == [10, 11, 12, 20, 13, 14]
    assert row.sources_M.tolist() == [2, 5, 6, 4, 2, 7]
    assert row.branches == [Branch(completions=Span(5, 8), prompt=Span(0, 3), longest=2)]
    assert len(row) == 8


def test_whole_rows_keep_every_token() -> None:
    row = pack(batch_of(*TWO_GROUPS, untrained=frozenset()), is_whole=True)
    assert row.token_ids_S.tolist() == [5, 6, 7, 3, 4, 10, 11, 12, 13, 14, 20]
    assert row.copies_S.tolist() == [3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1]
    assert row.sources_M.tolist() == [2, 5, 6, 4, 2, 8]
    assert [branch.completions for branch in row.branches] == [Span(5, 10), Span(10, 11)]


def test_what_nothing_trained_depends_on_is_left_out() -> None:
    """Row 0: only its first token is trained. Row 1: nothing, so its prompt goes too. Row 3: only its last."""
    row = pack(batch_of(*TWO_GROUPS, untrained=frozenset({(0, 1), (0, 2), (1, 0), (3, 0)})))
    assert row.token_ids_S.tolist() == [5, 6, 7, 13]
    assert row.targets_M.tolist() == [10, 14]
    assert row.sources_M.tolist() == [2, 3]


def test_a_batch_without_trained_tokens_keeps_one_prompt() -> None:
    untrained = frozenset({(0, 0), (0, 1), (0, 2), (1, 0), (3, 0), (3, 1)})
    row = pack(batch_of(*TWO_GROUPS, untrained=untrained))
    assert row.token_ids_S.tolist() == [5, 6, 7]
    assert row.targets_M.tolist() == []


def test_rows_of_one_group_with_other_prompts_do_not_share() -> None:
    row = pack(batch_of([[5, 6], [5, 7], [5, 6]], [[1, 2], [1, 2], [1, 2]], [0, 0, 0], untrained=frozenset()))
    assert row.token_ids_S.tolist() == [5, 6, 5, 7, 1, 1, 1]
    assert row.copies_S.tolist() == [2, 2, 1, 1, 1, 1, 1]
    # Nor do equal prompts of two groups: their rows may meet in one forward by chance.
    assert len(pack(batch_of([[5, 6], [5, 6]], [[1, 2], [1, 2]], [0, 1], untrained=frozenset()))) == 6


def test_buckets_hold_each_token_once() -> None:
    lengths = [9, 3, 8, 8, 2, 1]
    prompts = [[1, 2, 3, 4]] * 6
    row = pack(batch_of(prompts, [[7] * n for n in lengths], [0] * 6, untrained=frozenset()), is_whole=True)
    assert sorted(torch.cat([bucket.tokens for bucket in row.buckets]).tolist()) == list(range(len(row)))
    assert [(bucket.num, bucket.length) for bucket in row.buckets] == [(3, 9), (1, 4), (1, 3), (1, 2), (1, 1)]
    values_S = torch.arange(len(row)) + 100.0
    for bucket in row.buckets:
        taken = bucket.take(values_S)
        assert taken.shape == (bucket.num, bucket.length)
        assert torch.equal(taken.flatten()[bucket.places], values_S[bucket.tokens])
        target_S = torch.zeros(len(row))
        bucket.put(target_S, taken)
        kept = torch.zeros(len(row), dtype=torch.bool)
        kept[bucket.tokens] = True
        assert torch.equal(target_S, values_S * kept)
        assert bucket.without_padding(taken).count_nonzero() == bucket.tokens.numel()


def test_neighbours_of_one_length_are_a_view() -> None:
    batch = batch_of([[1, 2]] * 4, [[7, 8, 9, 9]] * 4, [0, 0, 1, 1], untrained=frozenset())
    completions, prompts = pack(batch).buckets
    assert (completions.num, completions.length, completions.start) == (4, 3, 4)
    assert (prompts.num, prompts.length, prompts.start) == (2, 2, 0)
    values_S = torch.arange(16.0)
    assert prompts.take(values_S).data_ptr() == values_S.data_ptr()


def test_mistakes_of_ours() -> None:
    with pytest.raises(AssertionError, match="needs a prompt"):
        pack(batch_of([[]], [[3]], [0], untrained=frozenset()))
    batch = batch_of([[5]], [[3, 4]], [0], untrained=frozenset())
    batch.completion_ids = [[3]]
    with pytest.raises(AssertionError, match="behind its completion"):
        pack(batch)


def cost(part: list[int], prompts: list[int], completions: list[int], groups: list[int]) -> int:
    shared = {(groups[row], prompts[row]) for row in part}
    return sum(length for _, length in shared) + sum(completions[row] for row in part)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (100, [[0, 1, 2, 3, 4, 5]]),
        (34, [[0, 1, 2, 3, 4, 5]]),
        (33, [[0, 1, 2, 3, 4], [5]]),
        (20, [[0, 1, 2], [3, 4, 5]]),
        (16, [[0, 1], [2], [3, 4, 5]]),
        (1, [[0], [1], [2], [3], [4], [5]]),
    ],
)
def test_cuts_by_hand(budget: int, expected: list[list[int]]) -> None:
    groups = [0, 0, 0, 1, 1, 2]
    prompts = [10, 10, 10, 4, 4, 5]
    completions = [3, 3, 4, 2, 2, 1]
    assert cut_by_tokens(prompts, completions, groups, budget) == expected


rows_of_step = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), max_size=30)


@settings(max_examples=200, deadline=None)
@given(
    rows=rows_of_step, prompt_lengths=st.lists(st.integers(1, 15), min_size=5, max_size=5), budget=st.integers(1, 60)
)
def test_cuts_keep_every_row_once_and_the_budget(
    rows: list[tuple[int, int]], prompt_lengths: list[int], budget: int
) -> None:
    groups = [group for group, _ in rows]
    prompts = [prompt_lengths[group] for group in groups]
    completions = [length for _, length in rows]
    parts = cut_by_tokens(prompts, completions, groups, budget)
    assert sorted(row for part in parts for row in part) == list(range(len(rows)))
    for part in parts:
        assert len(part) == 1 or cost(part, prompts, completions, groups) <= budget
    # A group that fits into one forward is never torn.
    for group in set(groups):
        members = [row for row, number in enumerate(groups) if number == group]
        if cost(members, prompts, completions, groups) <= budget:
            assert any(set(members) <= set(part) for part in parts)
