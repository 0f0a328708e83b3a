"""The server's routes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial
from importlib.util import find_spec

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..bundle.manifest import read_manifest
from ..loading import DEMO_BUNDLE
from ..model import TinyGPTV
from . import ollama
from .asked import Reply
from .documents import HEADERS, json_response, refusal_response
from .endpoint import Endpoint
from .fields import Fields
from .limits import Guard, read_body
from .openai_chat import read_chat
from .page import page
from .queue import AnswerQueue
from .refusal import RefusedError, advice, internal, quoted
from .responses_api import read_responses
from .schema import Schemas

_SHORT_BODY = 100_000


def make_app(
    queue: AnswerQueue, model: TinyGPTV, token: str | None, max_body: int, origins: Collection[str] = ()
) -> ASGIApp:
    """Put the server together.

    Args:
        queue: Queue of the model's answers.
        model: The loaded model.
        token: Token that clients must send; None if the server can be reached from this machine only.
        max_body: Maximum size of a request in bytes.
        origins: Origins of other web pages that may call the server; ``*`` allows all.
    """
    manifest = model.manifest
    name = manifest.name
    schemas = Schemas(model.tokenizer, manifest)
    started = time.time()
    metrics = None
    if find_spec("prometheus_client") is not None:
        from .metrics import MEDIA_TYPE, Metrics

        metrics = Metrics(queue)
    listed = {"id": name, "object": "model", "created": int(started), "owned_by": "tinygptv"}
    listed |= {"context_length": manifest.contract.context, "max_model_len": manifest.contract.context}
    listed |= {"vision": True, "architecture": {"input_modalities": ["text", "image"], "output_modalities": ["text"]}}
    listed |= {"family": manifest.family, "tasks": list(manifest.tasks), "boxes": manifest.boxes}
    listed |= {"fit": manifest.image.fit, "demo": manifest == read_manifest(DEMO_BUNDLE)}

    def answering(path: str, read: Callable[..., Reply | dict[str, object]]) -> Route:
        chosen = partial(read, manifest=manifest, schemas=schemas)
        return Route(path, Endpoint(path.strip("/"), queue, chosen, max_body, metrics), methods=["POST"])

    def fixed(path: str, document: object) -> Route:
        async def show(request: Request) -> Response:
            return json_response(document)

        return Route(path, show)

    async def one_model(request: Request) -> Response:
        Fields({"model": request.path_params["name"]}).model(name)
        return json_response(listed)

    async def health(request: Request) -> Response:
        now = {"receiving": queue.receiving, "pending": queue.pending}
        ever = {"answered": queue.answered, "cancelled": queue.cancelled}
        return json_response({"status": "ok", "model": name, **now, **ever})

    async def ready(request: Request) -> Response:
        queue.check_room()
        return json_response({"status": "ready", "model": name})

    async def show(request: Request) -> Response:
        body = await read_body(request.scope, request.receive, _SHORT_BODY, queue.closing)
        return json_response(ollama.show(body, manifest, started))

    async def figures(request: Request) -> Response:
        if metrics is None:
            message = f"/metrics needs prometheus-client on the server; {advice('metrics')}"
            raise RefusedError(501, message, code="not_installed")
        return Response(metrics.text(), 200, HEADERS | {"content-type": MEDIA_TYPE})

    async def show_page(request: Request) -> Response:
        content, headers = page()
        return Response(content, 200, HEADERS | headers, "text/html; charset=utf-8")

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        found = f"{request.method} {quoted(request.url.path)}: {error.detail}"
        message = (
            f"{found}; this server has /v1/chat/completions, /v1/responses (POST), /v1/models and Ollama's /api/chat"
        )
        response = refusal_response(RefusedError(error.status_code, message), request.url.path)
        response.headers.update(error.headers or {})
        return response

    async def refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return refusal_response(error, request.url.path)

    async def internal_error(request: Request, error: Exception) -> Response:
        return refusal_response(internal(), request.url.path)

    app = Starlette(
        routes=[
            Route("/", show_page),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", figures),
            fixed("/v1/models", {"object": "list", "data": [listed]}),
            Route("/v1/models/{name:path}", one_model),
            answering("/v1/chat/completions", read_chat),
            answering("/v1/responses", read_responses),
            fixed("/api/version", ollama.VERSION),
            fixed("/api/tags", ollama.tags(manifest, started)),
            fixed("/api/ps", ollama.running(manifest, started)),
            Route("/api/show", show, methods=["POST"]),
            answering("/api/chat", ollama.read_chat),
            answering("/api/generate", ollama.read_generate),
        ],
        exception_handlers={HTTPException: http_error, RefusedError: refusal, Exception: internal_error},
    )
    app.router.redirect_slashes = False
    guarded = Guard(app, token, origins)
    if not origins:
        return guarded
    return CORSMiddleware(
        guarded,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["Retry-After"],
        allow_private_network=True,
    )
