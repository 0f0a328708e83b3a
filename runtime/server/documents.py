"""JSON documents as HTTP responses, and as events of a stream."""

from __future__ import annotations

import json

from starlette.responses import Response

from .refusal import RefusedError

HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
"""HTTP headers of every response."""
EVENTS = "text/event-stream; charset=utf-8"
LINES = "application/x-ndjson"
OLLAMA = "/api/"
"""Prefix of the paths of Ollama's API, whose errors have a different form."""


def json_bytes(document: object) -> bytes:
    """JSON in ASCII, so that no text from a client can break it."""
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def json_response(document: object) -> Response:
    """The response with a document."""
    return Response(json_bytes(document), 200, HEADERS, "application/json")


def refusal_response(refusal: RefusedError, path: str) -> Response:
    """The response for a refusal, in the form of the API that the path belongs to."""
    document = {"error": str(refusal)} if path.startswith(OLLAMA) else refusal.document
    return Response(json_bytes(document), refusal.status, HEADERS | refusal.headers, "application/json")


def sent_event(document: object, kind: str | None = None) -> bytes:
    """One server-sent event, with a name if the API uses names."""
    return (f"event: {kind}\n".encode() if kind else b"") + b"data: " + json_bytes(document) + b"\n\n"


def line(document: object) -> bytes:
    """One line of a stream of JSON lines."""
    return json_bytes(document) + b"\n"
