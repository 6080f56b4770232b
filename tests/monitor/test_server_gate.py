"""Who gets an answer: every route with every method, token, Host and Origin, as the router lists them; and no way out
of the folder."""

import itertools
from pathlib import Path

import pytest
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from gruppo.monitor.server.app import inner_app, page_files
from gruppo.monitor.server.gate import HEADERS, host_name, is_everywhere, is_loopback
from gruppo.monitor.server.routes import Api
from gruppo.monitor.server.store import Store
from monitor.server_runs import TOKEN, client_of, small_run, write_lines

ARGUMENTS = {
    "run": "r-4acfde",
    "step": "2",
    "group_id": "7",
    "id": "2.7.0.train",
    "prompt_id": "7",
    "check": "D11",
    "file": "app.js",
    "path": "runs",
}

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")

BEARER = {"authorization": f"Bearer {TOKEN}"}
HOST = {"host": "127.0.0.1:6007"}
GOOD = BEARER | HOST

CALLERS: dict[str, tuple[dict[str, str], int]] = {
    "good": (GOOD, 200),
    "good by name": (BEARER | {"host": "localhost:1"}, 200),
    "good on IPv6": (BEARER | {"host": "[::1]:6007"}, 200),
    "own origin": (GOOD | {"origin": "http://127.0.0.1:6007", "sec-fetch-site": "same-origin"}, 200),
    "no token": (HOST, 401),
    "wrong token": (HOST | {"authorization": "Bearer wrong"}, 401),
    "cut token": (HOST | {"authorization": f"Bearer {TOKEN[:-1]}"}, 401),
    "empty token": (HOST | {"authorization": "Bearer "}, 401),
    "other scheme": (HOST | {"authorization": f"Basic {TOKEN}"}, 401),
    "token in a cookie": (HOST | {"cookie": f"token={TOKEN}"}, 401),
    "wrong host": (BEARER | {"host": "evil.example"}, 421),
    "host that begins well": (BEARER | {"host": "127.0.0.1.evil.example"}, 421),
    "host with a user": (BEARER | {"host": "127.0.0.1@evil.example"}, 421),
    "empty host": (BEARER | {"host": ""}, 421),
    "foreign origin": (GOOD | {"origin": "http://evil.example"}, 403),
    "origin of another port": (GOOD | {"origin": "http://127.0.0.1:3000"}, 403),
    "origin null": (GOOD | {"origin": "null"}, 403),
    "cross-site": (GOOD | {"sec-fetch-site": "cross-site"}, 403),
    "same-site": (GOOD | {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, 403),
    "framed": (GOOD | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, 403),
}

SHELL_CALLERS = {name: (headers, 200 if status == 401 else status) for name, (headers, status) in CALLERS.items()}
"""The shell carries no data: it needs no token, but everything else."""


def all_paths(root: Path) -> dict[str, bool]:
    """Each path that the router knows, with arguments filled in; whether it belongs to the shell."""
    store = Store(root)
    paths: dict[str, bool] = {}
    for route in inner_app(store).routes:
        assert isinstance(route, Route), f"{route} is not a plain route: decide who may reach it"
        paths[fill(route.path)] = not route.path.startswith("/api")
    for route in Api(store).routes:
        paths[f"/api/{fill(route.pattern)}"] = False
    return paths | {f"/api/{fill('runs/{run}')}/stream": False}


def fill(pattern: str) -> str:
    for name, value in ARGUMENTS.items():
        pattern = pattern.replace(f"{{{name}}}", value).replace(f"{{{name}:path}}", value)
    return pattern


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    small_run(root / "r", 3)
    assert Store(root).runs()[0].id == ARGUMENTS["run"]
    return root


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("page")
    (page / "index.html").write_text("<!doctype html>")
    (page / "app.js").write_text("export {};")
    (page / "notes.py").write_text("secret")
    return page


@pytest.fixture
def client(root: Path, page: Path):  # type: ignore[no-untyped-def]
    with client_of(root, page=page) as client:
        client.headers.clear()
        yield client


def has_our_headers(headers) -> bool:  # type: ignore[no-untyped-def]
    """Each once, with our value; and nothing that opens the answer to other origins."""
    wanted = {name.decode(): value.decode() for name, value in HEADERS}
    return all(headers.get_list(name) == [value] for name, value in wanted.items()) and not any(
        name.startswith("access-control") or name == "set-cookie" for name in headers
    )


def test_the_matrix_of_routes_methods_and_callers(root: Path, client: TestClient) -> None:
    num_checked = 0
    paths = all_paths(root)
    assert len(paths) == 19
    for (path, is_shell), method in itertools.product(paths.items(), METHODS):
        for caller, (headers, status) in (SHELL_CALLERS if is_shell else CALLERS).items():
            if path.endswith("/stream") and status == 200 and method == "GET":
                continue  # has no end; see test_server_stream.py
            response = client.request(method, path, headers=headers)
            wanted = status if method in ("GET", "HEAD") or status == 421 else 405
            allowed = {wanted} if wanted != 200 else {200, 404, 422}  # no tokens recorded; compare wants a and b
            assert response.status_code in allowed, f"{method} {path} as {caller}: {response.status_code}"
            assert has_our_headers(response.headers), f"{method} {path} as {caller}"
            if response.status_code >= 400 and method != "HEAD":
                assert set(response.json()) == {"error"}, f"{method} {path} as {caller}"
            num_checked += 1
    assert num_checked > 3000


def test_a_refusal_tells_what_to_do_and_nothing_of_the_runs(client: TestClient) -> None:
    response = client.get("/api/runs", headers=HOST)
    assert response.json()["error"]["code"] == "token"
    assert response.headers["www-authenticate"] == "Bearer"
    assert client.post("/api/runs", headers=GOOD).headers["allow"] == "GET, HEAD"
    known = client.get(f"/api/runs/{ARGUMENTS['run']}", headers=HOST).text
    assert known == client.get("/api/runs/nothing-000000", headers=HOST).text


def test_a_link_may_lead_to_the_shell_only(client: TestClient) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/", headers=HOST | link).status_code == 200
    assert client.get("/api/runs", headers=GOOD | link).status_code == 403


def test_a_duplicated_header_is_no_valid_one(client: TestClient) -> None:
    headers = [("host", "127.0.0.1"), ("host", "evil.example"), ("authorization", f"Bearer {TOKEN}")]
    assert client.get("/api/runs", headers=headers).status_code == 421


def test_websockets_are_refused(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/runs", headers=GOOD):
        pass


def test_further_names_and_a_prefix(root: Path, page: Path) -> None:
    with client_of(root, page=page, hosts=("box.example",), base_path="/proxy/6007") as client:
        headers = BEARER | {"host": "box.example:80"}
        assert client.get("/proxy/6007/api/runs", headers=headers).status_code == 200
        assert client.get("/proxy/6007/", headers=headers).text == "<!doctype html>"
        assert client.get("/proxy/6007/page/app.js", headers={"host": "localhost"}).status_code == 200
        assert (
            client.get("/proxy/6007/api/runs", headers={"host": "box.example", "authorization": ""}).status_code == 401
        )
        assert client.get("/api/runs", headers=headers).status_code == 404


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("LOCALHOST:80", "localhost"),
        ("localhost.:80", "localhost"),
        ("[::1]:80", "::1"),
        ("localhost:port", ""),
        ("localhost/x", ""),
        ("localhost#x", ""),
        ("a@localhost", ""),
        ("[::1", ""),
        ("", ""),
    ],
)
def test_host_names(header: str, name: str) -> None:
    assert host_name(header) == name


