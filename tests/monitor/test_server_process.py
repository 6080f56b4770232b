"""`gruppo monitor` as people run it: a process that prints its URL, listens on this machine only, and stops."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from gruppo.cli import main as cli
from gruppo.errors import ConfigError
from gruppo.monitor.server import serve
from monitor.server_runs import small_run, write_run_json

URL = re.compile(r"gruppo monitor: http://127\.0\.0\.1:(\d+)(/x)?/#token=([\w-]{43})\n")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    small_run(tmp_path / "runs" / "r", 12)
    return tmp_path / "runs"


@pytest.fixture
def process(runs: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "gruppo.cli.main", "monitor", str(runs), "--port", "0", "--no-open"]
    with subprocess.Popen(
        [*command, "--base-path", "x"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT and hands that on; the server must see Ctrl-C as at a terminal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    ) as process:
        yield process
        process.kill()


def test_the_process(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    match = URL.fullmatch(process.stdout.readline())
    assert match is not None
    assert "changes nothing" in process.stdout.readline()
    bearer = {"Authorization": f"Bearer {match[3]}"}
    with closing(HTTPConnection("127.0.0.1", int(match[1]), timeout=30)) as connection:
        check_requests(connection, bearer)
        stream = connection.getresponse()
        with stream:
            assert stream.readline() == b"event: change\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130
    assert process.stderr.read() == "gruppo monitor: stopped.\n", "an open stream does not hold it up"


def test_the_token_of_an_ended_page_opens_no_other(runs: Path) -> None:
    """A saved notebook keeps the link of its panel: it must be worth nothing once that page has ended."""
    command = [sys.executable, "-m", "gruppo.cli.main", "monitor", str(runs), "--no-open", "--port"]

    def status(port: str, token: str) -> int:
        with closing(HTTPConnection("127.0.0.1", int(port), timeout=30)) as connection:
            connection.request("GET", "/api/runs", headers={"Authorization": f"Bearer {token}"})
            return connection.getresponse().status

    port, tokens = "0", []
    for _ in range(2):
        with subprocess.Popen([*command, port], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            match = URL.fullmatch(process.stdout.readline())
            assert match is not None
            port, token = match[1], match[3]
            tokens.append(token)
            assert [status(port, each) for each in tokens] == [401] * (len(tokens) - 1) + [200]
            process.kill()
    with pytest.raises(ConnectionRefusedError):
        status(port, tokens[0])


def check_requests(connection: HTTPConnection, bearer: dict[str, str]) -> None:
    """Some requests with their status; the last one, for a stream, is left without its answer."""
    for path, headers, status in (
        ("/x/", {}, 200),
        ("/x/api/runs", {}, 401),
        ("/x/../../etc/passwd", bearer, 404),
        ("/x/api/runs", bearer | {"Host": "evil.example"}, 421),
        ("/x/api/runs", bearer, 200),
    ):
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = response.read()
        assert response.status == status, path
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "server" not in response.headers
    (run,) = json.loads(body)["runs"]
    connection.request("GET", f"/x/api/runs/{run['id']}/stream", headers=bearer)


def test_an_answer_without_a_server(runs: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert cli.main(["monitor", str(runs), "--json"]) == 0
    (run,) = json.loads(capfdbinary.readouterr().out)["runs"]
    assert cli.main(["monitor", str(runs), "--json", f"runs/{run['id']}/metrics?keys=reward&max_points=3"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["series"]["reward"]["mean"] == [0.208333, 0.541667, 0.875]
    assert cli.main(["monitor", str(runs), "--json", f"/api/runs/{run['id']}/rollouts/3.7.1.train"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["completion"]["text"] == "answer 3 7 1"
    assert cli.main(["monitor", str(runs), "--json", "runs/none-000000"]) == 2
    assert capfdbinary.readouterr().err == b"gruppo monitor: There is no run 'none-000000'.\n"


def test_an_answer_without_a_server_waits_for_the_audit(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    small_run(tmp_path / "r", 12)
    write_run_json(tmp_path / "r", [{"ended": "2026-01-01T01:00:00+00:00"}])
    cli.main(["monitor", str(tmp_path), "--json"])
    (run,) = json.loads(capfdbinary.readouterr().out)["runs"]
    cli.main(["monitor", str(tmp_path), "--json", f"runs/{run['id']}/health"])
    answer = json.loads(capfdbinary.readouterr().out)
    assert (answer["source"], answer["complete"]) == ("audit", True)


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["monitor", "nowhere"]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_the_server_needs_no_torch(runs: Path) -> None:
    code = (
        "import sys; from gruppo.cli.main import main; "
        f"main(['monitor', {str(runs)!r}, '--json', 'runs']); "
        "import gruppo.monitor.server.serve, gruppo.monitor.health.audit; "
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


# -- addresses


def test_a_taken_default_port_is_evaded_and_a_given_one_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Cannot listen on 127.0.0.1:{port}"):
            serve.bind("127.0.0.1", port)
        monkeypatch.setattr(serve, "DEFAULT_PORT", port)
        with serve.bind("127.0.0.1", None) as listener:
            assert listener.getsockname()[1] != port
            assert serve.base_url(listener, "127.0.0.1") == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_printed_url_is_one_that_a_browser_here_can_open() -> None:
    everywhere = ".".join("0000")
    with serve.bind(everywhere, 0) as listener:
        assert serve.base_url(listener, everywhere).startswith("http://127.0.0.1:")


@pytest.mark.parametrize(("given", "path"), [("", ""), ("/", ""), ("x", "/x"), ("/proxy/6007/", "/proxy/6007")])
def test_base_paths(given: str, path: str) -> None:
    assert serve.clean_base_path(given) == path


@pytest.mark.parametrize("given", ["..", "/a/../b", "a b", "a?b", "a#b", "{x}"])
def test_base_paths_that_cannot_be(given: str) -> None:
    with pytest.raises(ConfigError, match="give a plain path"):
        serve.clean_base_path(given)


def test_the_browser_gets_the_token_by_a_private_file() -> None:
    seen: list[tuple[str, int, str]] = []

    def open_page(url: str) -> None:
        path = Path(url.removeprefix("file://"))
        seen.append((url, path.stat().st_mode & 0o777, path.read_text()))

    with serve._in_browser("http://127.0.0.1:1/#token=abc", open_page):
        (url, mode, text) = seen[0]
        assert "abc" not in url
        assert mode == 0o600
        assert 'content="0; url=http://127.0.0.1:1/#token=abc"' in text
    assert not Path(url.removeprefix("file://")).exists()
