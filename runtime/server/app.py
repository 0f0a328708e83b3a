"""The server's addresses, and how an answer gets from the model's thread to a client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..bundle.manifest import Manifest, read_manifest
from ..errors import (
    ArgumentError,
    BundleError,
    CancellationError,
    ContextOverflowError,
    ImageError,
    MemoryShortageError,
)
from ..loading import DEMO_BUNDLE
from .limits import Guard, drain, read_body
from .page import page
from .queue import AnswerQueue, Finished, Job
from .refusal import RefusedError, quoted, stopping, stumbled
from .replies import Reply
from .requests import read_request
from .responses import HEADERS, json_bytes, json_response, refusal_response


def make_app(queue: AnswerQueue, manifest: Manifest, token: str | None, max_body: int) -> ASGIApp:
    """Put the server together.

    Args:
        queue: Of the model's answers.
        manifest: The model's.
        token: What clients must send; None where only this machine's own can reach it.
        max_body: Largest request in bytes.
    """
    name = manifest.name
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "tinygptv"}
    model |= {"family": manifest.family, "tasks": list(manifest.tasks), "boxes": manifest.boxes}
    model |= {"fit": manifest.image.fit, "demo": manifest == read_manifest(DEMO_BUNDLE)}

    async def models(request: Request) -> Response:
        return json_response({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        if request.path_params["name"] != name:
            found = quoted(request.path_params["name"])
            raise RefusedError(404, f"there is no model {found}; this server has {name!r}", code="model_not_found")
        return json_response(model)

    async def health(request: Request) -> Response:
        now = {"receiving": queue.receiving, "pending": queue.pending}
        ever = {"answered": queue.answered, "cancelled": queue.cancelled}
        return json_response({"status": "ok", "model": name, **now, **ever})

    async def show_page(request: Request) -> Response:
        content, headers = page()
        return Response(content, 200, HEADERS | headers, "text/html; charset=utf-8")

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        found = f"{request.method} {quoted(request.url.path)}: {error.detail}"
        message = f"{found}; this server has /v1/chat/completions (POST) and /v1/models"
        response = refusal_response(RefusedError(error.status_code, message))
        response.headers.update(error.headers or {})
        return response

    async def refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return refusal_response(error)

    async def internal_error(request: Request, error: Exception) -> Response:
        return refusal_response(_internal())

    app = Starlette(
        routes=[
            Route("/", show_page),
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/v1/chat/completions", Completions(queue, manifest, max_body), methods=["POST"]),
        ],
        exception_handlers={HTTPException: http_error, RefusedError: refusal, Exception: internal_error},
    )
    app.router.redirect_slashes = False
    return Guard(app, token)


class Completions:
    """``POST /v1/chat/completions``."""

    def __init__(self, queue: AnswerQueue, manifest: Manifest, max_body: int) -> None:
        self._queue = queue
        self._manifest = manifest
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; its answer is cancelled where the client leaves."""
        job = None
        unread = True
        try:
            job = self._queue.admit()  # before the body is read: so many bodies, and no more, are in memory
            body = await read_body(scope, receive, self._max_body, self._queue.closing)
            unread = False
            request = await asyncio.to_thread(read_request, body, self._manifest.name)
            del body
            job.start(request)
            watch = asyncio.create_task(_cancel_when_gone(receive, job))
            try:
                reply = Reply(self._manifest)
                if request.stream:
                    await _send_events(self._events(job, reply, request.include_usage), scope, receive, send)
                else:
                    await (await self._complete(job, reply))(scope, receive, send)
            finally:
                watch.cancel()
        except RefusedError as refusal:
            if unread:
                await drain(receive)
            await refusal_response(refusal)(scope, receive, send)
        except (ClientDisconnect, OSError):
            pass  # nobody is there any more
        finally:
            if job is not None:
                job.leave()

    async def _complete(self, job: Job, reply: Reply) -> Response:
        while not isinstance(event := await _next(job), Finished):
            pass
        return json_response(reply.complete(event.answer, event.images))

    async def _events(self, job: Job, reply: Reply, include_usage: bool) -> AsyncIterator[bytes]:
        """Server-sent events; what is wrong with the request is raised by the first."""
        event = await _next(job)
        yield _event(reply.first())
        try:
            while not isinstance(event, Finished):
                yield _event(reply.piece(event))
                event = await _next(job)
        except RefusedError as refusal:
            yield _event(refusal.document)  # too late for a status
            return
        yield _event(reply.last(event.answer, event.images))
        if include_usage:
            yield _event(reply.counts(event.answer))
        yield b"data: [DONE]\n\n"


async def _next(job: Job) -> str | Finished:
    """What is next of an answer, with errors as refusals."""
    try:
        return await job.next()
    except CancellationError as error:
        raise stopping() from error  # or the client has left, and nobody reads this
    except ContextOverflowError as error:
        raise RefusedError(400, str(error), param="messages", code="context_length_exceeded") from error
    except ImageError as error:
        raise RefusedError(400, str(error), param="messages", code="invalid_image") from error
    except ArgumentError as error:
        raise RefusedError(400, str(error), param="messages") from error
    except MemoryShortageError as error:
        raise RefusedError(503, str(error), code="out_of_memory") from error
    except BundleError as error:
        raise RefusedError(500, str(error), code="model_error") from error
    except Exception as error:
        stumbled(error)
        raise _internal() from error


async def _cancel_when_gone(receive: Receive, job: Job) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    job.cancel()


async def _send_events(events: AsyncIterator[bytes], scope: Scope, receive: Receive, send: Send) -> None:
    first = await anext(events)  # while there is still a status to choose
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
    headers += [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": first, "more_body": True})
    async for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(0)  # where many pieces are there at once, notice meanwhile that the client has left
    with suppress(OSError):
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(document: object) -> bytes:
    return b"data: " + json_bytes(document) + b"\n\n"


def _internal() -> RefusedError:
    return RefusedError(500, "the server made a mistake; its own messages on stderr say where", code="internal_error")
