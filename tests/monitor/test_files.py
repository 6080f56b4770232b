"""Files appear whole or not at all, and a slow disk never holds up training for long."""

import os
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gruppo.monitor import files
from gruppo.monitor.files import PartWriter, write_parquet, write_whole


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")

    def killed(temporary):
        temporary.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, killed)
    assert path.read_text() == "old"
    write_whole(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_killed_parquet_part_is_invisible_to_readers(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", pa.table({"x": [1]}))

    def killed(table, where, **kwargs):
        where.write_bytes(b"PAR1")
        raise KeyboardInterrupt

    monkeypatch.setattr(files.pq, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        write_parquet(tmp_path / "b.parquet", pa.table({"x": [2]}))
    assert pq.read_table(tmp_path).to_pydict() == {"x": [1]}


def test_parts_are_dropped_when_the_disk_is_stuck(tmp_path, monkeypatch):
    stuck = threading.Event()
    monkeypatch.setattr(files, "write_parquet", lambda path, table: stuck.wait(30))
    failures = []
    writer = PartWriter(lambda doing, error: failures.append(doing), patience=0.0)
    accepted = [writer.submit(tmp_path / "p", pa.table({})) for _ in range(files.MAX_WAITING_PARTS + 2)]
    stuck.set()
    writer.close()
    assert accepted == [True] * files.MAX_WAITING_PARTS + [False, False]
    assert failures == []
