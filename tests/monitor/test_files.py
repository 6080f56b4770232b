"""Files appear whole or not at all, and a slow disk never holds up training for long."""

import os
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gruppo.monitor import files
from gruppo.monitor.files import Once, PartWriter, write_parquet, write_whole


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
    accepted = [writer.submit(tmp_path / "p", lambda: pa.table({})) for _ in range(files.MAX_WAITING_PARTS + 2)]
    stuck.set()
    writer.close()
    assert [future is not None for future in accepted] == [True] * files.MAX_WAITING_PARTS + [False, False]
    assert failures == []


def test_a_disk_that_hangs_holds_training_up_once(tmp_path, monkeypatch):
    stuck = threading.Event()
    monkeypatch.setattr(files, "write_parquet", lambda path, table: stuck.wait(30))
    writer = PartWriter(lambda doing, error: None, patience=7.0)
    waited = []

    class Full:
        def acquire(self, timeout):
            waited.append(timeout)
            return False

        def release(self): ...

    writer._slots = Full()
    make = lambda: pa.table({})  # noqa: E731
    assert not writer.submit(tmp_path / "tokens", make, can_wait=False)
    assert not writer.submit(tmp_path / "a", make)
    assert not writer.submit(tmp_path / "b", make)
    assert waited == [0.0, 7.0, 0.0]
    stuck.set()
    writer.close()


def test_what_is_queued_is_made_in_the_background_and_drained(tmp_path):
    threads = []

    def make():
        threads.append(threading.current_thread().name)
        return pa.table({"x": [1]})

    writer = PartWriter(lambda doing, error: None)
    assert writer.submit(tmp_path / "a.parquet", make)
    assert writer.submit(tmp_path / "b.parquet", lambda: None)
    writer.drain()
    assert os.listdir(tmp_path) == ["a.parquet"]
    assert threads[0].startswith("gruppo-recorder")
    writer.close()


def version(number):
    return lambda: pa.table({"version": [number]})


def test_an_early_part_gives_way_to_a_better_one_that_comes_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "EARLY_SECONDS", 30.0)
    written, write = [], files.write_parquet
    monkeypatch.setattr(files, "write_parquet", lambda path, table: written.append(path) or write(path, table))
    writer, path = PartWriter(lambda doing, error: None), tmp_path / "a.parquet"
    writer.submit(path, version(1), is_early=True)
    writer.submit(path, version(2))
    writer.close()
    assert written == [path]
    assert pq.read_table(path).to_pydict() == {"version": [2]}


@pytest.mark.parametrize("what", ["time", "another part", "drain", "hurry", "close"])
def test_an_early_part_is_written_when_its_time_has_come(tmp_path, monkeypatch, what):
    monkeypatch.setattr(files, "EARLY_SECONDS", 0.01 if what == "time" else 30.0)
    writer, path = PartWriter(lambda doing, error: None), tmp_path / "a.parquet"
    written = writer.submit(path, version(1), is_early=True)
    if what == "another part":
        writer.submit(tmp_path / "b.parquet", version(1))
    elif what != "time":
        getattr(writer, what)()
    written.result(timeout=20)
    assert pq.read_table(path).to_pydict() == {"version": [1]}
    writer.close()


@pytest.mark.parametrize("better", [lambda: 1 / 0, lambda: None])
def test_an_early_part_is_better_than_none(tmp_path, monkeypatch, better):
    monkeypatch.setattr(files, "EARLY_SECONDS", 30.0)
    failures = []
    writer, path = PartWriter(lambda doing, error: failures.append((doing, str(error)))), tmp_path / "a.parquet"
    writer.submit(path, version(1), is_early=True)
    writer.submit(path, better)
    writer.close()
    assert pq.read_table(path).to_pydict() == {"version": [1]}
    assert all(failure == ("writing a.parquet", "division by zero") for failure in failures)


def test_a_part_that_cannot_be_made_is_reported(tmp_path):
    failures = []
    writer = PartWriter(lambda doing, error: failures.append((doing, str(error))))
    writer.submit(tmp_path / "a.parquet", lambda: 1 / 0)
    writer.close()
    assert failures == [("writing a.parquet", "division by zero")]


def test_a_table_is_made_once_whoever_asks_first():
    calls, failures = [], []
    table = Once(lambda: calls.append(1) or pa.table({"x": [1]}), lambda *error: failures.append(error), "making")
    assert table().to_pydict() == table().to_pydict() == {"x": [1]}
    assert calls == [1]
    broken = Once(lambda: 1 / 0, lambda doing, error: failures.append((doing, str(error))), "making")
    assert broken() is None
    assert broken() is None
    assert failures == [("making", "division by zero")]
