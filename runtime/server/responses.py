"""Documents as HTTP responses."""

from __future__ import annotations

import json

from starlette.responses import Response

from .refusal import RefusedError

HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}
"""Of every response."""


def json_bytes(document: object) -> bytes:
    """JSON in ASCII, which no text that a client made up can break."""
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def json_response(document: object) -> Response:
    """A document that was asked for."""
    return Response(json_bytes(document), 200, HEADERS, "application/json")


def refusal_response(refusal: RefusedError) -> Response:
    """Why there is none."""
    return Response(json_bytes(refusal.document), refusal.status, HEADERS | refusal.headers, "application/json")
