"""Documents as HTTP responses, and as events of a stream."""

from __future__ import annotations

import json

from starlette.responses import Response

from .refusal import RefusedError

HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
"""Of every response."""
EVENTS = "text/event-stream; charset=utf-8"
LINES = "application/x-ndjson"
OLLAMA = "/api/"
"""What the paths of Ollama's API begin with; its errors have a form of their own."""


def json_bytes(document: object) -> bytes:
    """JSON in ASCII, which no text that a client made up can break."""
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def json_response(document: object) -> Response:
    """A document that was asked for."""
    return Response(json_bytes(document), 200, HEADERS, "application/json")


def refusal_response(refusal: RefusedError, path: str) -> Response:
    """Why there is none, in the form of the API that a path belongs to."""
    document = {"error": str(refusal)} if path.startswith(OLLAMA) else refusal.document
    return Response(json_bytes(document), refusal.status, HEADERS | refusal.headers, "application/json")


def sent_event(document: object, kind: str | None = None) -> bytes:
    """One server-sent event, named where an API names them."""
    return (f"event: {kind}\n".encode() if kind else b"") + b"data: " + json_bytes(document) + b"\n\n"


def line(document: object) -> bytes:
    """One line of a stream of JSON lines."""
    return json_bytes(document) + b"\n"
