"""Metadata that are damaged, or larger than Pillow takes, around pixels that are whole."""

from __future__ import annotations

import io
import struct
import threading
import zlib

import numpy as np
import pytest
from picture_files import png, png_rows, tiff
from PIL import ExifTags, Image, ImageFile, PngImagePlugin
from tinygptv.runtime.errors import ImageError
from tinygptv.runtime.vision.image import open_image

COLOURS = np.arange(2 * 3 * 3).reshape(2, 3, 3) * 13
ROWS = png_rows(COLOURS.reshape(2, -1), 8)
TURNED = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)
"""EXIF data with the orientation 6."""
AS_TEXT = b"\nexif\n      32\n" + (b"Exif\0\0" + TURNED).hex().encode()
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
MUCH = bytes(3 << 20)


def of_png(*extra: tuple[bytes, bytes], **named: object) -> bytes:
    return png(3, 2, 8, 2, ROWS, *extra, **named)


def upright(data: bytes) -> bool:
    """Whether a picture was not turned; its pixels must be right in any case."""
    found = np.asarray(open_image(data)).astype(int)
    turned = found.shape != (2, 3, 3)
    np.testing.assert_array_equal(np.rot90(found) if turned else found, COLOURS)
    return not turned


@pytest.mark.parametrize(
    "chunk",
    [
        (b"iCCP", b"name\0\0" + zlib.compress(MUCH)),
        (b"iCCP", b"name\0\7"),
        (b"iCCP", b""),
        (b"zTXt", b"Comment\0\0" + zlib.compress(MUCH)),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(MUCH)),
        (b"zTXt", b"Comment\0\7"),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(MUCH)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + MUCH),
        (b"tEXt", b"Comment\0" + MUCH),
        (b"tEXt", b"Raw profile type exif\0no numbers"),
        (b"gAMA", b"1"),
        (b"cHRM", b"1"),
        (b"pHYs", b"1"),
        (b"sRGB", b""),
        (b"acTL", b"1"),
        (b"fcTL", bytes(26)),
        (b"eXIf", b"no EXIF"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_metadata_do_not_decide(chunk: tuple[bytes, bytes]) -> None:
    assert upright(of_png(chunk))
    assert upright(of_png(after=[chunk]))


@pytest.mark.parametrize("kind", [b"tEXt", b"iCCP", b"gAMA", b"tIME", b"eXIf", b"acTL", b"prVt", b"tRNS"])
def test_wrong_checksums_of_what_is_ancillary(kind: bytes) -> None:
    """As all viewers do: the chunk is left out, the picture is shown."""
    data = TURNED if kind == b"eXIf" else struct.pack(">3H", *COLOURS[0, 0]) if kind == b"tRNS" else b"name\0text"
    assert upright(of_png((kind, data), wrong_crc=kind))


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE"])
def test_wrong_checksums_of_what_is_critical(kind: bytes) -> None:
    data = png(1, 1, 8, 3, b"\0\0", (b"PLTE", b"\1\2\3"), wrong_crc=kind)
    with pytest.raises(ImageError, match="is a damaged PNG"):
        open_image(data)


def test_text_enough_for_pillows_limit_on_all_of_it() -> None:
    chunk = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 20)))
    assert PngImagePlugin.MAX_TEXT_MEMORY < 70 << 20
    assert upright(of_png(*[chunk] * 70))


@pytest.mark.parametrize(
    "chunk",
    [
        (b"eXIf", TURNED),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        (b"tEXt", b"Raw profile type exif\0" + AS_TEXT),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(AS_TEXT)),
    ],
)
def test_what_says_how_it_is_turned_is_read(chunk: tuple[bytes, bytes]) -> None:
    assert not upright(of_png(chunk))
    assert not upright(of_png((b"zTXt", b"Comment\0\0" + zlib.compress(MUCH)), chunk))
    assert not upright(of_png(after=[(b"tEXt", b"Comment\0" + MUCH), chunk]))


