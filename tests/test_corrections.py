"""What Pillow reads wrongly or leaves unsaid, as files with known pixels."""

from __future__ import annotations

import io
import itertools
import struct

import numpy as np
import pytest
from picture_files import packed, png, png_rows, tiff
from PIL import Image
from tinygptv.runtime.errors import ImageError
from tinygptv.runtime.vision.image import open_image

ORDERS = [("<", False), ("<", True), (">", False), (">", True)]
"""Byte orders, and whether data are deflated: Pillow unpacks raw data by itself, others after libtiff."""


def levels(source: bytes | Image.Image) -> list[int]:
    """The green ones of the first row."""
    return np.asarray(open_image(source))[0, :, 1].tolist()


def grey_tiff(values: list[int], bits: int, photometric: int = 1, order: str = "<", deflate: bool = False) -> bytes:
    data = packed(np.array([values]), bits, order)
    return tiff(len(values), 1, data, [bits], photometric, order, deflate=deflate)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("deflate", [False, True])
def test_16_bit_grey_whose_white_is_0(deflate: bool) -> None:
    data = grey_tiff([0, 257, 32896, 65535], 16, photometric=0, deflate=deflate)
    assert levels(data) == [255, 254, 127, 0]
    assert levels(opened(data)) == [255, 254, 127, 0]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_fewer_bits_whose_white_is_0(bits: int) -> None:
    assert levels(grey_tiff([0, 1, 2**bits - 1], bits, photometric=0)) == [255, 255 - 255 // (2**bits - 1), 0]


@pytest.mark.parametrize("deflate", [False, True])
def test_12_bit_grey(deflate: bool) -> None:
    assert levels(grey_tiff([0, 2048, 4095, 16], 12, deflate=deflate)) == [0, 128, 255, 1]


def test_unsigned_32_bit_integers() -> None:
    assert levels(grey_tiff([0, 2**31, 2**32 - 1], 32)) == [0, 128, 255]
    assert levels(grey_tiff([0, 2**31, 2**32 - 1], 32, deflate=True)) == [0, 128, 255]
    assert levels(grey_tiff([0, 100, 255], 32)) == [0, 100, 255]


@pytest.mark.parametrize(("order", "deflate"), ORDERS)
@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("f4", [0.0, 0.25, 1.0], [0, 64, 255]),
        ("i4", [-1_000_000, 0, 1_000_000], [0, 128, 255]),
        ("i2", [-20_000, 0, 20_000], [0, 128, 255]),
    ],
)
def test_byte_order_of_deflated_values(
    kind: str, values: list[float], expected: list[int], order: str, deflate: bool
) -> None:
    sample_format = 3 if kind == "f4" else 2
    data = np.array([values], order + kind).tobytes()
    tags = {339: ("H", [sample_format])}
    assert levels(tiff(3, 1, data, [int(kind[1]) * 8], 1, order, tags, deflate)) == expected


@pytest.mark.parametrize(("order", "deflate"), ORDERS)
@pytest.mark.parametrize(("depth", "bits"), list(itertools.product((8, 16), (1, 2, 4, 8))))
def test_palettes_of_8_and_16_bits(depth: int, bits: int, order: str, deflate: bool) -> None:
    colours = np.zeros((3, 2**bits), int)
    colours[:, :2] = [[200, 10], [30, 250], [60, 90]]
    tags = {320: ("H", (colours * (257 if depth == 16 else 1)).ravel().tolist())}
    data = tiff(2, 1, packed(np.array([[0, 1]]), bits), [bits], 3, order, tags, deflate)
    expected = [[[200, 30, 60], [10, 250, 90]]]
    assert np.asarray(open_image(data)).tolist() == expected
    image = opened(data)
    palette = image.getpalette()
    assert np.asarray(open_image(image)).tolist() == expected
    assert image.getpalette() == palette  # it is not ours to change


@pytest.mark.parametrize(("bits", "most"), [(1, 1), (2, 3), (4, 15), (8, 255)])
def test_the_transparent_level_of_a_grey_png(bits: int, most: int) -> None:
    values = np.array([[0, most // 2, most]])
    for chosen in {0, most // 2, most}:
        data = png(3, 1, bits, 0, png_rows(values, bits), (b"tRNS", struct.pack(">H", chosen)))
        expected = [255 if value == chosen else value * 255 // most for value in values[0]]
        assert levels(data) == expected
        assert levels(opened(data)) == expected


def test_the_transparent_colour_of_a_16_bit_png() -> None:
    """All 16 bits count: of three colours that look the same one is transparent."""
    colours = [(0x1234, 0x5678, 0x9ABC), (0x1234, 0x5678, 0x9ABD), (0x1235, 0x5678, 0x9ABC), (0xFFFF, 0, 0)]
    rows = png_rows(np.array([colours]).reshape(1, -1), 16)
    transparent = (b"tRNS", struct.pack(">3H", *colours[0]))
    visible = [0x12, 0x56, 0x9A]
    for height in (1, 150):
        found = np.asarray(open_image(png(4, height, 16, 2, rows * height, transparent)))
        assert found.tolist() == [[[255, 255, 255], visible, visible, [255, 0, 0]]] * height


def test_a_dark_16_bit_pgm_stays_dark() -> None:
    assert levels(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 100, 200)) == [0, 0, 1]


def refusal(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(data)
    assert "save it" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("bits", "photometric", "channels"), [(16, 2, 3), (16, 5, 4), (8, 8, 3), (8, 1, 2), (8, 3, 2)])
def test_planes_that_pillow_mixes_up_are_refused(bits: int, photometric: int, channels: int) -> None:
    tags = {338: ("H", [2])} if channels == 2 else {}
    tags |= {320: ("H", [0] * 768)} if photometric == 3 else {}
    planes = [packed(np.array([[1, 2]]), bits)] * channels
    for deflate in (False, True) if bits == 8 else (False,):
        data = tiff(2, 1, planes, [bits] * channels, photometric, "<", tags, deflate)
        assert "TIFF" in refusal(data)


def test_planes_that_pillow_reads() -> None:
    planes = [packed(np.array([[value, 7]]), 8) for value in (1, 2, 3)]
    assert np.asarray(open_image(tiff(2, 1, planes, [8] * 3, 2))).tolist() == [[[1, 2, 3], [7, 7, 7]]]


def test_a_kind_that_pillow_does_not_know() -> None:
    message = refusal(tiff(2, 1, bytes(24), [32] * 3, 2))
    assert "is a damaged TIFF, or one of a kind that Pillow does not read" in message
    assert "save it as PNG or JPEG" in message


def test_a_bmp_with_an_alpha_bit_is_refused() -> None:
    masks = struct.pack("<4I", 0x7C00, 0x3E0, 0x1F, 0x8000)
    header = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0) + masks
    header = header.ljust(108, b"\0")
    data = b"BM" + struct.pack("<IHHI", 126, 0, 0, 122) + header + struct.pack("<2H", 0xFC00, 0x7C00)
    assert "BMP of 16 bits a pixel with transparency" in refusal(data)
    without = data.replace(masks, struct.pack("<4I", 0x7C00, 0x3E0, 0x1F, 0))
    assert np.asarray(open_image(without)).tolist() == [[[255, 0, 0], [255, 0, 0]]]
