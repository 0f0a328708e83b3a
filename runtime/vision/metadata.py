"""PNG and JPEG files as Pillow is shown them: without metadata, which it would refuse readable pictures for.

Pillow reads all of a file's metadata before its pixels, and gives up where they are damaged or larger than it takes.
Only what says how pixels are to be shown is left in.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8\xff"
MOST_TEXT = 1 << 20
"""Longest text that is looked at for an orientation, in bytes; Pillow's own limit."""

Range = tuple[int, int]
"""Where a part of a file begins and ends."""


def without_metadata(file: BinaryIO, size: int) -> BinaryIO:
    """The same picture with less around it.

    Args:
        file: Open at its start, and to be left open as long as the result is read.
        size: Of the file, in bytes.

    Returns:
        A file that reads what is left, or ``file`` itself at its start, if that is all or it is of another format.
    """
    start = file.read(len(PNG_START))
    kept: list[Range] = []
    if start == PNG_START:
        kept = _joined([(0, len(PNG_START)), *_png_chunks(file, size)])
    elif start.startswith(JPEG_START):
        kept = _joined([(0, 2), *_jpeg_segments(file, size)])
    file.seek(0)
    if not kept or kept == [(0, size)]:
        return file
    return cast(BinaryIO, io.BufferedReader(_Parts(file, kept)))


def _png_chunks(file: BinaryIO, size: int) -> Iterator[Range]:
    """What is critical, and what of the rest says how to show it; an animation is its first picture."""
    at, pixels = len(PNG_START), False
    while True:
        file.seek(at)
        head = file.read(8)
        kind = head[4:]
        if len(head) < 8 or not kind.isalpha():
            if not pixels:
                yield at, size  # for Pillow to say what is wrong
            return
        end = at + 12 + int.from_bytes(head[:4], "big")
        critical = kind[:1].isupper()
        if critical or (kind in (b"tRNS", b"eXIf", b"iTXt", b"tEXt", b"zTXt") and _is_of_use(kind, file, end - at)):
            yield at, min(end, size)
        if kind == b"IEND":
            return
        pixels = pixels or kind == b"IDAT"
        at = end


def _is_of_use(kind: bytes, file: BinaryIO, length: int) -> bool:
    """Whether an ancillary chunk, whose header was read, is whole, and says how to show the pixels."""
    if length > MOST_TEXT:
        return False
    data = file.read(length - 8)
    data, checksum = data[:-4], data[-4:]
    if len(data) != length - 12 or struct.pack(">I", zlib.crc32(kind + data)) != checksum:
        return False
    keyword, _, text = data.partition(b"\0")
    if kind == b"iTXt":
        return keyword == b"XML:com.adobe.xmp" and text[:1] == b"\0"  # not compressed
    if kind == b"zTXt":
        return keyword == b"Raw profile type exif" and _inflates(text[1:])
    return kind != b"tEXt" or keyword == b"Raw profile type exif"


def _inflates(data: bytes) -> bool:
    inflater = zlib.decompressobj()
    try:
        inflater.decompress(data, MOST_TEXT)
    except zlib.error:
        return False
    return not inflater.unconsumed_tail


def _jpeg_segments(file: BinaryIO, size: int) -> Iterator[Range]:
    """All but application data and comments that neither the decoder nor an orientation needs."""
    at = 2
    while True:
        file.seek(at)
        head = file.read(4)
        # Behind the start of the scan are pixels; before it are segments, or what Pillow may make sense of.
        if len(head) < 4 or head[0] != 0xFF or not 0xC0 <= head[1] <= 0xFE or head[1] == 0xDA:
            yield at, size
            return
        if 0xD0 <= head[1] <= 0xD8:  # stands alone
            yield at, at + 2
            at += 2
            continue
        end = at + 2 + int.from_bytes(head[2:], "big")
        is_metadata = 0xE0 <= head[1] <= 0xEF or head[1] == 0xFE
        if not is_metadata or _decides(head[1], file.read(end - at - 4) if end > at + 4 else b""):
            yield at, end
        at = max(end, at + 4)


def _decides(marker: int, data: bytes) -> bool:
    """Whether application data say which colours or which way up."""
    if marker == 0xE0:
        return data.startswith(b"JFIF\0") and len(data) >= 14
    if marker == 0xE1:
        return data.startswith((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"))
    return marker == 0xEE and data.startswith(b"Adobe") and len(data) >= 12


def _joined(ranges: list[Range]) -> list[Range]:
    joined: list[Range] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


class _Parts(io.RawIOBase):
    """Parts of a file, one behind the other, as a file to read."""

    def __init__(self, file: BinaryIO, parts: list[Range]) -> None:
        self._file = file
        self._parts = parts
        self._size = sum(end - start for start, end in parts)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """From one part, which may be less than was asked for; 0 at the end."""
        skipped = self._at
        for start, end in self._parts:
            if skipped < end - start:
                self._file.seek(start + skipped)
                data = self._file.read(min(len(buffer), end - start - skipped))
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)
            skipped -= end - start
        return 0
