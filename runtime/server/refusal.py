"""Refusals: the errors that clients get instead of an answer, in the form of OpenAI's API."""

from __future__ import annotations

import json
import sys
import traceback

from ..errors import TinyGPTVError


class RefusedError(TinyGPTVError):
    """A request is refused; the message tells the client why, and what to do."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: bool = False
    ) -> None:
        """
        Args:
            status: HTTP status.
            message: Message in one line, for the author of the request.
            param: The field that the error is about.
            code: Machine-readable error code.
            retry: Whether the same request may succeed a second later.
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
    """The refusal for requests that are cancelled because the server stops."""
    return RefusedError(503, "the server is being stopped; ask again when it is back", code="stopping", retry=True)


def internal() -> RefusedError:
    """The refusal for an internal error of the server."""
    return RefusedError(500, "internal error; the server's messages on stderr say where", code="internal_error")


def quoted(value: object) -> str:
    """A value from a request as JSON, shortened for a message."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = "nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."


def advice(extra: str) -> str:
    """How to install a missing extra; does not reveal the server's folder."""
    return f'run there, in tinygptv\'s folder: pip install ".[{extra}]"'


def stumbled(error: BaseException) -> None:
    """Print to stderr where an unexpected error was raised; without its message, which may hold the user's text."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    print(f"tinygptv: internal error: {type(error).__name__} at {where.filename}:{where.lineno}", file=sys.stderr)
