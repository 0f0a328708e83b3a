"""Limits on idle connections, so that they do not keep other clients out."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 128
"""Maximum number of connections. When it is exceeded, those waiting for a request are closed, longest wait first."""
HEAD_SECONDS = 10.0
"""Time limit for the head of a request, from the connection or from its first byte."""


class Connection(H11Protocol):
    """An HTTP/1.1 connection."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0

    @property
    def _waits(self) -> bool:
        """Whether no request of the connection is being read or answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._start_timer()
        if len(self.connections) > CONNECTIONS:
            silent = [other for other in self.connections if isinstance(other, Connection) and other._waits]
            min(silent, key=lambda other: other._since).transport.abort()  # itself, if no other waits

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._waits:
            self._stop_timer()
        elif self.conn.their_state is h11.IDLE and self._timer is None:
            self._start_timer()  # the first bytes of a head: the time in which one may begin is uvicorn's own

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
