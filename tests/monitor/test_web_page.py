"""`monitor="web"`: a process that serves the run, tells its URL once, goes when nobody looks, and breaks nothing."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import fakes
from gruppo.config import GRPOConfig
from gruppo.errors import ConfigError
from gruppo.monitor.server.lifetime import Lifetime
from gruppo.monitor.server.serve import DEFAULT_PORT
from gruppo.monitor.web import WebPage
from monitor.server_runs import small_run

IMPATIENT = (
    sys.executable,
    "-c",
    "import sys; from gruppo.monitor.server import attached, lifetime; "
    "lifetime.Lifetime.__init__.__kwdefaults__.update(patience=0.0, period=0.01); "
    "sys.exit(attached.main(sys.argv[1]))",
)
"""As web.COMMAND, but it ends as soon as its trainer has."""


class Said:
    """Hears what is said in the listening thread."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._heard = threading.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self._heard.set()

    def wait(self) -> str:
        assert self._heard.wait(timeout=120)
        return self.lines[0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_run(tmp_path / "run", 3)


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def pages() -> Iterator[list[WebPage]]:
    """Pages that the test opened; they are ended after it."""
    pages: list[WebPage] = []
    yield pages
    for page in pages:
        page.close()


def answer(url: str, path: str, **headers: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    with closing(HTTPConnection("127.0.0.1", parts.port or 0, timeout=60)) as connection:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()


@pytest.fixture
def _taken_port() -> Iterator[None]:
    """The usual port is somebody else's."""
    try:
        other = socket.create_server(("127.0.0.1", DEFAULT_PORT))
    except OSError:  # it is already
        yield
        return
    with other:
        yield


@pytest.mark.usefixtures("_taken_port")
def test_the_page_of_a_run(run: Path, said: Said, pages: list[WebPage]) -> None:
    page = WebPage(run, said)
    pages.append(page)
    page.open()
    url = said.wait().removeprefix("monitor     ")
    assert url == page.url
    assert urlsplit(url).hostname == "127.0.0.1"
    assert urlsplit(url).port != DEFAULT_PORT
    token = urlsplit(url).fragment.removeprefix("token=")
    status, body = answer(url, "/api/runs", Authorization=f"Bearer {token}")
    assert (status, [found["name"] for found in json.loads(body)["runs"]]) == (200, ["run"])
    assert answer(url, "/api/runs")[0] == 401
    page.open()
    assert page.url == url
    page.close()
    assert page.url is None
    assert said.lines == [f"monitor     {url}"], "it is said once"


def test_a_page_that_does_not_start_says_why(run: Path, said: Said, pages: list[WebPage]) -> None:
    broken = (sys.executable, "-c", "import sys; print('oh'); sys.exit('no such thing')")
    pages.append(WebPage(run, said, broken))
    pages[0].open()
    assert said.wait() == "monitor     the page did not start, training goes on: no such thing"
    assert pages[0].url is None


def test_a_page_that_cannot_be_started_says_why(run: Path, said: Said) -> None:
    WebPage(run, said, ("/no/such/python",)).open()
    assert said.lines[0].startswith("monitor     the page could not be started, training goes on: ")


def test_the_page_is_let_go_with_the_trainer_object(run: Path, said: Said) -> None:
    page = WebPage(run, said, IMPATIENT)
    page.open()
    said.wait()
    assert page._process is not None
    process = page._process
    del page
    gc.collect()
    assert process.wait(timeout=120) == 0


def test_the_page_goes_when_the_trainer_is_killed(run: Path) -> None:
    code = (
        "import sys, threading; from pathlib import Path; from gruppo.monitor.web import WebPage; "
        f"page = WebPage(Path({str(run)!r}), lambda line: print(page._process.pid, line, flush=True), {IMPATIENT!r}); "
        "page.open(); threading.Event().wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        pid, line = trainer.stdout.readline().split(maxsplit=1)
        assert "#token=" in line
        assert os.getpgid(int(pid)) != os.getpgid(trainer.pid), "Ctrl-C is for the trainer"
        trainer.send_signal(signal.SIGKILL)
    gone = threading.Event()
    for _ in range(6000):
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{pid}/stat").exists() and ") Z " in Path(f"/proc/{pid}/stat").read_text():
            break  # ended; nobody is there to collect it in this container
        gone.wait(0.02)
    else:
        os.kill(int(pid), signal.SIGKILL)
        pytest.fail("the page stayed")


# -- how long it stays after the trainer


def test_a_page_that_is_looked_at_stays() -> None:
    now = [0.0]
    lifetime = Lifetime(BytesIO().read, patience=600, clock=lambda: now[0])
    now[0] = 599.0
    assert not lifetime.is_over()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        now[0] += 10_000  # a stream that is open for hours
        assert not lifetime.is_over()

    drive(lifetime.counted(app)({"type": "http"}, None, None))  # type: ignore[arg-type]
    now[0] += 599
    assert not lifetime.is_over()
    now[0] += 1
    assert lifetime.is_over()


def test_the_patience_begins_when_the_trainer_ends() -> None:
    stopped = threading.Event()
    lifetime = Lifetime(BytesIO(b"x" * 9000).read, patience=0, period=0)
    lifetime.watch(stopped.set)
    assert stopped.wait(timeout=60)


def drive(coroutine: Any) -> None:
    """Run a coroutine that never waits."""
    with suppress(StopIteration):
        coroutine.send(None)


# -- in a trainer


class FakePage:
    """Notes when it is opened, and what was in the run's folder then."""

    made: list["FakePage"] = []  # noqa: RUF012

    def __init__(self, run: Path, say: Any) -> None:
        self.run, self.say, self.url = run, say, "http://127.0.0.1:1/#token=x"
        self.seen: list[bool] = []
        self.made.append(self)

    def open(self) -> None:
        self.seen.append((self.run / "run.json").is_file())


@pytest.fixture
def fake_pages(monkeypatch: pytest.MonkeyPatch) -> list[FakePage]:
    monkeypatch.setattr("gruppo.wiring.WebPage", FakePage)
    monkeypatch.setattr(FakePage, "made", [])
    return FakePage.made


def test_training_opens_the_page_once_the_run_is_there(tmp_path: Path, fake_pages: list[FakePage]) -> None:
    made = fakes.trainer(tmp_path, {"monitor": "web", "max_steps": 1})
    (page,) = fake_pages
    assert (page.run, page.seen) == (tmp_path, [])
    assert made.monitor.url == page.url
    made.train()
    assert page.seen == [True]


@pytest.mark.parametrize("value", ["off", None])
def test_no_page_by_default(tmp_path: Path, fake_pages: list[FakePage], value: str | None) -> None:
    made = fakes.trainer(tmp_path, {"monitor": value})
    assert (fake_pages, made.monitor.url) == ([], None)


def test_the_extra_is_asked_for_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gruppo.config_checks.find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(ConfigError, match=r"pip install 'gruppo\[monitor\]'"):
        GRPOConfig("out", monitor="web")
    GRPOConfig("out", monitor="off")


def test_other_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="monitor"):
        GRPOConfig("out", monitor="on")  # type: ignore[arg-type]
