"""The Starlette application: shell, data routes, stream, behind the gate. What is answered is decided elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from gruppo.monitor.server.gate import Gate
from gruppo.monitor.server.refusal import Refusal, not_found
from gruppo.monitor.server.routes import Api, path_pattern, to_bytes
from gruppo.monitor.server.store import Store
from gruppo.monitor.server.stream import Streams

PAGE = Path(__file__).parents[1] / "page"
"""The page: static files."""

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}
"""Files with other endings are not served."""

STREAM = path_pattern("runs/{run}/stream")


def make_app(
    store: Store,
    *,
    token: str,
    hosts: Collection[str] = (),
    base_path: str = "",
    page: Path = PAGE,
    streams: Streams | None = None,
) -> ASGIApp:
    """The whole server as an ASGI application; see Gate for the arguments."""
    return Gate(inner_app(store, base_path, page, streams), token=token, hosts=hosts, base_path=base_path)


def inner_app(store: Store, base_path: str = "", page: Path = PAGE, streams: Streams | None = None) -> Starlette:
    """The application behind the gate."""
    api, assets = Api(store), page_files(page)
    open_streams = streams or Streams(store)

    async def shell(request: Request) -> Response:
        return _file(assets, request.path_params.get("file", "index.html"))

    async def data(request: Request) -> Response:
        path, pairs = request.path_params["path"], request.query_params.multi_items()
        stream = STREAM.fullmatch(path)
        if stream is None:
            return Response(
                await run_in_threadpool(lambda: to_bytes(api.answer(path, pairs))), media_type="application/json"
            )
        run = await run_in_threadpool(store.run, stream["run"])
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        return StreamingResponse(open_streams.open(run), media_type="text/event-stream")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        api.close()

    routes: list[BaseRoute] = [
        Route("/", shell, methods=["GET"]),
        Route("/page/{file:path}", shell, methods=["GET"]),
        Route("/api/{path:path}", data, methods=["GET"]),
    ]
    return Starlette(
        routes=[Mount(base_path, routes=routes)] if base_path else routes,
        exception_handlers={Refusal: _refused, HTTPException: _http_refused, 500: _failed},
        lifespan=lifespan,
    )


def page_files(page: Path) -> dict[str, Path]:
    """Name below `page/` -> file, listed once: a request picks from this table, it does not build a path."""
    return {
        path.relative_to(page).as_posix(): path
        for path in sorted(page.rglob("*"))
        if path.suffix in CONTENT_TYPES and path.is_file() and not path.is_symlink()
    }


def _file(assets: dict[str, Path], name: str) -> Response:
    path = assets.get(name)
    if path is None:
        raise not_found(f"There is no file page/{name[:100]}.")
    return Response(path.read_bytes(), headers={"content-type": CONTENT_TYPES[path.suffix]})


def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return Response(to_bytes(error.as_dict()), error.status, media_type="application/json")


def _http_refused(_: Request, error: Exception) -> Response:
    """What Starlette itself refuses: unknown paths."""
    assert isinstance(error, HTTPException)
    refusal = Refusal(error.status_code, "not_found" if error.status_code == 404 else "refused", str(error.detail))
    return Response(to_bytes(refusal.as_dict()), refusal.status, media_type="application/json")


def _failed(_: Request, error: Exception) -> Response:
    """A mistake of ours. The traceback goes to the terminal, not to the page."""
    refusal = Refusal(500, "internal", f"The server made a mistake: {type(error).__name__}. Its terminal says more.")
    return Response(to_bytes(refusal.as_dict()), 500, media_type="application/json")
