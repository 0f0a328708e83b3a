"""Access control and limits on requests: checks that run before any of a request's body is read."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Collection
from contextlib import suppress

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from .documents import OLLAMA, refusal_response
from .refusal import RefusedError, quoted, stopping, stumbled

BODY_SECONDS = 60.0
"""Time limit for a client to send its request, which holds a place in the queue meanwhile."""
_DRAIN_SECONDS = 2.0
OPEN_PATHS = ("/", "/health", "/ready")
"""Paths that need no token: the page asks the user for one, and probes have none."""


def is_loopback(host: str) -> bool:
    """Whether a host (address or name) is certainly this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Guard:
    """Middleware around the whole application: runs the checks first, and turns every error into a response."""

    def __init__(self, app: ASGIApp, token: str | None, origins: Collection[str] = ()) -> None:
        """
        Args:
            app: The application to protect.
            token: Token that clients must send as ``Authorization: Bearer``. If None, they must call this machine by a
                name or address of its own instead: another name that leads here may be a web page's (DNS rebinding).
            origins: Origins of other web pages that may call the server (``https://example.com``); ``*`` allows all.
        """
        self._app = app
        self._origins = origins
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        try:
            self._check(scope)
        except RefusedError as refusal:
            await drain(receive)
            await refusal_response(refusal, scope["path"])(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            stumbled(error)  # the client got a response already

    def _check(self, scope: Scope) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self._token is None and not is_loopback(_without_port(host)):
            raise RefusedError(403, "the Host header does not name this machine; use localhost", code="wrong_host")
        origin = headers.get("origin")
        own = origin is None or origin.partition("://")[2].lower() == host.lower()
        if not own and not {origin, "*"} & set(self._origins):
            message = "pages of other origins may not use this server, unless --allow-origin names them"
            raise RefusedError(403, message, code="wrong_origin")
        if self._token is not None and scope["path"] not in OPEN_PATHS:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("latin-1"), self._token.encode())
            if scheme.lower() != "bearer" or not same:
                message = (
                    "the token is missing or wrong; send it as Authorization: Bearer (an API key in most programs)"
                )
                raise RefusedError(401, message, code="invalid_api_key")


async def read_body(scope: Scope, receive: Receive, most: int, closing: asyncio.Event) -> bytes:
    """Read the body of a JSON request.

    Args:
        scope: ASGI scope of the request.
        receive: ASGI receive callable of the request.
        most: Maximum number of bytes.
        closing: Set when the server is being stopped.

    Raises:
        RefusedError: The body is too large, is slower than :data:`BODY_SECONDS`, or is not JSON; or the server is being
            stopped.
        ClientDisconnect: The client has left.
    """
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    kind = headers.get(b"content-type", "")
    kinds = ["application/json"]
    if scope["path"].startswith(OLLAMA) and b"origin" not in headers:
        kinds += ["application/x-www-form-urlencoded", ""]  # as curl -d sends it, which Ollama's examples do
    if kind.partition(";")[0].strip().lower() not in kinds:
        # A page of another origin can send other types without asking the browser's permission.
        raise RefusedError(415, f"the content type is {quoted(kind)}; expected application/json")
    length = headers.get(b"content-length", "0")
    if length.isdigit() and int(length) > most:
        raise _too_large(most)
    reading = asyncio.create_task(_received(receive, most))
    closed = asyncio.create_task(closing.wait())
    try:
        await asyncio.wait((reading, closed), timeout=BODY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            return reading.result()
        if closed.done():
            raise stopping()
        raise RefusedError(408, f"the body did not arrive within {BODY_SECONDS:.0f} s; send it again", code="slow")
    finally:
        reading.cancel()
        closed.cancel()


async def _received(receive: Receive, most: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > most:
            raise _too_large(most)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, f"the body is larger than {most} bytes; send smaller images", code="body_too_large")


async def drain(receive: Receive) -> None:
    """Read and discard the rest of a body for a while: many clients cannot read a refusal before they have sent all."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            more = True
            while more:
                message = await receive()
                more = message["type"] == "http.request" and message.get("more_body", False)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
