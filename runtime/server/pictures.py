"""Pictures in a request: ``data:`` URIs and bare base64."""

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
    """The file in a ``data:`` URI.

    Of any media type: many programs send ``application/octet-stream``, and what the file is shows in its bytes.

    Args:
        url: Such as ``data:image/png;base64,iVBORw0...``.
        where: The field, for the message.

    Raises:
        RefusedError: It is none, or its base64 is damaged. Other addresses are never fetched.
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
    """What base64 stands for: also url-safe, in lines, percent-encoded or without padding.

    Raises:
        RefusedError: It is damaged.
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