def test_what_is_behind_the_pixels_may_be_cut_off() -> None:
    whole = of_png(after=[(b"tEXt", b"Comment\0" + bytes(1000))])
    for cut in (1, 11, 12, 20, 500, 1030):
        assert upright(whole[:-cut])
    with pytest.raises(ImageError):
        open_image(whole[: whole.index(b"IDAT") + 20])


def test_transparency_and_interlace_are_left_in() -> None:
    transparent = (b"tRNS", struct.pack(">3H", *COLOURS[0, 1]))
    found = np.asarray(open_image(of_png((b"iCCP", b"x"), transparent)))
    assert found[0, 1].tolist() == [255, 255, 255]
    assert found[0, 0].tolist() == COLOURS[0, 0].tolist()


def jpeg(*segments: tuple[int, bytes], **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 24, 3), 100, np.uint8)).save(buffer, "JPEG", **options)
    more = b"".join(struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data for marker, data in segments)
    return buffer.getvalue()[:2] + more + buffer.getvalue()[2:]


@pytest.mark.parametrize(
    "segment",
    [
        (0xE0, b"JFIF\0"),
        (0xE0, b"JFIF\0\1"),
        (0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        (0xE1, b"Exif\0\0garbage"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"MPF\0" + bytes(40)),
        (0xE2, b"MPF\0MM\0*\0\0\0\x08\0\1"),
        (0xED, b"Photoshop 3.0\x008BIM\4\4"),
        (0xEE, b"Adobe"),
        (0xFE, b""),
    ],
)
@pytest.mark.filterwarnings("error")
def test_metadata_of_a_jpeg_do_not_decide(segment: tuple[int, bytes]) -> None:
    assert np.asarray(open_image(jpeg(segment))).tolist() == np.full((16, 24, 3), 100).tolist()


def test_large_metadata_of_a_jpeg() -> None:
    profile = [(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, 200]) + bytes(60_000)) for i in range(200)]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    found = open_image(jpeg(*profile, (0xFE, bytes(60_000)), exif=exif))
    assert found.size == (16, 24)
    data = jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP))
    with Image.open(io.BytesIO(data)) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation) == 6  # older versions of Pillow do not look there
    assert open_image(data).size == ((16, 24) if turned else (24, 16))


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_the_colours_of_a_jpeg_are_left_in(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (16, 16), (0, 255, 255, 0) if mode == "CMYK" else 77).save(buffer, "JPEG", quality=95)
    expected = (255, 0, 0) if mode == "CMYK" else (77, 77, 77)
    assert np.abs(np.asarray(open_image(buffer.getvalue())).astype(int) - expected).max() <= 3


@pytest.mark.parametrize("format", ["WEBP", "TIFF"])
@pytest.mark.filterwarnings("error")
def test_metadata_of_other_formats_do_not_decide(format: str) -> None:
    buffer = io.BytesIO()
    image = Image.new("RGB", (5, 4), (9, 8, 7))
    if format == "WEBP":
        image.save(buffer, format, lossless=True, exif=b"Exif\0\0MM\0*\xff\xff", xmp=MUCH, icc_profile=MUCH)
    else:
        image.save(buffer, format, tiffinfo={700: MUCH, 34665: 0xFFFFFFF0}, icc_profile=MUCH)
    assert np.asarray(open_image(buffer.getvalue())).reshape(-1, 3).tolist() == [[9, 8, 7]] * 20


@pytest.mark.parametrize("animated", [False, True])
@pytest.mark.parametrize("metadata", [{"xmp": bytes(41)}, {"exif": TURNED}, {"exif": TURNED, "xmp": XMP}])
def test_metadata_behind_a_webp_picture_may_be_cut_off(metadata: dict[str, bytes], animated: bool) -> None:
    buffer = io.BytesIO()
    more = {"save_all": True, "append_images": [Image.new("RGB", (3, 2))] * 2} if animated else {}
    Image.fromarray(COLOURS.astype(np.uint8)).save(buffer, "WEBP", lossless=True, **metadata, **more)
    whole = buffer.getvalue()
    pixels = whole.index(b"ANMF" if animated else b"VP8L")
    end = pixels + 8 + int.from_bytes(whole[pixels + 4 : pixels + 8], "little")
    assert end < len(whole) - 20
    turned_from = whole.find(b"EXIF") + 8 + len(TURNED) if "exif" in metadata else len(whole)
    for size in range(end, len(whole)):
        assert upright(whole[:size]) == (size < turned_from)
    for size in (end - 1, pixels + 8, pixels, 20, 13):
        with pytest.raises(ImageError):
            open_image(whole[:size])


