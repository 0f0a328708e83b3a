"""Running the server, from its first connection to a clean stop."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from ..model import TinyGPTV
from .app import make_app
from .connections import Connection
from .queue import AnswerQueue

_STOP_SECONDS = 5
"""Seconds for slow clients to read their responses when the server stops."""
_INTERRUPTED = 130


def serve(
    model: TinyGPTV,
    listener: socket.socket,
    token: str | None,
    max_body: int,
    waiting: int,
    origins: Collection[str] = (),
) -> int:
    """Serve until a signal is received; then answers are cancelled, and their clients get a refusal.

    Args:
        model: The loaded model.
        listener: A socket that is bound and not listening yet.
        token: Token that clients must send; None if none is needed.
        max_body: Maximum size of a request in bytes.
        waiting: Maximum number of waiting requests, besides the running one.
        origins: Origins of other web pages that may call the server.

    Returns:
        The exit status: 130 after SIGINT, 0 after SIGTERM.
    """
    with _noted_signals() as noted:
        asyncio.run(_serve(model, listener, waiting, token, max_body, origins))
    return _INTERRUPTED if signal.SIGINT in noted else 0


async def _serve(
    model: TinyGPTV,
    listener: socket.socket,
    waiting: int,
    token: str | None,
    max_body: int,
    origins: Collection[str],
) -> None:
    queue = AnswerQueue(model, waiting)
    config = uvicorn.Config(
        make_app(queue, model, token, max_body, origins),
        loop="asyncio",
        http=Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",  # a warning is that somebody's request is no HTTP
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    try:
        await _Server(config, queue, model.manifest.name).serve(sockets=[listener])
    finally:
        await queue.close()


class _Server(uvicorn.Server):
    """Prints its address once it can be reached, and cancels all answers as soon as it has to stop."""

    def __init__(self, config: uvicorn.Config, queue: AnswerQueue, name: str) -> None:
        super().__init__(config)
        self._queue = queue
        self._name = name

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets is not None
        host, port, *_ = sockets[0].getsockname()
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        print(f"tinygptv: {self._name} is served at http://{where} (Ctrl-C stops it)", file=sys.stderr, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._queue.cancel_all()
        await super().shutdown(sockets)


@contextmanager
def _noted_signals() -> Iterator[set[int]]:
    """Record signals instead of handling them: the server raises a signal again once it has stopped."""
    noted: set[int] = set()

    def note(number: int, frame: FrameType | None) -> None:
        noted.add(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
