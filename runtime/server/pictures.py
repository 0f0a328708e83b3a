"""Pictures in a request, as ``data:`` URIs or bare base64."""

from __future__ import annotations

import base64
import binascii
import re
import string
from urllib.parse import unquote_to_bytes

from .refusal import RefusedError, quoted

_DATA_URI = re.compile(r"\s*data:[^,]*;\s*base64\s*,", re.IGNORECASE)
_STANDARD = bytes.maketrans(b"-_", b"+/")
_BLANKS = string.whitespace.encode()


def image_bytes(url: object, where: str) -> bytes:
    """The content of a ``data:`` URI.

    Any media type is accepted: many programs send ``application/octet-stream``; the type is detected from the content.

    Args:
        url: URI such as ``data:image/png;base64,iVBORw0...``.
        where: Name of the field, for messages.

    Raises:
        RefusedError: It is not a ``data:`` URI (other addresses are never fetched), or its base64 is invalid.
    """
    if not isinstance(url, str):
        raise RefusedError(400, f"{where} is {quoted(url)}; expected a data: URI", param=where)
    start = _DATA_URI.match(url)
    if start is None:
        raise RefusedError(
            400,
            f"{where} begins with {quoted(url[:40])}; expected data:image/...;base64,... since this server works "
            "offline and fetches nothing: send the picture itself",
            param=where,
            code="invalid_image_url",
        )
    return base64_bytes(url[start.end() :], where)


def base64_bytes(text: str, where: str) -> bytes:
    """Decode base64, including the URL-safe alphabet, line breaks, percent-encoding and missing padding.

    Raises:
        RefusedError: The base64 is invalid.
    """
    try:
        data = text.encode("ascii")
        if b"%" in data:
            data = unquote_to_bytes(data)
        data = data.translate(_STANDARD, _BLANKS)
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"{where} is not valid base64; encode the file once more"
        raise RefusedError(400, message, param=where, code="invalid_image_url") from error
