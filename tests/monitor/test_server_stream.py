"""Server-sent events: a change when the run wrote, a beat when it did not, an end; and no more streams than allowed."""

import json
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from gruppo.monitor.server.refusal import Refusal
from gruppo.monitor.server.store import Store
from gruppo.monitor.server.stream import MAX_STREAMS, Streams, marks
from monitor.server_runs import client_of, line, only_run, small_run, two_groups, write_lines, write_part


def run(task: Callable[[], Awaitable[None]]) -> None:
    """In a thread: the browser tests' Playwright keeps a loop of its own in the main one until the session ends."""
    with start_blocking_portal() as portal:
        portal.call(task)


def collected(root: Path, doings: list[Callable[[], object]]) -> list[bytes]:
    """What a stream says while `doings` happen, one between each two looks; a look takes ten seconds of its clock."""
    store, now, said = Store(root), [0.0], []

    async def sleep(_: float) -> None:
        now[0] += 10.0
        if doings:
            doings.pop(0)()
        else:
            streams.is_closing = lambda: True

    streams = Streams(store, sleep=sleep, clock=lambda: now[0])

    async def read() -> None:
        said.extend([text async for text in streams.open(store.runs()[0])])

    run(read)
    return said


def data_of(text: bytes) -> dict[str, object]:
    head, body = text.decode().split("\n", 1)
    assert head == "event: change"
    assert body.startswith("data: ")
    assert body.endswith("\n\n")
    return json.loads(body.removeprefix("data: "))


def test_a_stream_says_what_changed(tmp_path: Path) -> None:
    run = small_run(tmp_path / "r", 2)
    said = collected(
        tmp_path,
        [
            lambda: write_lines(run / "metrics.jsonl", [line(3, reward=1.0)]),
            lambda: write_part(run, two_groups(3)),
            lambda: None,
            lambda: None,
            lambda: write_lines(run / "events.jsonl", [{"kind": "checkpoint", "attempt": 1, "time": 1}]),
        ],
    )
    first, metrics, rollouts, beat, events = said
    assert beat == b": beat\n\n"
    changes = [data_of(text) for text in (first, metrics, rollouts, events)]
    different = [{name for name in a if a[name] != b[name]} for a, b in pairwise(changes)]
    assert different == [{"metrics"}, {"rollouts"}, {"events"}]
    assert changes[-1]["rollouts"] == 3
    assert changes[-1]["tokens"] is None


def test_a_stream_ends_by_itself(tmp_path: Path) -> None:
    small_run(tmp_path / "r", 2)
    said = collected(tmp_path, [lambda: None] * 1000)
    assert len(said) < 60, "ten minutes of beats at most"


def test_a_stream_outlives_its_folder(tmp_path: Path) -> None:
    run = small_run(tmp_path / "r", 2)
    said = collected(tmp_path, [lambda: run.rename(tmp_path / "s"), lambda: None])
    assert data_of(said[0])["rollouts"] == 2


def test_streams_are_limited(tmp_path: Path) -> None:
    small_run(tmp_path / "r", 2)
    store = Store(tmp_path)
    streams = Streams(store)

    async def open_many() -> None:
        opened = [streams.open(store.runs()[0]) for _ in range(MAX_STREAMS)]
        for stream in opened:
            await anext(stream)  # type: ignore[call-overload]
        with pytest.raises(Refusal, match="poll instead"):
            streams.open(store.runs()[0])
        for stream in opened:
            await stream.aclose()  # type: ignore[attr-defined]
        streams.open(store.runs()[0])

    run(open_many)


def test_a_stream_over_http(tmp_path: Path) -> None:
    small_run(tmp_path / "r", 2)
    store = Store(tmp_path)

    async def sleep(_: float) -> None:
        streams.is_closing = lambda: True

    streams = Streams(store, sleep=sleep)
    with client_of(tmp_path, store, streams=streams) as client:
        response = client.get(f"/api/{only_run(client)}/stream")
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert data_of(response.content) == marks(store, store.runs()[0])
        assert client.get("/api/runs/x-000000/stream").status_code == 404
