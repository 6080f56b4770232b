"""Which completions keep their tokens: the telling groups first, whole, within the budget, the same every time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruppo.monitor.select import Candidates, select_rows

NAN = float("nan")


def made(groups, lengths, advantages=None, rewards=None, gaps=None):
    size = len(groups)
    columns = [np.array(given or [NAN] * size, dtype=np.float64) for given in (advantages, rewards, gaps)]
    return Candidates(groups, lengths, *columns)


def groups_of(rows, candidates):
    return [candidates.group_ids[row] for row in rows]


def test_all_rows_where_the_budget_allows():
    assert select_rows(made([5, 5, 8], [3, 0, 2]), step=1, budget=100) == [0, 2]  # one has no tokens
    assert select_rows(made([5, 5, 8], [3, 0, 2]), step=1, budget=0) == []
    assert select_rows(made([], []), step=1, budget=10) == []


# Ten groups of one completion of one token; one of them sticks out.
@pytest.mark.parametrize("column", ["advantages", "gaps", "rewards"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_extremes_are_taken(column, sign):
    values = [0.1 * sign] * 10
    values[7] = 0.9 * sign
    candidates = made(list(range(10)), [1] * 10, **{column: values})
    rows = select_rows(candidates, step=3, budget=8)
    if column != "gaps" or sign > 0:
        assert 7 in rows


def test_longest_and_shortest_are_taken():
    lengths = [5, 5, 9, 5, 5, 5, 1, 5, 5, 5]
    for step in range(5):
        assert {2, 6} <= set(select_rows(made(list(range(10)), lengths), step=step, budget=35))


def test_the_largest_advantage_goes_first():
    advantages = [0.1] * 20
    advantages[13] = -2.0
    for step in range(5):
        assert select_rows(made(list(range(20)), [4] * 20, advantages), step=step, budget=4) == [13]


def test_the_lot_changes_with_the_step_and_reaches_every_group():
    candidates = made(list(range(8)), [2] * 8, [1.0] + [0.0] * 7)
    chosen = [select_rows(candidates, step=step, budget=4) for step in range(60)]
    assert all(len(rows) <= 2 for rows in chosen)
    assert {row for rows in chosen for row in rows} == set(range(8))
    assert chosen == [select_rows(candidates, step=step, budget=4) for step in range(60)]


def test_a_group_too_large_is_passed_over_and_alone_it_is_cut():
    candidates = made([1, 1, 2], [50, 60, 3], [2.0, -3.0, 0.1])
    assert select_rows(candidates, step=1, budget=40) == [2]
    only = made([1, 1, 1], [50, 60, 70], [2.0, -3.0, 1.0])
    assert select_rows(only, step=1, budget=115) == [0, 1]
    assert select_rows(only, step=1, budget=61) == [1]
    assert select_rows(only, step=1, budget=20) == []


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30), st.floats(-3, 3)), max_size=30),
    st.integers(0, 120),
    st.integers(1, 1000),
)
def test_budget_and_whole_groups(rows, budget, step):
    candidates = made([g for g, _, _ in rows], [n for _, n, _ in rows], [a for _, _, a in rows])
    chosen = select_rows(candidates, step=step, budget=budget)
    assert chosen == sorted(set(chosen))
    assert sum(candidates.num_tokens[row] for row in chosen) <= budget
    taken = set(groups_of(chosen, candidates))
    members = {g: [r for r in range(len(rows)) if rows[r][0] == g and rows[r][1]] for g in taken}
    is_whole = all(set(members[g]) <= set(chosen) for g in taken)
    assert is_whole or len(taken) == 1
