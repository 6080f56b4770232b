"""The server's process: socket, token, printed URL, uvicorn. It serves until it is stopped."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path

import uvicorn

from gruppo.errors import ConfigError
from gruppo.monitor.server.app import make_app
from gruppo.monitor.server.gate import is_everywhere, is_loopback
from gruppo.monitor.server.lifetime import Lifetime
from gruppo.monitor.server.store import Store
from gruppo.monitor.server.stream import Streams

DEFAULT_PORT = 6007


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is to be reached. `port` None takes DEFAULT_PORT, or any free one if that is taken."""

    host: str = "127.0.0.1"
    port: int | None = None
    base_path: str = ""
    allow_hosts: Sequence[str] = ()


def serve(root: Path, address: Address, *, is_browser_wanted: bool, lifetime: Lifetime | None = None) -> None:
    """Serve the runs below `root`; returns when stopped (Ctrl-C, SIGTERM), or when its `lifetime` is over.

    Raises ConfigError for an address that cannot be.
    """
    base_path = clean_base_path(address.base_path)
    token = secrets.token_urlsafe(32)
    listener = bind(address.host, address.port)
    url = f"{base_url(listener, address.host)}{base_path}/#token={token}"
    store = Store(root)
    streams = Streams(store)
    hosts = (address.host, *address.allow_hosts)
    app = make_app(store, token=token, hosts=hosts, base_path=base_path, streams=streams)
    config = uvicorn.Config(
        app if lifetime is None else lifetime.counted(app),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=64 * 1024,
        ws="none",
    )
    if not is_loopback(address.host):
        print(
            f"Warning: {address.host} is reachable from other machines. Who has the URL can read all runs.",
            file=sys.stderr,
        )
    print(f"gruppo monitor: {url}\nReads {root}, changes nothing. Stop with Ctrl-C.", flush=True)
    with listener, _in_browser(url, webbrowser.open if is_browser_wanted else None):
        server = uvicorn.Server(config)
        streams.is_closing = lambda: server.should_exit
        if lifetime is not None:
            lifetime.watch(lambda: setattr(server, "should_exit", True))
        server.run(sockets=[listener])


def bind(host: str, port: int | None) -> socket.socket:
    """A listening socket.

    Raises ConfigError if the port is taken or the host is none of this machine's.
    """
    try:
        return _bind(host, DEFAULT_PORT if port is None else port)
    except OSError as error:
        if port is None and error.errno == errno.EADDRINUSE:
            return _bind(host, 0)
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}. Give another --host or --port."
        ) from error


def base_url(listener: socket.socket, host: str) -> str:
    """The URL that a browser on this machine opens."""
    port = listener.getsockname()[1]
    name = {"AF_INET": "127.0.0.1", "AF_INET6": "::1"}[listener.family.name] if is_everywhere(host) else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def clean_base_path(given: str) -> str:
    """The prefix as `/x/y`, or empty.

    Raises ConfigError if it is not a plain path.
    """
    parts = [part for part in given.split("/") if part]
    for part in parts:
        if part in (".", "..") or not all(letter.isalnum() or letter in "-_.~" for letter in part):
            raise ConfigError(f"base_path={given!r} cannot be: give a plain path such as /proxy/6007.")
    return "".join(f"/{part}" for part in parts)


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)  # now: who reads the printed URL may come at once
    except OSError:
        listener.close()
        raise
    return listener


@contextmanager
def _in_browser(url: str, open_page: Callable[[str], object] | None) -> Iterator[None]:
    """Open the page, by way of a private file: a URL with a token on a browser's command line is seen by every user."""
    if open_page is None:
        yield
        return
    handle, name = tempfile.mkstemp(prefix="gruppo-monitor-", suffix=".html")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            target = escape(url, quote=True)
            refresh = f'<meta http-equiv="refresh" content="0; url={target}">'
            file.write(f'<!doctype html><title>gruppo monitor</title>{refresh}<a href="{target}">gruppo monitor</a>')
        open_page(Path(name).as_uri())
        yield
    finally:
        os.unlink(name)
