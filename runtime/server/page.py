"""The page at ``/``: one file, which may run its own script and talk to this server, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

_FILE = Path(__file__).parent / "page.html"
_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def page() -> tuple[bytes, dict[str, str]]:
    """The page, and the headers that confine it (Content Security Policy, by the hashes of what is in it)."""
    content = _FILE.read_bytes().replace(b"\r\n", b"\n")  # as browsers hash it, however it was checked out
    hashes = {
        kind.decode(): base64.b64encode(hashlib.sha256(text).digest()).decode()
        for kind, text in _INLINE.findall(content)
    }
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