def without_values(data: bytes, tag: int, order: str = "<", big: bool = False) -> bytes:
    """A TIFF that ends before all values of this tag are there."""
    entry, offset = (struct.Struct(f"{order}HHQQ"), "Q") if big else (struct.Struct(f"{order}HHII"), "I")
    (start,) = struct.unpack_from(order + offset, data, 8 if big else 4)
    at = start + (8 if big else 2)
    while entry.unpack_from(data, at)[0] != tag:
        at += entry.size
    _, kind, count, _ = entry.unpack_from(data, at)
    return data[:at] + entry.pack(tag, kind, count, len(data) - 3) + data[at + entry.size :]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("tag", [270, 282, 305, 700, 34675, 65000])
@pytest.mark.filterwarnings("error")
def test_values_behind_the_end_of_a_tiff_do_not_decide(tag: int, deflate: bool, order: str) -> None:
    """Not of tags that describe; those behind them still count: the second and fourth sample are no alpha, 32 bits
    are floats, and the picture is turned.
    """
    text = {tag: ("B", bytes(40))}
    planes = [plane.astype(np.uint8).tobytes() for plane in COLOURS.transpose(2, 0, 1)]
    assert upright(without_values(tiff(3, 2, planes, [8] * 3, 2, order, text, deflate), tag, order))
    turned = tiff(3, 2, COLOURS.astype(np.uint8).tobytes(), [8] * 3, 2, order, {**text, 274: ("H", [6])}, deflate)
    assert not upright(without_values(turned, tag, order))
    samples = np.concatenate([COLOURS, np.zeros((2, 3, 1))], 2).astype(np.uint8)
    padded = tiff(3, 2, samples.tobytes(), [8] * 4, 2, order, {**text, 338: ("H", [0])}, deflate)
    assert upright(without_values(padded, tag, order))
    levels = np.linspace(0, 1, 6).astype(f"{order}f4").reshape(2, 3)
    floats = tiff(3, 2, levels.tobytes(), [32], 1, order, {**text, 339: ("H", [3])}, deflate)
    found = np.asarray(open_image(without_values(floats, tag, order)))
    assert found[..., 0].tolist() == [[0, 51, 102], [153, 204, 255]]


@pytest.mark.parametrize("tag", [258, 273, 320, 339])
def test_values_that_say_how_pixels_are_stored_must_be_there(tag: int) -> None:
    more = {258: ("H", [8] * 3), 320: ("H", bytes(768)), 339: ("H", [1] * 3)}
    planes = [plane.astype(np.uint8).tobytes() for plane in COLOURS.transpose(2, 0, 1)]
    with pytest.raises(ImageError, match=rf"the file ends before the values of its tag {tag}.*copy it again"):
        open_image(without_values(tiff(3, 2, planes, [8] * 3, 2, "<", {tag: more[tag]} if tag in more else {}), tag))


def test_a_big_tiff_likewise() -> None:
    buffer = io.BytesIO()
    Image.fromarray(COLOURS.astype(np.uint8)).save(buffer, "TIFF", big_tiff=True, tiffinfo={270: "text" * 9})
    if not buffer.getvalue().startswith(b"II+"):
        pytest.skip("Pillow writes no BigTIFF before its version 11.1")
    assert upright(without_values(buffer.getvalue(), 270, big=True))


def test_pillow_s_settings_are_those_of_the_program() -> None:
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    data = of_png((b"iCCP", b"name\0\0" + zlib.compress(MUCH)))
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(upright(data))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
    after = (ImageFile.LOAD_TRUNCATED_IMAGES, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    assert after == before
