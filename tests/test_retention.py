"""Which checkpoints go: the oldest, never the best nor the one just written; and which are put aside."""

from pathlib import Path

import pytest

from gruppo.retention import checkpoints, delete_old, last_put_aside, put_aside, to_delete


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
    kept = folders(4) if best is None else folders(4, best)
    assert to_delete(folders(1, 2, 3, 4), limit, kept) == folders(*gone)


def test_the_one_just_written_stays_even_if_it_is_not_the_highest():
    assert to_delete(folders(1, 2, 9), 1, folders(2)) == folders(1, 9)


def test_nothing_there_nothing_to_delete():
    assert to_delete([], 1, folders(1)) == []


def test_a_best_that_is_gone_does_not_count():
    assert to_delete(folders(2, 3), 2, folders(3, 1)) == []


def test_folders_are_ordered_by_number_and_others_left_alone(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-best", "runs", ".checkpoint-8.partial"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    written = tmp_path / "checkpoint-10"
    assert delete_old(written, 1, Path("elsewhere/checkpoint-9")) == []
    assert [path.name for path in delete_old(written, 1, None)] == ["checkpoint-9"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".checkpoint-8.partial",
        "checkpoint-10",
        "checkpoint-best",
        "runs",
    ]


def test_checkpoints_of_steps_made_anew_are_put_aside(tmp_path):
    for name in ("checkpoint-1", "checkpoint-2", "checkpoint-10", "checkpoint-best"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-10" / "manifest.json").write_text("{}")
    assert [path.name for path in put_aside(tmp_path, start_step=2, attempt=3)] == ["checkpoint-10"]
    assert (tmp_path / "superseded" / "a3" / "checkpoint-10" / "manifest.json").is_file()
    assert [path.name for path in put_aside(tmp_path, start_step=0, attempt=4)] == ["checkpoint-1", "checkpoint-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-best", "superseded"]
    assert put_aside(tmp_path, start_step=0, attempt=5) == []
    assert not (tmp_path / "superseded" / "a5").exists()


def test_what_was_put_aside_is_found_again(tmp_path):
    assert last_put_aside(tmp_path) is None
    for name in ("a2/checkpoint-9", "a10/checkpoint-2", "a10/checkpoint-10", "a10/rollouts"):
        (tmp_path / "superseded" / name).mkdir(parents=True)
    assert last_put_aside(tmp_path) == tmp_path / "superseded" / "a10" / "checkpoint-10"
    assert last_put_aside(tmp_path / "checkpoint-9") == tmp_path / "superseded" / "a2" / "checkpoint-9"
    assert last_put_aside(tmp_path / "checkpoint-7") is None
