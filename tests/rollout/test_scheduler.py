"""Who is live, in which slot, and what has to be moved."""

import random

import pytest

from gruppo.rollout.scheduler import Grid, Scheduler


def test_without_a_budget_everything_is_admitted_at_once() -> None:
    scheduler = Scheduler([0, 0, 1, 3], [5, 2, 9, 4], max_tokens=10, budget=None)
    assert scheduler.capacity() == (4, 3)
    admission = scheduler.admit()
    assert (admission.prompts, admission.rows) == ([0, 1, 3], [0, 1, 2, 3])
    assert scheduler.admit().rows == []
    assert (scheduler.prompts, scheduler.rows) == ([0, 1, 3], [0, 1, 2, 3])


def test_a_budget_counts_prompts_once_and_rows_in_full_length() -> None:
    scheduler = Scheduler([0, 0, 0, 1], [5, 4], max_tokens=10, budget=25)
    assert scheduler.capacity() == (2, 1)
    assert scheduler.admit().rows == [0, 1]
    scheduler.retire([0])
    # The prompt is live already: only ten tokens more.
    admission = scheduler.admit()
    assert (admission.prompts, admission.rows) == ([], [2])
    scheduler.retire([0, 1])
    assert scheduler.prompts == []
    assert scheduler.admit().prompts == [1]
    scheduler.retire([0])
    assert scheduler.is_done


def test_one_row_is_admitted_however_small_the_budget() -> None:
    scheduler = Scheduler([0, 1], [5, 5], max_tokens=10, budget=1)
    assert scheduler.capacity() == (1, 1)
    for row in (0, 1):
        assert scheduler.admit().rows == [row]
        scheduler.retire([0])
    assert scheduler.is_done


@pytest.mark.parametrize("budget", [2010, 4000, 9000, 60_000, 10**6])
@pytest.mark.parametrize("num_samples", [1, 8])
def test_slots_fit_into_the_budget_where_one_prompt_is_long(budget: int, num_samples: int) -> None:
    """A prefix slot is as long as the longest prompt, whoever lies in it."""
    lengths = [10] * 63 + [2000]
    rows = [prompt for prompt in range(64) for _ in range(num_samples)]
    scheduler = Scheduler(rows, lengths, max_tokens=10, budget=budget)
    num_rows, num_prompts = scheduler.capacity()
    assert num_prompts * 2000 + num_rows * 10 <= budget
    done: list[int] = []
    rng = random.Random(0)
    while not scheduler.is_done:
        scheduler.admit()
        assert 0 < len(scheduler.rows) <= num_rows
        assert 0 < len(scheduler.prompts) <= num_prompts
        leaving = [slot for slot in range(len(scheduler.rows)) if rng.random() < 0.3] or [0]
        done += [scheduler.rows[slot] for slot in leaving]
        scheduler.retire(leaving)
    assert sorted(done) == list(range(len(rows)))


def test_a_budget_that_holds_everything_holds_nothing_back() -> None:
    scheduler = Scheduler([0, 0, 1, 1], [5, 4], max_tokens=10, budget=2 * 5 + 4 * 10)
    assert scheduler.capacity() == (4, 2)
    assert scheduler.admit().rows == [0, 1, 2, 3]


def test_a_prompt_without_rows_makes_no_slot_longer() -> None:
    assert Scheduler([1], [900, 5], max_tokens=10, budget=15).capacity() == (1, 1)


def test_the_last_one_fills_the_hole() -> None:
    scheduler = Scheduler([0, 0, 1, 1, 2], [1, 1, 1], max_tokens=1, budget=None)
    scheduler.admit()
    moves = scheduler.retire([0])
    assert (moves.rows, moves.prompts) == ({0: 4}, {})
    assert scheduler.rows == [4, 1, 2, 3]
    # Row 1 was the last one of prompt 0.
    moves = scheduler.retire([1])
    assert (moves.rows, moves.prompts) == ({1: 3}, {0: 2})
    assert scheduler.rows == [4, 3, 2]
    assert scheduler.prompts == [2, 1]


def test_moves_of_one_retirement_may_be_made_at_once() -> None:
    """Whatever retires: the slots then hold what the scheduler says, and no slot is both read and written."""
    rng = random.Random(0)
    for _ in range(200):
        prompts = sorted(rng.randrange(4) for _ in range(12))
        scheduler = Scheduler(prompts, [1] * 4, max_tokens=1, budget=None)
        scheduler.admit()
        while scheduler.rows:
            rows, live_prompts = list(scheduler.rows), list(scheduler.prompts)
            leaving = rng.sample(range(len(rows)), rng.randint(1, len(rows)))
            moves = scheduler.retire(leaving)
            for slots, copies, now in (
                (rows, moves.rows, scheduler.rows),
                (live_prompts, moves.prompts, scheduler.prompts),
            ):
                assert not set(copies) & set(copies.values())
                assert [slots[copies.get(slot, slot)] for slot in range(len(now))] == now
            assert set(scheduler.prompts) == {prompts[row] for row in scheduler.rows}
    assert scheduler.is_done


def test_the_grid_holds_rows_by_prompt() -> None:
    scheduler = Scheduler([0, 0, 0, 1, 1], [1, 1], max_tokens=1, budget=None)
    scheduler.admit()
    assert scheduler.grid() == Grid(3, [0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 4])
    assert not scheduler.grid().is_identity
    scheduler.retire([1])  # the row of prompt 1 in slot 4 moves to slot 1
    assert scheduler.grid() == Grid(2, [0, 2, 1, 3], [0, 2, 1, 3])


@pytest.mark.parametrize(
    ("grid", "is_identity"),
    [
        (Grid(2, [0, 1, 2, 3], [0, 1, 2, 3]), True),
        (Grid(2, [0, 2, 1, 3], [0, 2, 1, 3]), False),  # its own inverse, and still a permutation
        (Grid(2, [0, 1, 2, 0], [0, 1, 2]), False),
    ],
)
def test_only_a_full_grid_in_order_is_the_identity(grid: Grid, is_identity: bool) -> None:
    assert grid.is_identity is is_identity
