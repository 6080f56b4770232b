"""The gate that every request passes, before any route: which names, which methods, from where, with which token.

It is default-deny: a path needs the token unless it belongs to the shell, which carries no data. The same headers go
on every answer, refusals included. There is no cookie: nothing that a foreign page could make a browser send along
opens anything.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from http import HTTPStatus
from typing import Any, final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gruppo.monitor.server.refusal import Refusal
from gruppo.monitor.server.routes import to_bytes

METHODS = ("GET", "HEAD")

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)

HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)

MAX_REQUESTS = 128
"""Requests at a time; more are turned away."""


@final
class Gate:
    """ASGI application around the application.

    Args:
        app: what lies behind.
        token: the secret of this process.
        hosts: names under which the server may be addressed, without port; LOOPBACK_NAMES always may.
        base_path: the prefix of all paths, as `/x/y`; empty for none.
    """

    def __init__(self, app: ASGIApp, *, token: str, hosts: Collection[str] = (), base_path: str = "") -> None:
        assert token, "a monitor without a token is open to every page and every user of the machine"
        self._app, self._token, self._base_path = app, token.encode(), base_path
        self._hosts = frozenset(host.lower() for host in (*LOOPBACK_NAMES, *hosts))
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = {name for name, _ in HEADERS}
                theirs = [(name, value) for name, value in message.get("headers", []) if name.lower() not in ours]
                message = {**message, "headers": [*theirs, *HEADERS]}
            await send(message)

        refusal = self.check(scope)
        if refusal is not None:
            await refuse(refusal, scope, send_with_headers)
            return
        self._num_requests += 1
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self._num_requests -= 1

    def check(self, scope: Scope) -> Refusal | None:
        """Why this request gets no answer, or None."""
        headers = _headers(scope)
        host = headers.get("host", "")
        if host_name(host) not in self._hosts:
            return Refusal(421, "host", f"This server does not answer to the name {host[:100]!r}; see --allow-host.")
        if scope["method"] not in METHODS:
            return Refusal(405, "method", "Only GET and HEAD: the monitor changes nothing.")
        if not self._is_own_page(scope, headers, host):
            return Refusal(403, "origin", "Requests from pages of other origins are refused.")
        if self._num_requests >= MAX_REQUESTS:
            return Refusal(503, "busy", "Too many requests at a time.")
        if not self._is_shell(scope["path"]) and not self._has_token(headers):
            return Refusal(401, "token", "Send `Authorization: Bearer <token>`; the token is in the printed URL.")
        return None

    def _is_own_page(self, scope: Scope, headers: dict[str, str], host: str) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return False
        # Following a link to the shell is the one thing that a foreign page may do: it shows nothing of the run.
        is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return site in (None, "same-origin", "none") or (is_link and self._is_shell(scope["path"]))

    def _is_shell(self, path: str) -> bool:
        inner = path.removeprefix(self._base_path)
        return inner in ("", "/") or (inner.startswith("/page/") and "\\" not in inner and ".." not in inner)

    def _has_token(self, headers: dict[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)


async def refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    """Send a refusal as JSON."""
    body = to_bytes(refusal.as_dict())
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    extra: dict[int, tuple[bytes, bytes]] = {
        HTTPStatus.METHOD_NOT_ALLOWED: (b"allow", ", ".join(METHODS).encode()),
        HTTPStatus.UNAUTHORIZED: (b"www-authenticate", b"Bearer"),
        HTTPStatus.SERVICE_UNAVAILABLE: (b"retry-after", b"5"),
    }
    if refusal.status in extra:
        headers.append(extra[refusal.status])
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def host_name(host: str) -> str:
    """The name in a Host header, without port and brackets; empty if it is none."""
    try:  # urlsplit is strict about brackets and ports: what it refuses is no name of ours
        parts = urlsplit(f"//{host}")
        has_more = parts.path or parts.query or parts.fragment or "@" in host
        _ = parts.port
    except ValueError:
        return ""
    return "" if has_more or parts.hostname is None else parts.hostname.rstrip(".").lower()


def is_loopback(host: str) -> bool:
    """Whether binding to `host` stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_everywhere(host: str) -> bool:
    """Whether `host` stands for all addresses of this machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host


def _headers(scope: Scope) -> dict[str, str]:
    """Lower-case name -> value. A header sent twice is no valid value of anything that the gate reads."""
    headers: dict[str, Any] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
