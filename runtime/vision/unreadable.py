"""Explains why a file is not a readable picture, and what to do about it."""

from __future__ import annotations

from .metadata import CutValuesError

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Major brands of ISO/IEC 23008-12, in the first box of such a file; ``mif1`` may hold AVIF as well."""

_MAGIC = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
}
_OTHERS = {
    b"\xff\x0a": "a JPEG XL picture",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "an archive or office document",
    b"\x1aE\xdf\xa3": "a video",
}


def is_heif(start: bytes) -> bool:
    """Whether the first bytes of a file are those of HEIF, the format of many phones (``.heic``)."""
    return start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS


def damaged_format(start: bytes) -> str | None:
    """The supported format whose files begin with these bytes, or None."""
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


def described(start: bytes) -> str:
    """A description of a file by its first bytes.

    Args:
        start: The file's first 12 bytes or more.
    """
    for magic, name in _OTHERS.items():
        if start.startswith(magic):
            return f"{name}, which tinygptv does not read"
    if start[4:8] == b"ftyp":
        return "a video, or a picture of a kind that tinygptv does not read"
    if start.lstrip()[:1] == b"<":
        return "text such as HTML or SVG, not a picture that tinygptv reads"
    if start and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
        return "text, not a picture"
    return "not a picture that tinygptv reads"


def why_undecodable(error: Exception) -> str:
    """Why a picture's pixels cannot be decoded, from an exception of Pillow or its plugin."""
    if isinstance(error, CutValuesError):
        return str(error)
    said = str(error).lower()
    if isinstance(error, EOFError) or any(word in said for word in ("truncated", "not enough", "unexpected end")):
        return "it ends too early"
    if isinstance(error, NotImplementedError) or any(word in said for word in ("not available", "unsupported")):
        return "it is of a kind that tinygptv does not read"
    return "its pixel data is damaged"
