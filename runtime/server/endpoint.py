"""An endpoint for answers: passes them from the model's thread to the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ..errors import (
    ArgumentError,
    BundleError,
    CancellationError,
    ContextOverflowError,
    MemoryShortageError,
)
from .asked import Answered, Piece, Reply
from .documents import HEADERS, json_response, refusal_response
from .limits import drain, read_body
from .queue import AnswerQueue, Event, Job
from .refusal import RefusedError, internal, stopping, stumbled

if TYPE_CHECKING:
    from .metrics import Metrics

_LEFT = 499
"""The status counted for a request whose client has disconnected; it is never sent."""


class Endpoint:
    """An endpoint for ``POST`` at one path."""

    def __init__(
        self,
        name: str,
        queue: AnswerQueue,
        read: Callable[[bytes], Reply | dict[str, object]],
        max_body: int,
        metrics: Metrics | None,
    ) -> None:
        """
        Args:
            name: Name of the API in the metrics.
            queue: Queue of the model's answers.
            read: Parses a request's body; returns the reply to stream, or a document to send at once.
            max_body: Maximum size of a request in bytes.
            metrics: Counts the requests.
        """
        self._name = name
        self._queue = queue
        self._read = read
        self._max_body = max_body
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; its answer is cancelled if the client disconnects."""
        job = None
        unread = True
        status = 500
        try:
            job = self._queue.admit()  # before the body is read: so many bodies, and no more, are in memory
            body = await read_body(scope, receive, self._max_body, self._queue.closing)
            unread = False
            reply = await asyncio.to_thread(self._read, body)
            del body
            if isinstance(reply, dict):
                await json_response(reply)(scope, receive, send)
            else:
                await self._answer(job, reply, scope, receive, send)
            status = 200
        except RefusedError as refusal:
            if unread:
                await drain(receive)
            status = refusal.status
            await refusal_response(refusal, scope["path"])(scope, receive, send)
        except (ClientDisconnect, OSError):
            status = _LEFT  # nobody is there any more
        finally:
            if job is not None:
                job.leave()
            if self._metrics is not None:
                self._metrics.request(self._name, status)

    async def _answer(self, job: Job, reply: Reply, scope: Scope, receive: Receive, send: Send) -> None:
        job.start(reply.asked)
        watch = asyncio.create_task(_cancel_when_gone(receive, job))
        try:
            if reply.streamed:
                await _send_stream(self._stream(job, reply), reply.media_type, send)
            else:
                results = []
                while (event := await self._next(job, reply)) is not None:
                    if isinstance(event, Answered):
                        results.append(event)
                await json_response(reply.whole(results))(scope, receive, send)
        finally:
            watch.cancel()

    async def _stream(self, job: Job, reply: Reply) -> AsyncIterator[bytes]:
        """The bytes of a stream; errors in the request are raised when the first part is requested."""
        event = await self._next(job, reply)
        results = []
        for part in reply.opening():
            yield part
        try:
            while event is not None:
                if isinstance(event, Answered):
                    results.append(event)
                for part in reply.piece(event) if isinstance(event, Piece) else reply.answered(event):
                    yield part
                event = await self._next(job, reply)
        except RefusedError as refusal:  # too late for a status
            for part in reply.refused(refusal):
                yield part
            return
        for part in reply.closing(results):
            yield part

    async def _next(self, job: Job, reply: Reply) -> Event:
        """The next event of a job; errors are raised as refusals."""
        param = reply.asked.conversation.field
        try:
            event = await job.next()
        except RefusedError:
            raise
        except CancellationError as error:
            raise (stopping() if self._queue.closing.is_set() else ClientDisconnect()) from error
        except ContextOverflowError as error:
            raise RefusedError(400, str(error), param=param, code="context_length_exceeded") from error
        except ArgumentError as error:
            raise RefusedError(400, str(error), param=param) from error
        except MemoryShortageError as error:
            raise RefusedError(503, str(error), code="out_of_memory") from error
        except BundleError as error:
            raise RefusedError(500, str(error), code="model_error") from error
        except Exception as error:
            stumbled(error)
            raise internal() from error
        if self._metrics is not None and isinstance(event, Answered):
            self._metrics.answer(event)
        return event


async def _cancel_when_gone(receive: Receive, job: Job) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    job.cancel()


async def _send_stream(parts: AsyncIterator[bytes], media_type: str, send: Send) -> None:
    first = await anext(parts)  # while there is still a status to choose
    headers = [(b"content-type", media_type.encode()), (b"x-accel-buffering", b"no")]
    headers += [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": first, "more_body": True})
    async for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(0)  # where many parts are there at once, notice meanwhile that the client has left
    with suppress(OSError):
        await send({"type": "http.response.body", "body": b"", "more_body": False})
