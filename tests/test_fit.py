"""Squashed, padded or cropped: pixels as the published code has them, and what part of a picture was seen."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import plain_environment
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.bundle.manifest import ImagePreprocessing
from tinygptv.runtime.errors import ImageError
from tinygptv.runtime.vision import fit
from tinygptv.runtime.vision.fit import MAX_SIDE, fitted, view_of
from tinygptv.runtime.vision.image import open_image, preprocess
from transformers import CLIPImageProcessor, SiglipImageProcessor

SIBLINGS = Path(__file__).parent / "golden" / "siblings"
CLIP = ImagePreprocessing(
    image_size=56,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    resample="bicubic",
    fit="crop",
)
SIGLIP = ImagePreprocessing(62, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "squash")
PADDED_CLIP = replace(CLIP, fit="pad", pad_color=(122, 116, 104))
PADDED_SIGLIP = replace(SIGLIP, fit="pad", pad_color=(127, 127, 127))
ALL = (CLIP, SIGLIP, PADDED_CLIP, PADDED_SIGLIP)
SHAPES = [
    *((1, 1), (1, 1000), (1000, 1), (2, 3), (3, 2), (5, 5), (7, 400), (400, 7)),
    *((55, 57), (57, 55), (56, 56), (56, 57), (62, 61), (62, 62), (63, 62), (99, 100), (100, 99)),
    *((640, 427), (427, 640), (333, 1000), (1001, 334)),
]
"""(width, height): long ones, odd and even ones, smaller than the square, just around it, larger."""


def picture(width: int, height: int) -> Image.Image:
    """Noise, where every mistake shows."""
    levels = np.random.default_rng(width * 10_007 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.fixture
def _rows_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow before 13, which the published code was written for; later ones begin with a tall picture's columns."""
    resize = Image.Image.resize

    def by_rows(image: Image.Image, size: tuple[int, int], resample: int, **more: object) -> Image.Image:
        return resize(resize(image, (size[0], image.height), resample), size, resample)

    monkeypatch.setattr(Image.Image, "resize", by_rows)


def test_pixels_do_not_depend_on_pillow_s_version() -> None:
    """A tall picture is as Pillow 10.4 resized it."""
    square = fitted(picture(333, 1000), SIGLIP)
    assert hashlib.sha256(square.tobytes()).hexdigest()[:16] == "c6e9dc68ee3656cb"


def on_a_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """The whole padded square, as the published code makes it."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def levels_of(pixel_values: np.ndarray, preprocessing: ImagePreprocessing) -> np.ndarray:
    """The 0 to 255 that pixel_values were made of, uint8 [size, size, 3]."""
    levels = (pixel_values[0].transpose(1, 2, 0) * preprocessing.std + np.array(preprocessing.mean)) * 255
    assert np.abs(levels - np.rint(levels)).max() < 1e-3
    return np.rint(levels).astype(np.uint8)


@pytest.mark.parametrize(
    ("model", "name", "preprocessing"),
    [
        ("llava-phi", "pixel_values", PADDED_CLIP),
        ("llava-phi", "pixel_values_demo", CLIP),
        ("mipha", "pixel_values", PADDED_SIGLIP),
        ("mipha", "pixel_values_demo", SIGLIP),
        ("tinyllava", "pixel_values", SIGLIP),
        ("bunny", "pixel_values", PADDED_SIGLIP),
    ],
)
def test_what_the_published_code_computed(model: str, name: str, preprocessing: ImagePreprocessing) -> None:
    """To the last bit; ``demo`` is what those models' demos do, which leave the padding out."""
    with np.load(SIBLINGS / model / "expected.npz") as arrays:
        expected = arrays[name]
    found = preprocess(open_image(SIBLINGS / model / "picture.png"), preprocessing)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(PADDED_CLIP, pad_color=(0, 0, 0)),
        replace(PADDED_CLIP, pad_color=(127, 127, 127)),
        replace(PADDED_CLIP, fit="squash", pad_color=None),
        CLIP,
    ],
    ids=["black", "grey", "squash", "crop"],
)
def test_mistakes_would_be_seen(wrong: ImagePreprocessing) -> None:
    with np.load(SIBLINGS / "llava-phi" / "expected.npz") as arrays:
        expected = arrays["pixel_values"]
    found = preprocess(open_image(SIBLINGS / "llava-phi" / "picture.png"), wrong)
    assert np.abs(found - expected).max() > 5 / 255 / max(PADDED_CLIP.std)


@pytest.mark.usefixtures("_rows_first")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("preprocessing", ALL, ids=lambda one: f"{one.fit}-{one.image_size}")
def test_the_processors_of_transformers_give_the_same(
    preprocessing: ImagePreprocessing, shape: tuple[int, int]
) -> None:
    image = picture(*shape)
    size, (mean, std) = preprocessing.image_size, (preprocessing.mean, preprocessing.std)
    shown = image if preprocessing.pad_color is None else on_a_square(image, preprocessing.pad_color)
    if preprocessing.image_size == CLIP.image_size:
        processor = CLIPImageProcessor(
            size={"shortest_edge": size}, crop_size=size, image_mean=mean, image_std=std, resample=3
        )
    else:
        processor = SiglipImageProcessor(
            size={"height": size, "width": size}, image_mean=mean, image_std=std, resample=3
        )
    expected = processor(shown, return_tensors="np", input_data_format="channels_last").pixel_values
    found = preprocess(image, preprocessing)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(levels_of(found, preprocessing), levels_of(expected, preprocessing))


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    size=st.integers(1, 100),
    color=st.tuples(*[st.integers(0, 255)] * 3),
    block=st.integers(1, 5000),
)
def test_padding_row_by_row_is_padding(
    width: int, height: int, size: int, color: tuple[int, int, int], block: int
) -> None:
    """However many rows are resized at a time."""
    image = picture(width, height)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "BLOCK_PIXELS", block)
        found = fitted(image, replace(PADDED_CLIP, image_size=size, pad_color=color))
    whole = on_a_square(image, color).resize((size, size), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(whole))


