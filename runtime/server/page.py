"""The page at ``/``: one document that can run only its own scripts and connect only to this server."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "web"
_SCRIPTS = ("words.js", "picture.js", "welcome.js", "talk.js", "asking.js", "keeping.js", "composer.js", "page.js")
"""Scripts in the order in which they run: each may use those before it."""


@cache
def page() -> tuple[bytes, dict[str, str]]:
    """The page, and its security headers (a Content Security Policy with the hashes of the page's own content)."""
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
