"""Connections of clients that send nothing: they keep nobody out."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 128
"""At once. Beyond, those that wait for a request make room, the one that has waited longest first."""
HEAD_SECONDS = 10.0
"""In which a client has to send the head of a request, once it is connected or has begun with it."""


class Connection(H11Protocol):
    """HTTP/1.1 over one connection."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0

    @property
    def _waits(self) -> bool:
        """Whether no request of it is being read or answered."""
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