def test_loopback_is_known() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("10.0.0.1", "::", "example.org", "")] == [False] * 4
    assert [is_everywhere(host) for host in (".".join("0000"), "::", "", "127.0.0.1")] == [True, True, True, False]


# -- nothing outside the folder

SECRET = "this lies outside"

CLIMBS = (
    "../outside.json",
    "..%2foutside.json",
    "..%2Foutside.json",
    "%2e%2e/outside.json",
    "%2e%2e%2foutside.json",
    "..%252foutside.json",
    "..\\outside.json",
    "..%5coutside.json",
    "%5c..%5coutside.json",
    "....//outside.json",
    "/outside.json",
    "//outside.json",
    "%2foutside.json",
    "outside.json%00",
    "outside.json%00.js",
    "..;/outside.json",
    ".%2e/outside.json",
    "%c0%ae%c0%ae/outside.json",
    "file:///outside.json",
    "C:%5coutside.json",
    "linked.js",
    "linked/outside.json",
    "notes.py",
    ".",
    "..",
    "",
)


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    """Folders with a secret beside, and links that lead to it."""
    (tmp_path / "outside.json").write_text(SECRET)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "outside.json").write_text(SECRET)
    write_lines(tmp_path / "far" / "metrics.jsonl", [{"step": 1, "split": "train", "attempt": 1, SECRET: 1}])
    write_lines(tmp_path / "far" / "events.jsonl", [{"kind": SECRET, "attempt": 1, "time": 1}])
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("<!doctype html>")
    (page / "notes.py").write_text(SECRET)
    (page / "linked.js").symlink_to(tmp_path / "outside.json")
    (page / "linked").symlink_to(tmp_path / "far")
    runs = tmp_path / "runs"
    small_run(runs / "r", 2)
    (runs / "linked").symlink_to(tmp_path / "far")
    (runs / "half").mkdir()
    (runs / "half" / "run.json").write_text("{}")
    for name in ("metrics.jsonl", "events.jsonl"):
        (runs / "half" / name).symlink_to(tmp_path / "far" / name)
    return tmp_path


