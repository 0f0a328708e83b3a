"""Picture files put together byte by byte, for what Pillow reads but does not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

PNG_START = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, data: bytes, wrong_crc: bool = False) -> bytes:
    crc = zlib.crc32(kind + data) ^ wrong_crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(
    width: int,
    height: int,
    bit_depth: int,
    colour_type: int,
    rows: bytes,
    *extra: tuple[bytes, bytes],
    wrong_crc: bytes = b"",
    after: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG file of these filtered rows; chunks ``extra`` before them, ``after`` behind them.

    The chunks of the kind ``wrong_crc`` have a wrong checksum.
    """
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), *after, (b"IEND", b"")]
    return PNG_START + b"".join(png_chunk(kind, data, kind == wrong_crc) for kind, data in chunks)


def packed(samples: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Whole samples [height, values a row] of 1 to 32 bits; rows begin at bytes. ``order`` is that of two or more."""
    if bits >= 8 and bits != 12:
        return samples.astype(f"{order}u{bits // 8}").tobytes()
    shifts = np.arange(bits - 1, -1, -1)
    unpacked = (samples.astype(np.uint32)[..., None] >> shifts) & 1  # [height, values, bits]
    return np.packbits(unpacked.reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()


def png_rows(samples: np.ndarray, bits: int) -> bytes:
    """Rows [height, values a row] without any filter."""
    return b"".join(b"\x00" + packed(row[None], bits) for row in samples)


def tiff(
    width: int,
    height: int,
    data: bytes | Sequence[bytes],
    bits: Sequence[int],
    photometric: int,
    order: str = "<",
    tags: Mapping[int, tuple[str, Sequence[int]]] | None = None,
    deflate: bool = False,
) -> bytes:
    """A TIFF file of one strip, or of one for each plane.

    Args:
        width: In pixels.
        height: Likewise.
        data: The rows; one for each plane if they are separate.
        bits: Of each sample.
        photometric: Tag 262.
        order: ``<`` or ``>``.
        tags: Further ones, as the struct module's letter of their type and their values.
        deflate: Whether data are compressed.
    """
    planes = [data] if isinstance(data, bytes) else list(data)
    strips = [zlib.compress(plane) if deflate else plane for plane in planes]
    offsets = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    fields: dict[int, tuple[str, Sequence[int]]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", bits),
        259: ("H", [8 if deflate else 1]),
        262: ("H", [photometric]),
        273: ("I", offsets),
        277: ("H", [len(bits)]),
        278: ("I", [height]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if len(strips) > 1 else 1]),
        **(tags or {}),
    }
    body = b"".join(strips)
    entries = b""
    for number in sorted(fields):
        letter, values = fields[number]
        value = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(value) > 4:
            body += bytes(len(body) % 2)
            where, body = 8 + len(body), body + value
            value = struct.pack(f"{order}I", where)
        kind = {"B": 1, "H": 3, "I": 4}[letter]
        entries += struct.pack(f"{order}HHI", number, kind, len(fields[number][1]))
        entries += value.ljust(4, b"\0")
    body += bytes(len(body) % 2)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    return start + body + struct.pack(f"{order}H", len(fields)) + entries + bytes(4)
