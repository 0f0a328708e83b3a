"""Refusals: what a client gets in place of an answer, in the shape that OpenAI's clients read."""

from __future__ import annotations

import json
import sys
import traceback

from ..errors import TinyGPTVError


class RefusedError(TinyGPTVError):
    """A request is not answered; its text tells the client why and what to do."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: bool = False
    ) -> None:
        """
        Args:
            status: Of HTTP.
            message: One line for whoever wrote the request.
            param: The field that it is about.
            code: A word for programs.
            retry: Whether the same request may be answered a second later.
        """
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers: dict[str, str] = {}
        if retry:
            self.headers["retry-after"] = "1"
        if status == 401:
            self.headers["www-authenticate"] = "Bearer"

    @property
    def document(self) -> dict[str, object]:
        """The JSON body."""
        return {
            "error": {
                "message": str(self),
                "type": "server_error" if self.status >= 500 else "invalid_request_error",
                "param": self.param,
                "code": self.code,
            }
        }


def stopping() -> RefusedError:
    """The refusal of requests that a stop of the server ends."""
    return RefusedError(503, "the server is being stopped; ask again when it is back", code="stopping", retry=True)


def internal() -> RefusedError:
    """The refusal where the server itself went wrong."""
    return RefusedError(500, "internal error; the server's messages on stderr say where", code="internal_error")


def quoted(value: object) -> str:
    """What was found in a request, as it is written there, short enough for a message."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = "nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."


def advice(extra: str) -> str:
    """What brings an extra that the server lacks; without its folder's name, which is nobody else's business."""
    return f'run there, in tinygptv\'s folder: pip install ".[{extra}]"'


def stumbled(error: BaseException) -> None:
    """Say on stderr where an error nobody expected came from; without its text, which may hold what was asked."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    print(f"tinygptv: internal error: {type(error).__name__} at {where.filename}:{where.lineno}", file=sys.stderr)
