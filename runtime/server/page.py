"""The page at ``/``: one document, which may run its own script and talk to this server, and nothing else."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "web"
_SCRIPTS = ("words.js", "picture.js", "welcome.js", "talk.js", "asking.js", "keeping.js", "composer.js", "page.js")
"""In the order in which they are run: each may use those before it."""


@cache
def page() -> tuple[bytes, dict[str, str]]:
    """The page, and the headers that confine it (Content Security Policy, by the hashes of what is in it)."""
    content = _read("page.html")
    hashes = {}
    for kind, names in {"style": ("page.css",), "script": _SCRIPTS}.items():
        text = b"".join(map(_read, names))
        hashes[kind] = base64.b64encode(hashlib.sha256(text).digest()).decode()
        empty = f"<{kind}></{kind}>".encode()
        content = content.replace(empty, empty.replace(b"><", b">" + text + b"<"))
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src 'sha256-{hashes['script']}'",
            f"style-src 'sha256-{hashes['style']}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return content, {"content-security-policy": policy, "referrer-policy": "no-referrer"}


def _read(name: str) -> bytes:
    return (_FOLDER / name).read_bytes().replace(b"\r\n", b"\n")  # as browsers hash it, however it was checked out
