"""Large, long and deep pictures: some rows at a time, JPEG at a fraction, and refusals where memory would end."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import plain_environment
from picture_files import png
from PIL import ExifTags, Image
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.bundle.manifest import ImagePreprocessing
from tinygptv.runtime.cli import main
from tinygptv.runtime.errors import ImageError
from tinygptv.runtime.vision import fit, image, picture
from tinygptv.runtime.vision.image import open_image, open_picture, preprocess

SQUASHED = ImagePreprocessing(32, (0.5,) * 3, (0.5,) * 3, "bicubic", "squash")
CROPPED = replace(SQUASHED, fit="crop")
PADDED = replace(SQUASHED, fit="pad", pad_color=(127, 127, 127))
ALL = [SQUASHED, CROPPED, PADDED]
RANDOM = np.random.default_rng(5)
TEAL = Path(__file__).parent / "images" / "teal_circle.png"


@pytest.fixture
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "LARGE_PIXELS", 1000)
    for module in (picture, fit):
        monkeypatch.setattr(module, "BLOCK_PIXELS", 1500)


def encoded(pixels: np.ndarray | Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, format, **options)
    return buffer.getvalue()


def smooth(width: int, height: int) -> Image.Image:
    """Noise of few pixels, enlarged."""
    noise = Image.fromarray(RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return noise.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.usefixtures("_all_are_large")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16", "I", "F", "1"])
def test_some_rows_at_a_time_are_the_whole(mode: str, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode in ("I;16", "I", "F"):
        levels = RANDOM.integers(0, 60_000, (61, 97))
        source = Image.fromarray(levels.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    else:
        source = Image.fromarray(RANDOM.integers(0, 256, (61, 97, 4), dtype=np.uint8)).convert(mode)
    source.getexif()[ExifTags.Base.Orientation] = orientation
    in_blocks = np.asarray(open_image(source))
    monkeypatch.setattr(picture, "BLOCK_PIXELS", 1 << 22)
    np.testing.assert_array_equal(in_blocks, np.asarray(open_image(source)))
    assert in_blocks.shape == ((97, 61, 3) if orientation >= 5 else (61, 97, 3))


@pytest.mark.usefixtures("_all_are_large")
@pytest.mark.parametrize("preprocessing", ALL, ids=lambda each: each.fit)
@pytest.mark.parametrize("size", [(150, 90), (90, 150), (400, 40)])
def test_rows_resized_some_at_a_time_are_all_the_same(
    size: tuple[int, int], preprocessing: ImagePreprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = Image.fromarray(RANDOM.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    in_blocks = preprocess(open_picture(noise), preprocessing)
    for module in (picture, fit):
        monkeypatch.setattr(module, "BLOCK_PIXELS", 1 << 22)
    np.testing.assert_array_equal(in_blocks, preprocess(noise, preprocessing))


@pytest.mark.usefixtures("_all_are_large")
def test_a_large_jpeg_is_decoded_at_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = smooth(1100, 700)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encoded(photo, "JPEG", quality=95, exif=exif)
    found = open_picture(data, 4 * 32)
    assert (found.size, found.original_size) == ((175, 275), (700, 1100))
    assert open_picture(data).size == open_image(data).size == (700, 1100)
    for preprocessing in ALL:
        difference = preprocess(found, preprocessing) - preprocess(open_image(data), preprocessing)
        assert np.abs(difference).mean() * 127.5 < 2
    # Not below what was asked for, and no other formats.
    assert open_picture(data, 400).size == (700, 1100)
    assert open_picture(encoded(photo, "PNG"), 32).size == (1100, 700)


@pytest.mark.usefixtures("_all_are_large")
def test_an_encoded_image_has_the_size_of_the_file(speaking_model: TinyGPTV) -> None:
    encoded_image = speaking_model.encode_image(encoded(smooth(2400, 2000), "JPEG"))
    assert (encoded_image.width, encoded_image.height) == (2400, 2000)
    assert encoded_image.view == (0, 0, 2400, 2000)


def test_ordinary_pictures_are_decoded_whole() -> None:
    data = encoded(smooth(1100, 700), "JPEG")
    np.testing.assert_array_equal(preprocess(open_picture(data, 64), SQUASHED), preprocess(open_image(data), SQUASHED))


@pytest.mark.parametrize("size", [(100_000_000, 1), (131_073, 1)])
def test_longer_ones_are_refused(size: tuple[int, int]) -> None:
    """Tables for resizing a row of 100 million pixels would take 3 GB."""
    long = Image.new("1", size)
    for preprocessing in ALL:
        with pytest.raises(ImageError, match=rf"long.png has {size[0]} x 1 pixels.*cut it first"):
            preprocess(open_picture(long), preprocessing, "long.png")


def test_a_long_picture_ends_no_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.new("1", (2_000_000, 1)), "PNG"))
    (tmp_path / "b.png").write_bytes(TEAL.read_bytes())
    assert main(["caption", str(tmp_path), "-o", str(tmp_path / "captions.jsonl")]) == 1
    assert "a teal circle" in (tmp_path / "captions.jsonl").read_text()
    assert "a.png has 2000000 x 1 pixels; expected at most 131,072 a side" in capsys.readouterr().err


def test_webp_has_a_lower_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MAX_WEBP_PIXELS", 20)
    data = encoded(Image.new("RGB", (7, 3)), "WEBP")
    with pytest.raises(ImageError, match=r"7 x 3 = 21 pixels\); expected at most 20 pixels.*save it as JPEG or PNG"):
        open_image(data)
    assert open_image(encoded(Image.new("RGB", (5, 4)), "WEBP")).size == (5, 4)


@pytest.mark.parametrize("error", [MemoryError, OverflowError, ZeroDivisionError, KeyError, AssertionError])
@pytest.mark.parametrize("where", ["open", "load", "crop", "resize"])
def test_whatever_goes_wrong_is_an_image_error(
    where: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = png(1, 1, 8, 0, b"\0\0")

    def fails(*arguments: object, **named: object) -> None:
        raise error

    target = {"open": "PIL.Image.open", "load": "PIL.PngImagePlugin.PngImageFile.load"}
    monkeypatch.setattr(target.get(where, f"PIL.Image.Image.{where}"), fails)
    with pytest.raises(ImageError) as caught:
        preprocess(open_picture(data), SQUASHED)
    wanted = "takes more memory than there is" if error is MemoryError else "cannot be decoded"
    assert wanted in str(caught.value)


PEAK = """
import sys
from tinygptv.runtime.bundle.manifest import ImagePreprocessing
from tinygptv.runtime.system.process import peak_rss
from tinygptv.runtime.vision.image import open_picture, preprocess
squashed = ImagePreprocessing(384, (0.5,) * 3, (0.5,) * 3, "bicubic", "squash")
before = peak_rss()
preprocess(open_picture(sys.argv[1], 4 * 384), squashed)
print(peak_rss() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode", "most", "options"),
    [
        ("grey.png", "I;16", 2.6, {}),
        ("colours.png", "RGB", 4.5, {"compress_level": 1}),
        ("colours.tif", "RGB", 4.8, {"compression": "tiff_lzw"}),
        ("photo.jpg", "RGB", 1.4, {}),
        ("progressive.jpg", "RGB", 7.2, {"progressive": True, "subsampling": 0}),
        ("cmyk.jpg", "CMYK", 8.2, {"progressive": True, "subsampling": 0}),
        ("palette.gif", "P", 1.6, {}),
        ("picture.webp", "RGB", 16.5, {"method": 0}),
    ],
)
def test_bytes_a_pixel(name: str, mode: str, most: float, options: dict[str, object], tmp_path: Path) -> None:
    """Of 51 million pixels, as docs/reliability.md has it; besides, 150 MB for what is converted at a time."""
    Image.new(mode, (8_000, 6_400), (1, 2, 3) if mode == "RGB" else 1).save(tmp_path / name, **options)
    command = [sys.executable, "-c", PEAK, str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, env=plain_environment(tmp_path), timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) < 8_000 * 6_400 * most + 150_000_000