@pytest.mark.parametrize("climb", CLIMBS)
def test_no_path_leads_out(traps: Path, climb: str) -> None:
    prefixes = [
        "/page/",
        "/api/",
        "/api/runs/",
        f"/api/runs/{ARGUMENTS['run']}/",
        f"/api/runs/{ARGUMENTS['run']}/rollouts/",
    ]
    with client_of(traps / "runs", page=traps / "page") as client:
        for prefix in prefixes:
            response = client.get(prefix + climb)
            assert SECRET not in response.text, prefix + climb
            assert response.status_code in (307, 404) or climb in ("", ".", ".."), f"{prefix + climb}: {response.text}"


def test_links_are_not_followed(traps: Path) -> None:
    with client_of(traps / "runs", page=traps / "page") as client:
        runs = client.get("/api/runs").json()["runs"]
        assert sorted(run["name"] for run in runs) == ["half", "r"]
        half = next(run["id"] for run in runs if run["name"] == "half")
        for path in ("", "/metrics", "/events", "/events?since=start", "/health", "/evals"):
            assert SECRET not in client.get(f"/api/runs/{half}{path}").text
        assert client.get(f"/api/runs/{half}/metrics").json()["num_rows"] == 0


def test_a_linked_folder_of_parts_is_not_read(traps: Path) -> None:
    rollouts = traps / "runs" / "r" / "rollouts"
    rollouts.rename(traps / "far" / "rollouts")
    rollouts.symlink_to(traps / "far" / "rollouts")
    with client_of(traps / "runs", page=traps / "page") as client:
        assert client.get(f"/api/runs/{ARGUMENTS['run']}/rollouts").json()["rows"] == []


def test_only_files_of_the_page_are_listed(traps: Path) -> None:
    assert list(page_files(traps / "page")) == ["index.html"]


@pytest.mark.parametrize(
    "path",
    [
        "runs?x=1",
        "runs/{run}?keys=a",
        "runs/{run}/metrics?max_points=1",
        "runs/{run}/metrics?max_points=²",
        "runs/{run}/metrics?from=-1",
        "runs/{run}/metrics?" + "&".join(f"keys={i}" for i in range(200)),
        "runs/{run}/rollouts?per_page=1000",
        "runs/{run}/rollouts?filter=reward",
        "runs/{run}/rollouts?filter=reward:lt:x",
        "runs/{run}/rollouts?filter=prompt:eq:x",
        "runs/{run}/rollouts?filter=nothing:eq:1",
        "runs/{run}/rollouts?sort=nothing",
        "runs/{run}/rollouts?step=1&from=1",
        "runs/{run}/rollouts?split=" + "x" * 3000,
        "runs/{run}/steps/1/groups?sort=x",
        "runs/{run}/events?since=x",
        "compare?a={run}",
    ],
    ids=range(17),
)
def test_a_wrong_parameter_is_named(client: TestClient, path: str) -> None:
    response = client.get("/api/" + fill(path), headers=GOOD)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "parameter"), response.text


def test_our_own_mistake_is_an_answer_without_details(traps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr("gruppo.monitor.server.store.find_runs", fail)
    with client_of(traps / "runs", page=traps / "page", raises=False) as client:
        response = client.get("/api/runs")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal"
    assert SECRET not in response.text
    assert has_our_headers(response.headers)


def test_every_route_is_documented_with_its_parameters(root: Path) -> None:
    sections = (Path(__file__).parents[2] / "docs" / "monitor-api.md").read_text().split("\n## ")
    for route in Api(Store(root)).routes:
        (section,) = [text for text in sections if text.startswith(f"GET api/{route.pattern}\n")]
        missing = [name for name in route.parameters if f"`{name}`" not in section]
        assert not missing, f"{route.pattern}: {missing}"


def test_mounts_are_none_without_a_prefix(root: Path) -> None:
    assert not any(isinstance(route, Mount) for route in inner_app(Store(root)).routes)
