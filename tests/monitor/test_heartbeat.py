"""The heartbeat: what it says, that it goes on by itself, and what the server makes of it."""

import json
import os
import threading

import pytest

from gruppo.monitor import heartbeat
from gruppo.monitor.heartbeat import Heartbeat
from gruppo.monitor.schema import HEARTBEAT_FIELDS
from gruppo.monitor.server.status import read_facts, signature, status_of
from gruppo.monitor.server.verdict import STATE_FACTS, STATE_HEADS
from monitor import monitor_fakes as fakes
from monitor.server_runs import line, write_lines, write_run_json


def read(path):
    return json.loads(path.read_text())


def test_it_beats_at_once_by_itself_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    path, asked, seen = tmp_path / "heartbeat.json", threading.Event(), [(0, "")]
    clock = iter(range(100, 10_000))
    monkeypatch.setattr(heartbeat.time, "time", lambda: float(next(clock)))

    def look():
        if seen[-1][0] and threading.current_thread().name == "gruppo-heartbeat":
            asked.set()
        return seen[-1]

    beats = Heartbeat(path, 3, look, lambda doing, error: pytest.fail(doing))
    first = read(path)
    assert set(first) == set(HEARTBEAT_FIELDS)
    assert (first["attempt"], first["step"], first["phase"], first["pid"]) == (3, 0, "", os.getpid())
    assert first["time"] == first["changed"] == 100.0
    seen.append((7, "generate"))
    assert asked.wait(30)  # nobody tells it
    beats.close()
    last = read(path)
    assert (last["step"], last["phase"]) == (7, "generate")
    assert first["changed"] < last["changed"] < last["time"]
    assert os.listdir(tmp_path) == ["heartbeat.json"]


def test_a_beat_that_fails_is_told_and_tried_again(tmp_path):
    failures = []
    blocked = tmp_path / "file"
    blocked.write_text("")
    Heartbeat(blocked / "heartbeat.json", 1, lambda: (0, ""), lambda doing, error: failures.append(doing)).close()
    assert failures == ["writing heartbeat.json"] * 2


def test_the_recorder_beats_where_it_is_told_how(tmp_path):
    recorder = fakes.make_recorder(tmp_path / "a", look=lambda: (5, "score"))
    recorder.close()
    assert read(tmp_path / "a" / "heartbeat.json")["step"] == 5
    fakes.make_recorder(tmp_path / "b").close()
    assert not (tmp_path / "b" / "heartbeat.json").exists()


def state_of(run, now, *, changed, attempt=1, step_time=1.0, files=5000):
    """The state at `now` of a run whose lines were written at `files`, and whose last beat was at 6000."""
    write_run_json(run)
    write_lines(run / "metrics.jsonl", [line(1, step_time=step_time)])
    for path in run.iterdir():
        os.utime(path, (files, files))
    beat = {"time": 77_000.0, "changed": 77_000.0 - changed, "attempt": attempt, "step": 1, "phase": "update"}
    (run / "heartbeat.json").write_text(json.dumps(beat))  # of a machine whose clock is wrong
    os.utime(run / "heartbeat.json", (6000, 6000))
    return status_of(read_facts(run), signature(run), now).state


@pytest.mark.parametrize(
    ("now", "changed", "more", "state"),
    [
        (6010, 5, {}, "running"),
        (6010, 500, {}, "running"),  # a long phase, and no line written for a quarter of an hour
        (6010, 700, {}, "stalled"),
        (6010, 700, {"step_time": 100.0}, "running"),  # steps of that length are usual
        (6031, 5, {}, "dead"),
        (6031, 700, {}, "dead"),
        (6010, 5, {"attempt": 2}, "running"),  # not of the latest attempt: only that something was written counts
        (6200, 5, {"attempt": 2}, "silent"),
    ],
)
def test_running_stalled_dead(tmp_path, now, changed, more, state):
    assert state_of(tmp_path, now, changed=changed, **more) == state


@pytest.mark.parametrize("text", ["", "{", "[]", '{"attempt": 1}', '{"attempt": 1, "time": "x", "changed": null}'])
def test_a_damaged_heartbeat_hurts_nobody(tmp_path, text):
    write_run_json(tmp_path)
    (tmp_path / "heartbeat.json").write_text(text)
    os.utime(tmp_path / "heartbeat.json", (6000, 6000))
    os.utime(tmp_path / "run.json", (6000, 6000))
    assert status_of(read_facts(tmp_path), signature(tmp_path), 6010).state == "running"


def test_an_end_that_was_recorded_needs_no_heartbeat(tmp_path):
    write_lines(tmp_path / "events.jsonl", [{"kind": "attempt_stop", "attempt": 1, "time": 1.0, "outcome": "finished"}])
    assert state_of(tmp_path, 90_000, changed=5) == "finished"


def test_every_state_that_is_no_good_has_its_words():
    assert set(STATE_FACTS) == set(STATE_HEADS) == {"silent", "stalled", "dead", "failed"}
