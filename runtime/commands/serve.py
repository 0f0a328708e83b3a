"""``tinygptv serve``: serves a bundle to other programs; on this machine only, unless there is a token."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import TinyGPTVError, reason_of
from .options import EXIT_USAGE, add_model_options, examples, load, positive, require
from .terminal import complain

if TYPE_CHECKING:
    from .options import Commands

TOKEN_VARIABLE = "TINYGPTV_TOKEN"
LEAST_TOKEN = 16
"""Minimum length of a token, so that it cannot be guessed by trying."""
_MB = 1_000_000


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "serve",
        help="a local HTTP server: OpenAI's and Ollama's APIs, and a page for the browser",
        description="Serve a model with OpenAI's chat completions and Responses APIs (/v1), Ollama's API (/api), and a "
        "page to try it (/). Only programs on this machine can connect. Another --host needs a token, in a file "
        f"(--token-file) or in {TOKEN_VARIABLE}.",
        epilog=examples(
            "tinygptv serve --bundle ~/models/tinygptv",
            "tinygptv serve --port 0",
            "tinygptv serve --port 11434",
            "tinygptv serve --host 0.0.0.0 --token-file token.txt",
            "tinygptv serve --allow-origin https://example.com",
        ),
    )
    add_model_options(parser)
    parser.add_argument("--host", default="127.0.0.1", metavar="HOST", help="address to serve at (default: 127.0.0.1)")
    parser.add_argument("--port", type=_port, default=8000, metavar="N", help="0: any free port (default: 8000)")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="contains the bearer token that clients must send"
    )
    parser.add_argument(
        "--max-body", type=positive, default=32, metavar="MB", help="largest request, images included (default: 32)"
    )
    parser.add_argument(
        "--queue", type=positive, default=16, metavar="N", help="requests that may wait for their turn (default: 16)"
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        type=_origin,
        default=[],
        metavar="ORIGIN",
        help="let web pages of another origin call the server, such as https://example.com (repeatable; *: all pages, "
        "null: files)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT (status 130) or SIGTERM (status 0)."""
    require("serve", "starlette", "uvicorn")
    from ..server.limits import is_loopback
    from ..server.serving import serve

    token = _token(options.token_file)
    if token is None and not is_loopback(options.host):
        complain(
            f"--host {options.host} lets other machines connect; set a token of at least {LEAST_TOKEN} characters in "
            f"--token-file or {TOKEN_VARIABLE}, or leave --host out"
        )
        return EXIT_USAGE
    with _bound(options.host, options.port) as listener, load(options) as model:
        return serve(model, listener, token, options.max_body * _MB, options.queue, options.allow_origin)


def _token(file: Path | None) -> str | None:
    """The token that clients must send; None if none was given.

    Raises:
        TinyGPTVError: The file contains no token, or the token is too short.
    """
    if file is not None:
        name, text = str(file), file.read_text(encoding="utf-8", errors="replace")
    elif given := os.environ.get(TOKEN_VARIABLE):  # empty is as good as not set
        name, text = TOKEN_VARIABLE, given
    else:
        return None
    token = text.strip()
    if len(token) < LEAST_TOKEN or not all("!" <= character <= "~" for character in token):
        raise TinyGPTVError(
            f"{name} holds no usable token; expected at least {LEAST_TOKEN} ASCII characters without blanks, as "
            "python -c 'import secrets; print(secrets.token_urlsafe())' prints"
        )
    return token


def _bound(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not accept connections until the model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if sys.platform != "win32":  # where it would let two servers share a port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise TinyGPTVError(f"cannot serve at {host}, port {port}: {reason_of(error)}; choose others") from error
    return listener


def _origin(text: str) -> str:
    if text in ("*", "null"):
        return text
    scheme, mark, host = text.partition("://")
    if not mark or not scheme or not host or set(host) & set("/?#@* "):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an origin; expected one such as https://example.com, without a path"
        )
    return text.lower()  # as browsers send it


def _port(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 65536
    if value > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: expected 0 to 65535")
    return value
