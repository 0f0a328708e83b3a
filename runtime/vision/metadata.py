"""Picture files for Pillow, without metadata that would make it fail or misread them.

Pillow reads all metadata of a file before its pixels, and fails if they are damaged or too large.
Of PNG and JPEG, only metadata that affect the display of pixels are kept; of WebP and TIFF, all that are complete.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8\xff"
TIFF_STARTS = {
    b"II*\0": ("<", "I", "H"),
    b"MM\0*": (">", "I", "H"),
    b"II+\0": ("<", "Q", "Q"),
    b"MM\0+": (">", "Q", "Q"),
}
"""Byte order, and types of an offset and of the number of tags, by a file's first bytes: BigTIFF has longer ones."""
MOST_TEXT = 1 << 20
"""Maximum length of a text that is searched for an orientation, in bytes; Pillow's own limit."""
MOST_TAGS = 1 << 16
"""Maximum number of tags of a TIFF that are read; only a BigTIFF can have more."""

Range = tuple[int, int]
"""Start and end of a part of a file."""
Part = Range | bytes
"""A part of the file that Pillow reads: a range of the original file, or replacement bytes."""

_TIFF_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Size of a value by its type; all other types have one byte."""
_TIFF_DESCRIPTIONS = {*range(269, 273), 282, 283, *range(285, 292), 301, 305, 306, 315, 316, 318, 319, 321, 330, 333}
_TIFF_DESCRIPTIONS |= {336, 337, 340, 341}
"""Tags below ``_TIFF_PRIVATE`` that do not affect how pixels are stored: names, resolution, calibration, printing."""
_TIFF_PRIVATE = 700
"""No tag from this number on affects how pixels are stored."""


class CutValuesError(ValueError):
    """A file ends before values that define how its pixels are stored; the message names the tag."""


def without_metadata(file: BinaryIO, size: int) -> BinaryIO:
    """The same picture with less metadata.

    Args:
        file: A file at its start; keep it open as long as the result is read.
        size: Size of the file in bytes.

    Returns:
        A file without the metadata, or ``file`` itself at its start if nothing is removed or it has another format.

    Raises:
        ValueError: It is a TIFF that ends before the values that define how its pixels are stored.
    """
    start = file.read(12)
    kept: list[Part] = []
    if start.startswith(PNG_START):
        kept = [(0, len(PNG_START)), *_png_chunks(file, size)]
    elif start.startswith(JPEG_START):
        kept = [(0, 2), *_jpeg_segments(file, size)]
    elif start[:4] == b"RIFF" and start[8:] == b"WEBP" and 8 + int.from_bytes(start[4:8], "little") > size:
        kept = _whole_webp_chunks(file, size)
    elif start[:4] in TIFF_STARTS:
        kept = list(_without_cut_values(file, size, *TIFF_STARTS[start[:4]]))
    kept = _joined(kept)
    file.seek(0)
    if not kept or kept == [(0, size)]:
        return file
    return cast(BinaryIO, io.BufferedReader(_Parts(file, kept)))


def _png_chunks(file: BinaryIO, size: int) -> Iterator[Range]:
    """Critical chunks, and ancillary ones that affect the display; of an animation, the first picture only."""
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
    """Whether an ancillary chunk, whose header was read, is complete and affects the display of pixels."""
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
    """All segments except application data and comments that neither the decoder nor the orientation needs."""
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
    """Whether application data determine colours or orientation."""
    if marker == 0xE0:
        return data.startswith(b"JFIF\0") and len(data) >= 14
    if marker == 0xE1:
        return data.startswith((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"))
    return marker == 0xEE and data.startswith(b"Adobe") and len(data) >= 12


def _whole_webp_chunks(file: BinaryIO, size: int) -> list[Part]:
    """A file that is shorter than it says, up to the last complete chunk: the decoder rejects partial chunks."""
    chunks: list[Part] = []
    at = 12
    while True:
        file.seek(at)
        head = file.read(8)
        end = at + 8 + int.from_bytes(head[4:], "little")
        if len(head) < 8 or end > size:
            break
        chunks += [(at, end), bytes(end % 2)]  # each begins at an even place
        at = end + end % 2
    return [(0, 4), (at - 8).to_bytes(4, "little"), (8, 12), *chunks]


def _without_cut_values(file: BinaryIO, size: int, order: str, offset: str, number: str) -> Iterator[Part]:
    """A TIFF without tags whose values are cut off: Pillow reads no tag after such a one."""
    entry = struct.Struct(f"{order}HH{offset}{offset}")
    width = struct.calcsize(offset)
    file.seek(width)
    file.seek(_unpacked(file, order + offset))
    count = _unpacked(file, order + number)
    at, done = file.tell(), 0
    entries = file.read(entry.size * min(count, MOST_TAGS))
    for position in range(0, len(entries) - entry.size + 1, entry.size):
        tag, kind, values, place = entry.unpack_from(entries, position)
        length = values * _TIFF_BYTES.get(kind, 1)
        if length <= width or place + length <= size:
            continue
        if tag < _TIFF_PRIVATE and tag not in _TIFF_DESCRIPTIONS:
            raise CutValuesError(f"the file ends before the values of its tag {tag}")
        yield done, at + position + 4
        yield bytes(width)
        done = at + position + 4 + width
    yield done, size


def _unpacked(file: BinaryIO, format: str) -> int:
    """Read a number; 0 at the end of the file."""
    length = struct.calcsize(format)
    return int(struct.unpack(format, file.read(length).ljust(length, b"\0"))[0])


def _joined(parts: list[Part]) -> list[Part]:
    joined: list[Part] = []
    for part in parts:
        last: Part = joined[-1] if joined else b""
        if isinstance(part, tuple) and isinstance(last, tuple) and last[1] == part[0]:
            joined[-1] = (last[0], part[1])
        elif part:
            joined.append(part)
    return joined


class _Parts(io.RawIOBase):
    """Consecutive parts as one readable file."""

    def __init__(self, file: BinaryIO, parts: list[Part]) -> None:
        self._file = file
        self._parts = parts
        self._size = sum(map(_length, parts))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """Read from one part, which may return less than was asked for; 0 at the end."""
        skipped = self._at
        for part in self._parts:
            if skipped < (length := _length(part)):
                wanted = min(len(buffer), length - skipped)
                if isinstance(part, bytes):
                    data = part[skipped : skipped + wanted]
                else:
                    self._file.seek(part[0] + skipped)
                    data = self._file.read(wanted)
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)
            skipped -= length
        return 0


def _length(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else part[1] - part[0]