@pytest.mark.parametrize("color", [(0, 255, 1), (122, 116, 104)])
@pytest.mark.parametrize("shape", [(MAX_SIDE, 1), (MAX_SIDE - 1, 3)])
def test_the_longest_picture_s_padding_keeps_its_colour(shape: tuple[int, int], color: tuple[int, int, int]) -> None:
    """A row of one colour is not changed by resizing it, however many weights are summed up."""
    square = np.asarray(fitted(Image.new("RGB", shape, color), replace(PADDED_CLIP, image_size=336, pad_color=color)))
    assert square.shape == (336, 336, 3)
    assert (square == np.array(color, np.uint8)).all()
    row = Image.new("RGB", (shape[0], 1), color).resize((336, 1), Image.Resampling.BICUBIC)
    assert (np.asarray(row) == np.array(color, np.uint8)).all()


def test_panoramas_take_little_memory(tmp_path: Path) -> None:
    """Their whole squares would take 3.6 and 1 GB."""
    script = """
from PIL import Image
from tinygptv.runtime.bundle.manifest import ImagePreprocessing
from tinygptv.runtime.system.process import peak_rss
from tinygptv.runtime.vision.fit import fitted
padded = ImagePreprocessing(384, (0.5,) * 3, (0.5,) * 3, "bicubic", "pad", (127, 127, 127))
before = peak_rss()
for size in ((30_000, 10), (10, 16_000)):
    assert fitted(Image.new("RGB", size), padded).size == (384, 384)
print(peak_rss() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env=plain_environment(tmp_path), timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) < 150_000_000


@pytest.mark.parametrize(
    ("size", "preprocessing", "named"),
    [
        ((MAX_SIDE + 1, 1), PADDED_CLIP, "65536 x 1 pixels; expected at most 65,535 a side"),
        ((1, MAX_SIDE + 1), PADDED_CLIP, "1 x 65536 pixels"),
        ((1, 60_000), CLIP, "would have 56 x 3,360,000 with its shorter side at the 56 pixels"),
        ((60_000, 1), CLIP, "would have 3,360,000 x 56"),
    ],
)
def test_pictures_that_would_take_too_much(
    size: tuple[int, int], preprocessing: ImagePreprocessing, named: str
) -> None:
    with pytest.raises(ImageError) as caught:
        preprocess(Image.new("RGB", size), preprocessing)
    assert named in str(caught.value)
    assert "cut it first" in str(caught.value)
    preprocess(Image.new("RGB", size), replace(preprocessing, fit="squash", pad_color=None))


# What was seen


def test_view_of() -> None:
    assert view_of(640, 427, SIGLIP) == (0, 0, 640, 427)
    assert view_of(640, 427, PADDED_CLIP) == (0, -106, 640, 534)
    assert view_of(427, 640, PADDED_CLIP) == (-106, 0, 534, 640)
    assert view_of(50, 50, PADDED_CLIP) == (0, 0, 50, 50)
    # 112 x 56 after resizing, of which columns 28 to 84 remain.
    assert view_of(200, 100, CLIP) == (50, 0, 150, 100)
    assert view_of(100, 200, CLIP) == (0, 50, 100, 150)
    # int(56 * 101 / 100) is 56: nothing is cut off.
    assert view_of(101, 100, CLIP) == (0, 0, 101, 100)


@settings(deadline=None, max_examples=60)
@given(width=st.integers(60, 300), height=st.integers(60, 300), x=st.floats(0, 1), y=st.floats(0, 1))
def test_the_view_is_where_things_are_seen(width: int, height: int, x: float, y: float) -> None:
    """A bright square of 20 pixels, found again in what the encoder sees."""
    left, top = round(x * (width - 20)), round(y * (height - 20))
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), (left, top, left + 20, top + 20))
    for preprocessing in ALL:
        size, view = preprocessing.image_size, view_of(width, height, preprocessing)
        if not (view[0] <= left and left + 20 <= view[2] and view[1] <= top and top + 20 <= view[3]):
            continue  # cropped
        black = replace(preprocessing, pad_color=(0, 0, 0)) if preprocessing.pad_color else preprocessing
        seen = np.asarray(fitted(image, black))[:, :, 0].astype(float)
        found_y, found_x = (np.arange(size) + 0.5) @ seen.sum(axis=1), (np.arange(size) + 0.5) @ seen.sum(axis=0)
        across, down = (view[2] - view[0]) / size, (view[3] - view[1]) / size
        assert view[0] + found_x / seen.sum() * across == pytest.approx(left + 10, abs=0.5 * across)
        assert view[1] + found_y / seen.sum() * down == pytest.approx(top + 10, abs=0.5 * down)


def test_an_encoded_image_knows_what_was_seen(speaking_model: TinyGPTV, photo: Path) -> None:
    image = speaking_model.encode_image(photo)
    assert image.view == (0, 0, image.width, image.height)
