"""Which checkpoints go: the oldest, never the best nor the newest."""

from pathlib import Path

import pytest

from gruppo.retention import checkpoints, delete_old, to_delete


def folders(*steps):
    return [Path(f"checkpoint-{step}") for step in steps]


@pytest.mark.parametrize(
    ("limit", "best", "gone"),
    [
        (None, None, []),
        (9, None, []),
        (4, None, []),
        (2, None, [1, 2]),
        (1, None, [1, 2, 3]),
        (2, 1, [2, 3]),
        (2, 4, [1, 2]),
        (3, 1, [2]),
        (1, 2, [1, 3]),  # the newest stays for resuming, the best for loading
    ],
)
def test_the_oldest_go_first(limit, best, gone):
    best_folder = None if best is None else folders(best)[0]
    assert to_delete(folders(1, 2, 3, 4), limit, best_folder) == folders(*gone)


def test_nothing_there_nothing_to_delete():
    assert to_delete([], 1, None) == []


def test_a_best_that_is_gone_does_not_count():
    assert to_delete(folders(2, 3), 2, folders(1)[0]) == []


def test_folders_are_ordered_by_number_and_others_left_alone(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-best", "runs", ".checkpoint-8.partial"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert delete_old(tmp_path, 1, Path("elsewhere/checkpoint-9")) == []
    assert [path.name for path in delete_old(tmp_path, 1, None)] == ["checkpoint-9"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".checkpoint-8.partial",
        "checkpoint-10",
        "checkpoint-best",
        "runs",
    ]
