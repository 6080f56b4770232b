"""Readers cope with what a kill leaves behind, and follow the rule for attempts."""

import json
import random

import pyarrow as pa
import pytest

from gruppo.monitor import readers, step_folders
from gruppo.monitor.files import write_parquet
from gruppo.monitor.readers import each_metrics, read_lines, read_metrics, read_rollouts
from monitor import monitor_fakes as fakes


def write_lines(path, lines, tail=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


def line(step, attempt=1, split="train", **metrics):
    return {"step": step, "split": split, "attempt": attempt, "time": 0.0, **metrics}


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [line(1), line(2)], tail='{"step": 3, "spl')
    assert [found["step"] for found in read_metrics(path)] == [1, 2]
    assert read_lines(tmp_path / "missing.jsonl") == []


def test_the_next_attempt_does_not_continue_a_torn_line(tmp_path):
    write_lines(tmp_path / "metrics.jsonl", [line(1)], tail='{"step": 2, "spl')
    recorder = fakes.make_recorder(tmp_path, start_step=None)
    recorder.record_step(2, {"reward": 0.5})
    recorder.close()
    assert [found["step"] for found in read_metrics(tmp_path)] == [1, 2]


def test_last_line_of_a_step_wins_and_later_attempts_cut_earlier_ones(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(
        path,
        [
            line(1, x=1),
            line(2, x=2),
            line(2, split="eval", x=20),
            line(3, x=3),
            line(3, split="eval", x=30),
            line(4, x=4),
            line(3, attempt=2, x=33),
            line(3, attempt=2, x=34),
            line(3, attempt=2, split="eval", x=35),
        ],
    )
    assert [(found["step"], found["x"]) for found in read_metrics(path)] == [(1, 1), (2, 2), (3, 34)]
    assert [found["x"] for found in read_metrics(path, split="eval")] == [20, 35]
    assert [found["x"] for found in read_metrics(path, split=None)] == [1, 2, 20, 34, 35]


def test_an_evaluation_alone_takes_no_training_line_away(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [line(1), line(2), line(0, attempt=2, split="eval")])
    assert [found["step"] for found in read_metrics(path)] == [1, 2]


def plainly_kept(lines):
    """The rule as it is written down, line by line over all that is kept."""
    kept = {}
    for line in lines:
        step, split = line["step"], line["split"]
        if split == "train":
            kept = {key: old for key, old in kept.items() if old["attempt"] == line["attempt"] or old["step"] < step}
        kept[step, split] = line
    return sorted(kept.values(), key=lambda line: (line["step"], line["split"] != "train"))


@pytest.mark.parametrize("seed", range(40))
def test_lines_one_at_a_time_are_those_that_the_rule_keeps(tmp_path, seed):
    dice = random.Random(seed)
    lines, step = [], 0
    for attempt in (1, 2, 3):
        step = max(0, step - dice.randrange(6))
        for _ in range(dice.randrange(12)):
            step += dice.choice((0, 1, 1, 2))
            splits = ["train"] * dice.randrange(2) + ["eval"] * dice.randrange(2)
            lines += [{"step": step, "split": split, "attempt": attempt, "n": len(lines)} for split in splits]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "spl', encoding="utf-8")
    wanted = plainly_kept(lines)
    assert list(each_metrics(tmp_path)) == wanted
    assert sorted(read_metrics(file, split=None), key=lambda line: (line["step"], line["split"] != "train")) == wanted


def test_no_metrics_yet_are_no_lines(tmp_path):
    assert list(each_metrics(tmp_path)) == []


def test_rollouts_ignore_unfinished_parts_and_sort_rows(tmp_path):
    recorder = fakes.make_recorder(tmp_path)
    fakes.record_round(recorder, 2)
    fakes.record_round(recorder, 1)
    fakes.record_round(recorder, 1, "eval", late=["x"] * 4)
    recorder.close()
    (tmp_path / "rollouts/step-000001/.part-r1-a1.parquet.tmp").write_bytes(b"PAR1 cut short")
    table = read_rollouts(tmp_path)
    assert table.column("step").to_pylist() == [1] * 8 + [2] * 4
    assert table.column("split").to_pylist() == ["eval"] * 4 + ["train"] * 8
    assert read_rollouts(tmp_path, step=1, split="train", columns=["prompt_id", "sample"]).to_pydict() == {
        "prompt_id": [7, 7, 9, 9],
        "sample": [0, 1, 0, 1],
    }
    assert read_rollouts(tmp_path / "nowhere").num_rows == 0


def test_parts_that_move_away_while_they_are_read_are_not_missed(tmp_path, monkeypatch):
    """A resumed run does that at any moment; what is left is the answer."""
    recorder = fakes.make_recorder(tmp_path)
    for step in (1, 2, 3):
        fakes.record_round(recorder, step)
    recorder.close()
    listed = readers.part_files

    def moving(folder, step):
        files = listed(folder, step)
        last = max(folder.iterdir())
        if last.name.endswith("3"):
            last.rename(tmp_path / "elsewhere")
        return files

    monkeypatch.setattr(readers, "part_files", moving)
    assert set(read_rollouts(tmp_path)["step"].to_pylist()) == {1, 2}


def test_a_part_that_is_written_anew_while_it_is_read(tmp_path, monkeypatch):
    """Each part is opened once: never the beginning of one version and the end of another."""
    recorder = fakes.make_recorder(tmp_path)
    fakes.record_round(recorder, 1)
    recorder.close()
    (part,) = tmp_path.glob("rollouts/*/*.parquet")
    opened, inner = [], readers.pq.ParquetFile

    def opening(path):
        file = inner(path)
        opened.append(path)
        write_parquet(part, pa.table({"step": [9], "split": ["train"], "group_id": [0], "sample": [0]}))
        return file

    monkeypatch.setattr(readers.pq, "ParquetFile", opening)
    assert set(read_rollouts(tmp_path)["step"].to_pylist()) == {1}
    assert opened == [part]


def test_a_folder_that_goes_while_it_is_listed_has_no_parts(tmp_path, monkeypatch):
    recorder = fakes.make_recorder(tmp_path)
    for step in (1, 2):
        fakes.record_round(recorder, step)
    recorder.close()
    listdir = step_folders.os.listdir

    def moving(folder):
        names = listdir(folder)
        if folder.name == "rollouts":
            (folder / "step-000002").rename(tmp_path / "elsewhere")
        return names

    monkeypatch.setattr(step_folders.os, "listdir", moving)
    assert set(read_rollouts(tmp_path)["step"].to_pylist()) == {1}


def test_a_part_that_is_listed_but_not_there_is_said(tmp_path):
    recorder = fakes.make_recorder(tmp_path)
    fakes.record_round(recorder, 1)
    recorder.close()
    (part,) = tmp_path.glob("rollouts/*/*.parquet")
    part.with_name("part-r1-a1.parquet").symlink_to(tmp_path / "nowhere.parquet")
    with pytest.raises(FileNotFoundError, match=r"part-r1-a1\.parquet"):
        read_rollouts(tmp_path)
