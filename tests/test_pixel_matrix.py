"""Every kind of picture that six formats know, compared with what ImageMagick reads; skipped where there is none."""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import packed, png, png_rows, tiff
from PIL import Image
from tinygptv.runtime.errors import ImageError
from tinygptv.runtime.vision.image import open_image


def imagemagick() -> str | None:
    """The program, if it is installed; on Windows and elsewhere another is called convert, too."""
    for name in filter(None, map(shutil.which, ("magick", "convert"))):
        said = subprocess.run([name, "-version"], capture_output=True, text=True, check=False)
        if said.stdout.startswith("Version: ImageMagick"):
            return name
    return None


CONVERT = imagemagick()
WIDTH, HEIGHT = 24, 18
MISREAD = ("0 1x2 ", "0 1x4 ", "jpeg RGBA")
"""By ImageMagick 6: grey of 2 and 4 bits whose white is 0, which libtiff's own tiff2rgba reads as we do, and a TIFF."""
Tags = dict[int, tuple[str, Sequence[int]]]


def shades(channels: int) -> np.ndarray:
    """Values from 0 to 1 [height, width, channels]: gradients in other directions for each channel."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / [[[HEIGHT - 1]], [[WIDTH - 1]]]
    all_of_them = [x, y, 1 - x, (x + y) / 2, 1 - y]
    return np.stack(all_of_them[:channels], axis=2)


def samples(channels: int, bits: int, signed: bool = False) -> np.ndarray:
    """Whole numbers of the full range, int64 [height, width, channels]."""
    values = np.rint(shades(channels) * (2**bits - 1)).astype(np.int64)
    return values - 2 ** (bits - 1) if signed else values


def pngs() -> Iterator[tuple[str, bytes]]:
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
    for colour_type, bits in [(each, bits) for each in depths for bits in depths[each]]:
        values = samples(channels[colour_type], bits)
        rows = png_rows(values.reshape(HEIGHT, -1), bits)
        palette = bytes((i * 7 + c * 50) % 256 for i in range(2**bits) for c in range(3))
        extra = [(b"PLTE", palette)] if colour_type == 3 else []
        yield f"{colour_type} {bits}", png(WIDTH, HEIGHT, bits, colour_type, rows, *extra)
        if colour_type < 4:
            alphas = bytes(i * 37 % 256 for i in range(2**bits))
            chosen = alphas if colour_type == 3 else values[5, 7].astype(">u2").tobytes()
            extra.append((b"tRNS", chosen))
            yield f"{colour_type} {bits} tRNS", png(WIDTH, HEIGHT, bits, colour_type, rows, *extra)


def tiff_kinds() -> Iterator[tuple[int, int, int, tuple[int, ...]]]:
    """Photometric interpretation, channels, bits of each, extra samples."""
    for photometric in (0, 1):
        yield from ((photometric, 1, bits, ()) for bits in (1, 2, 4, 8, 12, 16, 32))
        yield from ((photometric, 2, bits, (extra,)) for bits in (8, 16) for extra in (0, 1, 2))
    yield from ((2, 3, bits, ()) for bits in (4, 8, 16, 32))
    yield from ((2, 4, bits, (extra,)) for bits in (8, 16) for extra in (0, 1, 2))
    yield from ((2, 5, bits, (2, 0)) for bits in (8, 16))
    yield from ((3, 1, bits, ()) for bits in (1, 2, 4, 8))
    yield from ((3, 2, 8, (extra,)) for extra in (0, 1, 2))
    yield from ((5, 4, bits, ()) for bits in (8, 16))
    yield from ((5, 5, 8, (extra,)) for extra in (0, 1, 2))
    yield from ((photometric, 3, 8, ()) for photometric in (6, 8))


def colormap(bits: int, depth: int) -> list[int]:
    ramps = [np.linspace(a, b, 2**bits) for a, b in ((0, 1), (1, 0), (0.3, 0.6))]
    return np.rint(np.concatenate(ramps) * (2**depth - 1)).astype(int).tolist()


def whole_number_tiffs() -> Iterator[tuple[str, bytes]]:
    for photometric, channels, bits, extra in tiff_kinds():
        values = samples(channels, bits)
        if 1 in extra:  # associated: colours are multiplied by alpha
            values[..., :-1] = values[..., :-1] * values[..., -1:] // (2**bits - 1)
        for depth, order, deflate, planar, reverse in itertools.product(
            (16, 8) if photometric == 3 else (0,), "<>", (False, True), (False, True), (False, True)
        ):
            if (planar and channels == 1) or (reverse and (deflate or channels > 1 or bits > 8)):
                continue
            tags: Tags = {338: ("H", extra)} if extra else {}
            tags |= {530: ("H", [1, 1])} if photometric == 6 else {}
            tags |= {320: ("H", colormap(bits, depth))} if depth else {}
            tags |= {266: ("H", [2])} if reverse else {}
            planes = [values[..., i] for i in range(channels)] if planar else [values.reshape(HEIGHT, -1)]
            data = [packed(plane, bits, order) for plane in planes]
            if reverse:
                each_bit = np.unpackbits(np.frombuffer(data[0], np.uint8), bitorder="little")
                data = [np.packbits(each_bit).tobytes()]
            name = f"{photometric} {channels}x{bits} {extra} {order} {deflate=} {planar=} {reverse=} {depth=}"
            yield name, tiff(WIDTH, HEIGHT, data, [bits] * channels, photometric, order, tags, deflate)


def signed_and_float_tiffs() -> Iterator[tuple[str, bytes]]:
    kinds = (("f", 16), ("f", 32), ("f", 64), ("i", 8), ("i", 16))  # how signed 32-bit ones are shown is our own choice
    for photometric, order, deflate, (kind, bits) in itertools.product((0, 1, 2), "<>", (False, True), kinds):
        channels = 3 if photometric == 2 else 1
        values = shades(channels) if kind == "f" else samples(channels, bits, signed=True)
        data = values.astype(f"{order}{kind}{bits // 8}").tobytes()
        tags: Tags = {339: ("H", [3 if kind == "f" else 2] * channels)}
        name = f"{photometric} {kind}{bits} {order} {deflate=}"
        yield name, tiff(WIDTH, HEIGHT, data, [bits] * channels, photometric, order, tags, deflate)


def drawn(mode: str) -> Image.Image:
    rgba = np.rint(shades(4) * 255).astype(np.uint8)
    image = Image.fromarray(rgba)
    return image.quantize(16) if mode == "P" else image.convert(mode)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def turned(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


def packed_tiffs() -> Iterator[tuple[str, bytes]]:
    for compression in ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd", "lzma", "jpeg", "webp"):
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
            with contextlib.suppress(OSError):  # not all fit together
                yield f"{compression} {mode}", encoded(drawn(mode), "TIFF", compression=compression)
    for compression in ("group3", "group4", "tiff_ccitt"):
        yield compression, encoded(drawn("1"), "TIFF", compression=compression)
    for value, compression in itertools.product(range(1, 9), ("raw", "tiff_lzw")):
        yield (
            f"turned {value} {compression}",
            encoded(drawn("RGB"), "TIFF", compression=compression, exif=turned(value)),
        )
    values = samples(3, 16)
    left = np.concatenate([values[:, :1], np.diff(values, axis=1)], axis=1) & 0xFFFF  # predictor 2
    for order in "<>":
        data = packed(left.reshape(HEIGHT, -1), 16, order)
        yield f"predictor {order}", tiff(WIDTH, HEIGHT, data, [16] * 3, 2, order, {317: ("H", [2])}, deflate=True)


def jpegs() -> Iterator[tuple[str, bytes]]:
    for mode, progressive, subsampling in itertools.product(("L", "RGB", "CMYK"), (False, True), (0, 1, 2)):
        data = encoded(drawn(mode), "JPEG", quality=95, progressive=progressive, subsampling=subsampling)
        yield f"{mode} {progressive=} {subsampling=}", data
    yield "RGB as it is", encoded(drawn("RGB"), "JPEG", quality=95, keep_rgb=True)
    for value in range(1, 9):
        yield f"turned {value}", encoded(drawn("RGB"), "JPEG", quality=95, exif=turned(value))


def others() -> Iterator[tuple[str, bytes]]:
    for mode, lossless in itertools.product(("L", "RGB", "RGBA"), (False, True)):
        yield f"webp {mode} {lossless=}", encoded(drawn(mode), "WEBP", quality=95, lossless=lossless, exact=True)
    for mode, interlace in itertools.product(("1", "L", "P"), (False, True)):
        yield f"gif {mode} {interlace=}", encoded(drawn(mode), "GIF", interlace=interlace)
    yield "gif transparent", encoded(drawn("P"), "GIF", transparency=3)
    for mode in ("1", "L", "P", "RGB"):
        yield f"bmp {mode}", encoded(drawn(mode), "BMP")


def bmp(
    bits: int, data: bytes, compression: int = 0, masks: Sequence[int] = (), palette: bytes = b"", v4: bool = False
) -> bytes:
    """Rows from below, each padded to 4 bytes by who calls."""
    size = 108 if v4 else 40
    header = struct.pack(
        "<IiiHHIIiiII", size, WIDTH, HEIGHT, 1, bits, compression, len(data), 0, 0, len(palette) // 4, 0
    )
    header += struct.pack(f"<{len(masks)}I", *masks)
    header = header.ljust(14 + size - 14, b"\0") + palette
    start = 14 + len(header)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + data


def bmps() -> Iterator[tuple[str, bytes]]:
    upside_down = shades(4)[::-1]
    for name, layout, compression in (
        ("555", (5, 5, 5, 0), 0),
        ("555 by masks", (5, 5, 5, 0), 3),
        ("565", (5, 6, 5, 0), 3),
        ("444", (4, 4, 4, 0), 3),
        ("4444", (4, 4, 4, 4), 3),
        ("1555", (5, 5, 5, 1), 3),
        ("888 in 32", (8, 8, 8, 0), 0),
        ("888 in 32 by masks", (8, 8, 8, 0), 3),
        ("8888", (8, 8, 8, 8), 3),
        ("101010", (10, 10, 10, 0), 3),
    ):
        bits = 32 if sum(layout) > 16 or "32" in name else 16
        masks, shift, value = [0, 0, 0, 0], 0, np.zeros((HEIGHT, WIDTH), np.uint32)
        for channel in (2, 1, 0, 3):
            most = 2 ** layout[channel] - 1
            masks[channel] = most << shift
            value |= np.rint(upside_down[..., channel] * most).astype(np.uint32) << np.uint32(shift)
            shift += layout[channel]
        data = value.astype(f"<u{bits // 8}").tobytes()
        yield name, bmp(bits, data, compression, masks if compression else (), v4=bool(layout[3]))
    grey = samples(1, 8)[::-1, :, 0]
    palette = bytes(v for i in range(256) for v in (i, 255 - i, i // 2, 0))
    runs = b"".join(b"".join(bytes([1, v]) for v in row) + b"\0\0" for row in grey) + b"\0\1"
    yield "rle8", bmp(8, runs, 1, palette=palette)
    nibbles = b"".join(b"".join(bytes([1, v >> 4 << 4]) for v in row) + b"\0\0" for row in grey) + b"\0\1"
    yield "rle4", bmp(4, nibbles, 2, palette=palette[:64])
    for bits in (1, 2, 4, 8):
        rows = [packed(row[None] >> (8 - bits), bits) for row in grey]
        data = b"".join(row.ljust(-(-len(row) // 4) * 4, b"\0") for row in rows)
        yield f"{bits} bits", bmp(bits, data, palette=palette[: 4 * 2**bits])


def expected(path: Path, ignore_alpha: bool) -> np.ndarray | None:
    """What ImageMagick reads, float [height, width, 3]; None if it does not."""
    command = [CONVERT, f"{path}[0]", "-auto-orient", "-colorspace", "sRGB"]
    command += ["-alpha", "off"] if ignore_alpha else ["-background", "white", "-alpha", "remove"]
    done = subprocess.run([*command, "-depth", "8", "ppm:-"], capture_output=True, check=False)
    if not done.stdout:
        return None
    with Image.open(io.BytesIO(done.stdout)) as image:
        return np.asarray(image.convert("RGB"), float)


@pytest.mark.slow
@pytest.mark.skipif(CONVERT is None, reason="has no ImageMagick")
@pytest.mark.parametrize("kinds", [pngs, whole_number_tiffs, signed_and_float_tiffs, packed_tiffs, jpegs, others, bmps])
def test_pixels_are_those_that_imagemagick_reads(
    kinds: Callable[[], Iterator[tuple[str, bytes]]], tmp_path: Path
) -> None:
    """Or the picture is refused."""
    wrong, compared, path = {}, 0, tmp_path / "picture"
    for name, data in kinds():
        path.write_bytes(data)
        with contextlib.suppress(ImageError):
            found = np.asarray(open_image(path), float)
            if name.startswith(MISREAD):
                continue
            # Of samples that are "unspecified" ImageMagick makes alpha.
            wanted = expected(path, ignore_alpha="(0,)" in name)
            if wanted is None:
                continue
            compared += 1
            difference = np.abs(found - wanted).mean() if found.shape == wanted.shape else np.inf
            if difference > (3 if "8 3x8" in name else 2):  # L*a*b* is converted in another way
                wrong[name] = difference
    assert not wrong
    assert compared > 10
