"""Who may talk to the page: a browser that was given the token of this start, and only from the page itself."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterator, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 65_536
"""Bytes of a request's body; a whole grid of decisions has a few thousand."""

MOST_HEADERS = 16_384
"""Bytes of a request's headers and address."""

SAFE_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""What every answer says: keep nothing, load nothing from elsewhere, be shown in no other page."""

ENTERED = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>verifix review</title><link rel=icon href=/page/icon.svg>"
    '<meta http-equiv=refresh content="0;url=/"><p><a href="/">Continue to the page</a>'
)
"""The answer to the token. A redirect would count as coming from wherever the address was clicked, and the browser
would hold the cookie back; from this page it does not."""

OUTSIDE = "This page needs the address that verifix review printed when it was started; open it again.\n"


class Guard:
    """Middleware that refuses whatever is not the page's own.

    Parameters
    ----------
    app
        The application, which sees only requests that are let in.
    port
        Where the server listens.
    token
        What the address has that is printed at the start.
    """

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        self.app = app
        self.hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        self.token = token
        self.session = secrets.token_urlsafe(32)
        self.cookie = f"verifix-review-{port}"  # cookies are shared by all ports of a host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no page of ours opens a web socket; the server then refuses it
        refusal = self._refusal(scope)
        if refusal is not None:
            await _with_safe_headers(refusal, scope, receive, send)
            return
        content = await _body(receive)
        if content is None:
            await _with_safe_headers(_no(413, f"the body has more than {MOST_BYTES} bytes"), scope, receive, send)
            return
        await _with_safe_headers(self.app, scope, _replayed(content), send)

    def _refusal(self, scope: Scope) -> Response | None:
        """Return the answer to a request that is not let in, or that brings the token; None for others."""
        return next(self._objections(scope, Headers(scope=scope)), None)

    def _objections(self, scope: Scope, headers: Headers) -> Iterator[Response]:
        """Yield what there is against a request, in the order in which it is looked at: the first one is the answer."""
        size = sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["query_string"])
        if size + len(scope["raw_path"]) > MOST_HEADERS:
            yield _no(431, f"address and headers have more than {MOST_HEADERS} bytes")
        hosts, method = headers.getlist("host"), scope["method"]
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            yield _no(421, f"the host must be {' or '.join(self.hosts)}")
        if method not in ("GET", "POST"):
            yield _no(405, "the method must be GET or POST")
        token = scope["query_string"] if method == "GET" and scope["path"] == "/" else b""
        if not self._from_itself(headers, hosts[0], method, arriving=bool(token)):
            yield _no(403, "the request does not come from this page")
        if token:
            yield self._exchanged(token)
        if not self._knows_session(headers):
            yield PlainTextResponse(OUTSIDE, 401)
        if scope["query_string"]:
            yield _no(400, "addresses of this page have no query")
        if method == "POST" and headers.getlist("content-type") != ["application/json"]:
            yield _no(415, "the content type must be application/json")

    def _from_itself(self, headers: Headers, host: str, method: str, *, arriving: bool) -> bool:
        """Tell whether a request was made by the page: browsers say of every other page that it was not."""
        site, origins = headers.get("sec-fetch-site", "none"), headers.getlist("origin")
        if origins not in ([], [f"http://{host}"]):
            return False
        if method == "POST":
            return len(origins) == 1 and site in ("none", "same-origin")
        return arriving or site in ("none", "same-origin")

    def _exchanged(self, query: bytes) -> Response:
        """Return the cookie for the token."""
        try:
            given = dict(parse_qsl(query.decode("ascii"), strict_parsing=True, max_num_fields=1))
        except ValueError:
            given = {}
        if set(given) != {"token"} or not _same(given["token"], self.token):
            return PlainTextResponse(OUTSIDE, 401)
        answer = HTMLResponse(ENTERED)
        answer.set_cookie(self.cookie, self.session, httponly=True, samesite="strict", path="/")
        return answer

    def _knows_session(self, headers: Headers) -> bool:
        jars = map(_cookies, headers.getlist("cookie"))
        return any(_same(jar.get(self.cookie, ""), self.session) for jar in jars)


def _same(given: str, secret: str) -> bool:
    """Compare with a secret in a time that does not depend on how much of it is right."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())


def _cookies(header: str) -> Mapping[str, str]:
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load(header)
    except CookieError:
        return {}
    return {name: entry.value for name, entry in jar.items()}


def _no(code: int, why: str) -> Response:
    return PlainTextResponse(f"Refused: {why}.\n", code)


async def _body(receive: Receive) -> bytes | None:
    """Return the body of a request; None as soon as it is too long, whatever its headers say."""
    content = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        content += message.get("body", b"")
        if len(content) > MOST_BYTES:
            return None
        if not message.get("more_body", False):
            return bytes(content)


def _replayed(content: bytes) -> Receive:
    """Return what hands a body that was read to the application."""
    messages: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


async def _with_safe_headers(app: Any, scope: Scope, receive: Receive, send: Send) -> None:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in SAFE_HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await send(message)

    await app(scope, receive, sending)
