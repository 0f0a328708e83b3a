"""Pictures of every kind Pillow knows, as real files, and the numbers that become of them."""

from __future__ import annotations

import gc
import io
import os
import struct
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import png
from PIL import ExifTags, Image
from tinygptv.runtime.bundle.manifest import ImagePreprocessing
from tinygptv.runtime.errors import ImageError
from tinygptv.runtime.vision import image as image_module
from tinygptv.runtime.vision.image import MAX_PIXELS, open_image, preprocess

# Any warning, a file left open included, fails the test it occurs in.
pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning"),
]

CLIP = ImagePreprocessing(
    image_size=56,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    resample="bicubic",
    fit="squash",
)
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (6, 9, 4), dtype=np.uint8)  # height 6, width 9, RGBA


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(source: object) -> np.ndarray:
    image = open_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def smooth(height: int, width: int) -> np.ndarray:
    """A gradient, uint8 [height, width, 3], that lossy formats keep within a few levels."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, 255 - x * 255 // width], axis=2).astype(np.uint8)


def on_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:].astype(float) / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


# --- sources ---------------------------------------------------------------------------------------------------------


def test_path_bytes_and_pil_image_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "ein Bild, 图片 🦙.png"
    image = Image.fromarray(NOISE[..., :3])
    image.save(path)
    for source in (path, str(path), path.read_bytes(), image):
        np.testing.assert_array_equal(pixels(source), NOISE[..., :3])


def test_passed_image_is_neither_modified_nor_closed_nor_shared() -> None:
    image = Image.fromarray(NOISE)
    image.info["comment"] = "kept"
    result = open_image(image)
    assert image.mode == "RGBA"
    assert image.info == {"comment": "kept"}
    np.testing.assert_array_equal(np.asarray(image), NOISE)

    image = Image.fromarray(NOISE[..., :3])
    result = open_image(image)
    result.paste("black", (0, 0, *result.size))
    result.close()
    np.testing.assert_array_equal(np.asarray(image), NOISE[..., :3])


def test_passed_animation_is_read_at_its_frame_and_stays_open() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    with Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))) as animation:
        animation.seek(1)
        assert tuple(pixels(animation)[0, 0]) == (0, 255, 0)
        animation.seek(2)
        assert tuple(pixels(animation)[0, 0]) == (0, 0, 255)


def test_files_are_closed(tmp_path: Path) -> None:
    frame = Image.fromarray(NOISE[..., :3])
    for name, options in (("a.png", {}), ("b.gif", {"save_all": True, "append_images": [frame.rotate(180)]})):
        frame.save(tmp_path / name, **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            open_image(tmp_path / name)
            gc.collect()
        assert [str(w.message) for w in caught] == []
        if os.path.isdir("/proc/self/fd"):
            links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
            assert str(tmp_path / name) not in links


@pytest.mark.parametrize("source", [None, 7, 1.5, ["a.png"], bytearray(b"x"), NOISE, io.BytesIO(b"x")])
def test_other_types_are_refused(source: object) -> None:
    with pytest.raises(TypeError, match=type(source).__name__):
        open_image(source)


# --- modes and formats -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "tolerance"),
    [("PNG", 0), ("BMP", 0), ("TIFF", 0), ("PPM", 0), ("TGA", 0), ("JPEG", 12), ("WEBP", 12), ("JPEG2000", 12)],
)
def test_formats(format: str, tolerance: int, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(encoded(Image.fromarray(smooth(48, 64)), format))
    difference = pixels(tmp_path / "picture").astype(int) - smooth(48, 64)
    assert np.abs(difference).max() <= tolerance


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(format: str) -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(red, format, save_all=True, append_images=[blue], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    assert (pixels(data) == (255, 0, 0)).all()


def test_grey_and_one_bit(tmp_path: Path) -> None:
    Image.fromarray(NOISE[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(pixels(tmp_path / "grey.png"), np.repeat(NOISE[..., :1], 3, axis=2))
    bits = NOISE[..., 0] > 127
    for format in ("PNG", "TIFF", "PPM"):
        np.testing.assert_array_equal(pixels(encoded(Image.fromarray(bits), format))[..., 1], bits * 255)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(format: str, order: str) -> None:
    levels = np.array([[0, 1, 128, 129, 255, 256], [385, 386, 32767, 40000, 65534, 65535]], np.uint16)
    if order == ">u2" and format == "TIFF":  # Pillow reads big-endian TIFF files as I;16B
        image = Image.frombytes("I;16B", (6, 2), levels.astype(">u2").tobytes())
    else:
        image = Image.fromarray(levels)
    expected = [[0, 0, 0, 1, 1, 1], [1, 2, 127, 156, 255, 255]]  # round(level * 255 / 65535)
    np.testing.assert_array_equal(pixels(encoded(image, format))[..., 2], expected)


def test_a_dark_16_bit_picture_stays_dark() -> None:
    dark = Image.fromarray(np.array([[0, 100, 200]], np.uint16))
    assert pixels(dark)[0, :, 0].tolist() == [0, 0, 1]


def test_16_bit_pgm_which_pillow_reads_as_32_bit_integers() -> None:
    data = b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32896, 65535)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "I"
    assert pixels(data)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 256, 65535], [0, 1, 255]),
        ([-50, 0, 50], [0, 128, 255]),
        ([1_000_000, 1_500_000, 2_000_000], [0, 128, 255]),
        ([70_000] * 3, [0, 0, 0]),
        ([-3] * 3, [0, 0, 0]),
        ([-(2**31), 0, 2**31 - 1], [0, 128, 255]),
    ],
)
def test_32_bit_integers(values: list[int], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.int32))
    assert image.mode == "I"
    for source in (image, encoded(image, "TIFF")):
        assert pixels(source)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 1.0], [0, 64, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([-0.001, 0.0, 0.001], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
        ([0.0, float("inf"), float("-inf")], [0, 0, 0]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
    ],
)
def test_floats(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert image.mode == "F"
    for source in (image, encoded(image, "TIFF")):
        assert pixels(source)[0, :, 0].tolist() == expected


def test_alpha_is_composited_on_white() -> None:
    rgba, grey = Image.fromarray(NOISE), Image.fromarray(NOISE).convert("LA")
    for source in (rgba, encoded(rgba, "PNG"), encoded(rgba, "TIFF"), encoded(rgba, "WEBP", lossless=True, exact=True)):
        assert np.abs(pixels(source) - on_white(NOISE)).max() <= 1
    expected = on_white(np.asarray(grey)[..., [0, 0, 0, 1]])
    for source in (grey, encoded(grey, "PNG")):
        assert np.abs(pixels(source) - expected).max() <= 1


def test_fully_transparent_pixels_are_white_whatever_their_colour() -> None:
    assert (pixels(encoded(Image.new("RGBA", (3, 3), (200, 10, 0, 0)), "PNG")) == 255).all()


@pytest.mark.parametrize(("mode", "plain"), [("RGBa", "RGBA"), ("La", "LA")])
def test_premultiplied_alpha(mode: str, plain: str) -> None:
    straight = Image.fromarray(NOISE[..., [0, 1, 2, 3]] | np.uint8([0, 0, 0, 128])).convert(plain)
    expected = on_white(np.asarray(straight)[..., [0, 0, 0, 1] if plain == "LA" else [0, 1, 2, 3]])
    assert np.abs(pixels(straight.convert(mode)) - expected).max() <= 3


def test_palettes() -> None:
    indexes = np.array([[0, 1, 2]], np.uint8)
    image = Image.fromarray(indexes)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    red, green, blue, white = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]
    assert image.mode == "P"
    for format in ("PNG", "GIF", "BMP", "TIFF"):
        assert pixels(encoded(image, format)).tolist() == [[red, green, blue]]
    for format in ("PNG", "GIF"):
        assert pixels(encoded(image, format, transparency=1)).tolist() == [[red, white, blue]]
    assert pixels(encoded(image, "PNG", transparency=b"\x00\xff\x80")).tolist() == [[white, green, [127, 127, 255]]]

    image.putpalette([255, 0, 0, 0, 0, 255, 0, 255, 0, 0, 255, 255], "RGBA")
    assert pixels(image).tolist() == [[white, green, blue]]
    image = Image.new("PA", (1, 1))
    image.putpalette([255, 0, 0])
    image.putpixel((0, 0), (0, 0))
    assert pixels(image).tolist() == [[white]]


def test_one_transparent_colour_of_a_png() -> None:
    """The tRNS chunk of PNG files without an alpha channel."""
    grey = png(3, 1, 8, 0, b"\x00" + bytes([10, 20, 30]), (b"tRNS", struct.pack(">H", 20)))
    assert pixels(grey)[0, :, 0].tolist() == [10, 255, 30]
    colour = png(2, 1, 8, 2, b"\x00" + bytes([1, 2, 3, 4, 5, 6]), (b"tRNS", struct.pack(">3H", 4, 5, 6)))
    assert pixels(colour).tolist() == [[[1, 2, 3], [255, 255, 255]]]
    one_bit = png(2, 1, 1, 0, b"\x00\x40", (b"tRNS", struct.pack(">H", 0)))
    assert pixels(one_bit)[0, :, 0].tolist() == [255, 255]
    # of 16 bits the whole value counts: 0x2001 is another grey than 0x2000, though both become 0x20
    deep = png(3, 1, 16, 0, b"\x00" + struct.pack(">3H", 0x2000, 0x2001, 0xFFFF), (b"tRNS", struct.pack(">H", 0x2000)))
    assert pixels(deep)[0, :, 0].tolist() == [255, 32, 255]


def test_cmyk() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for source in (cmyk, encoded(cmyk, "JPEG", quality=95), encoded(cmyk, "TIFF")):
        assert np.abs(pixels(source).astype(int) - (255, 0, 0)).max() <= 3
    data = encoded(cmyk, "JPEG", quality=95)  # Pillow writes Adobe's marker, with which values are stored inverted
    assert b"Adobe" in data


def test_ycbcr_hsv_and_lab() -> None:
    picture = Image.fromarray(smooth(20, 20))
    for mode in ("YCbCr", "HSV"):
        assert np.abs(pixels(picture.convert(mode)).astype(int) - smooth(20, 20)).max() <= 6
    lab = Image.new("LAB", (4, 4), (255, 128, 128))
    for source in (lab, encoded(lab, "TIFF")):
        assert pixels(source).min() >= 253  # the lightest of colours without hue


def test_16_bit_colour() -> None:
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in smooth(4, 5).astype(np.uint16) * 257)
    np.testing.assert_array_equal(pixels(png(5, 4, 16, 2, rows)), smooth(4, 5))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"])
@pytest.mark.parametrize("more", ["I", "F", "LA", "La", "PA", "I;16", "I;16L", "I;16B", "I;16N"])
def test_every_mode_of_pillow_is_read(mode: str, more: str) -> None:
    for each in (mode, more):
        assert pixels(Image.new(each, (3, 2))).shape == (2, 3, 3)


# --- EXIF ------------------------------------------------------------------------------------------------------------

# How a camera held in each of the eight ways stores an upright picture (EXIF 2.3: where row 0 and column 0 are).
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright[::-1].swapaxes(0, 1),
}


def orientation(value: object) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("value", sorted(STORED))
def test_exif_orientation(value: int, format: str) -> None:
    upright = smooth(40, 64)
    stored = Image.fromarray(np.ascontiguousarray(STORED[value](upright)))
    try:
        data = encoded(stored, format, exif=orientation(value))
    except KeyError:
        pytest.skip(f"this Pillow does not write {format}")
    difference = pixels(data).astype(int) - upright
    assert np.abs(difference).max() <= 12


def test_a_picture_is_not_turned_twice() -> None:
    data = encoded(Image.fromarray(smooth(8, 12)), "PNG", exif=orientation(6))
    once = open_image(data)
    assert once.size == (8, 12)
    np.testing.assert_array_equal(pixels(once), np.asarray(once))


@pytest.mark.parametrize("exif", [b"Exif\x00\x00", b"Exif\x00\x00garbage", b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"])
def test_damaged_exif_is_ignored(exif: bytes) -> None:
    image = Image.fromarray(NOISE[..., :3])
    image.info["exif"] = exif
    np.testing.assert_array_equal(pixels(image), NOISE[..., :3])


@pytest.mark.parametrize("value", [0, 9, 65535, "6", (6, 1)])
def test_unknown_orientations_are_ignored(value: object) -> None:
    image = Image.fromarray(NOISE[..., :3])
    image.getexif()[ExifTags.Base.Orientation] = value
    np.testing.assert_array_equal(pixels(image), NOISE[..., :3])


# --- what is refused -------------------------------------------------------------------------------------------------


def refusal(source: object) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(source)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message
    return message


def test_missing_folder_empty_and_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "weg ✂.png"
    assert refusal(missing).startswith(f"{missing} does not exist")
    assert refusal(str(tmp_path)).startswith(f"{tmp_path} is a folder")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    assert refusal(empty).startswith(f"{empty} is empty")
    assert refusal(b"").startswith("image bytes is empty")
    assert refusal("").startswith("the empty path does not exist")
    assert "cannot be opened" in refusal("a\0b.png")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    assert "Permission denied" in refusal("locked.png")


def test_no_image(tmp_path: Path) -> None:
    path = tmp_path / "letter.jpg"
    path.write_bytes(b"%PDF-1.7 and so on")
    message = refusal(path)
    assert message.startswith(str(path))
    assert "18 bytes" in message
    assert "%PDF-1.7" in message
    assert refusal(b"hello").startswith("image bytes (5 bytes")


def test_postscript_is_not_run() -> None:
    data = encoded(Image.fromarray(NOISE[..., :3]), "EPS")
    assert "PostScript" in refusal(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_truncated(format: str, tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)), format)
    path = tmp_path / "half"
    path.write_bytes(whole[: len(whole) // 2])
    message = refusal(path)
    assert message.startswith(f"{path} ")
    assert any(words in message for words in ("cannot be decoded", "is not an image", "is a damaged"))
    assert refusal(whole[: len(whole) // 2]).startswith("image bytes")


def test_closed_image_and_image_without_pixels() -> None:
    assert refusal(Image.new("RGB", (0, 5))).startswith("the PIL image has no pixels (0 x 5)")
    image = Image.open(io.BytesIO(encoded(Image.new("RGB", (5, 5)), "PNG")))
    image.close()
    assert refusal(image).startswith("the PIL image cannot be decoded")


@pytest.mark.parametrize("pillow_limit", ["default", None])
def test_decompression_bomb(pillow_limit: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if pillow_limit is None:  # a host program may have switched Pillow's own check off
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60_000, 60_000, 8, 0, b"\x00" * 1000))
    assert path.stat().st_size < 200
    message = refusal(path)
    assert message.startswith(f"{path} is too large")
    assert f"{MAX_PIXELS:,}" in message


def test_limit_is_on_the_header_before_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "MAX_PIXELS", 100)
    assert "11 x 10 = 110 pixels" in refusal(png(11, 10, 8, 0, b""))  # would be truncated, were it decoded
    assert "11 x 10 = 110 pixels" in refusal(Image.new("L", (11, 10)))
    assert pixels(Image.new("L", (10, 10))).shape == (10, 10, 3)


def test_limit_is_that_of_pillows_error() -> None:
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


def test_large_pictures_are_read_without_pillows_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between Pillow's two limits: those are lowered here, so that the picture can be small."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    data = encoded(Image.fromarray(NOISE[..., :3]), "PNG")
    with pytest.raises(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(pixels(data), NOISE[..., :3])
    assert Image.MAX_IMAGE_PIXELS == 40


def test_warning_filters_survive_threads() -> None:
    data = encoded(Image.fromarray(smooth(64, 64)), "PNG")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [open_image(data) for _ in range(60)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


SAMPLES = [
    encoded(Image.fromarray(NOISE[..., :3]), "JPEG", exif=orientation(6)),
    encoded(Image.fromarray(NOISE), "PNG", exif=orientation(3)),
    encoded(Image.fromarray(NOISE[..., :3]).quantize(8), "GIF", transparency=1),
    encoded(Image.fromarray(NOISE), "WEBP"),
    encoded(Image.fromarray(NOISE[..., :3]), "TIFF"),
    encoded(Image.fromarray(NOISE[..., :3]), "BMP"),
    encoded(Image.fromarray(NOISE), "ICO"),
    encoded(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 200), "PNG"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks about damaged metadata
@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    source = bytes(damaged[: data.draw(st.integers(1, len(damaged)))])
    try:
        message = open_image(source).mode
    except ImageError as error:
        message = str(error)
    assert message == "RGB" or (message.startswith("image bytes") and "\n" not in message)


# --- preprocess ------------------------------------------------------------------------------------------------------


def bicubic(picture: np.ndarray, size: int) -> np.ndarray:
    """Antialiased bicubic resizing (Catmull-Rom, a = -0.5), one axis after the other; [height, width, 3] in and out."""

    def weights(length: int) -> np.ndarray:
        scale = length / size
        stretch = max(scale, 1.0)
        centre = (np.arange(size)[:, None] + 0.5) * scale
        x = np.abs((np.arange(length)[None, :] + 0.5 - centre) / stretch)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        matrix = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        return matrix / matrix.sum(axis=1, keepdims=True)

    down = np.einsum("sw,hwc->hsc", weights(picture.shape[1]), picture.astype(float))
    return np.einsum("sh,hwc->swc", weights(picture.shape[0]), down)


@pytest.mark.parametrize("shape", [(120, 80), (30, 40), (56, 56), (1, 300)])
def test_resized_bicubically_to_the_square(shape: tuple[int, int]) -> None:
    picture = 64 + smooth(*shape) // 2  # far enough from 0 and 255 that nothing overshoots
    picture[::3, ::5] = 255 - picture[::3, ::5]
    got = preprocess(Image.fromarray(picture), replace(CLIP, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    assert np.abs(got[0].transpose(1, 2, 0) * 255 - bicubic(picture, 56)).max() <= 1.1  # a rounding to 8 bits an axis


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=4 * 4 * 3, max_size=4 * 4 * 3))
def test_normalised_as_torchvision_does(raw: bytes) -> None:
    picture = np.frombuffer(raw, np.uint8).reshape(4, 4, 3)
    preprocessing = replace(CLIP, image_size=4)
    got = preprocess(Image.fromarray(picture), preprocessing)
    mean, std = (np.float32(values).reshape(3, 1, 1) for values in (CLIP.mean, CLIP.std))
    np.testing.assert_array_equal(
        got[0], (picture.transpose(2, 0, 1).astype(np.float32) / np.float32(255) - mean) / std
    )
    exact = (picture / 255.0 - np.array(CLIP.mean)) / np.array(CLIP.std)
    np.testing.assert_allclose(got[0].transpose(1, 2, 0), exact, atol=1e-6)


def test_layout_and_source_left_alone() -> None:
    image = Image.fromarray(smooth(70, 90))
    got = preprocess(image, CLIP)
    assert got.shape == (1, 3, 56, 56)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    assert got.flags.writeable
    np.testing.assert_array_equal(np.asarray(image), smooth(70, 90))


def test_channels_are_red_green_blue() -> None:
    got = preprocess(Image.new("RGB", (5, 5), (255, 0, 0)), CLIP)
    expected = [(1 - CLIP.mean[0]) / CLIP.std[0], -CLIP.mean[1] / CLIP.std[1], -CLIP.mean[2] / CLIP.std[2]]
    np.testing.assert_allclose(got[0, :, 3, 3], expected, atol=1e-6)


def test_preprocess_refuses_what_it_would_get_wrong() -> None:
    with pytest.raises(ValueError, match="mode RGBA"):
        preprocess(Image.new("RGBA", (5, 5)), CLIP)
