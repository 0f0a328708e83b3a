"""Pictures to pixel_values: what Pillow reads becomes upright RGB on white, then the vision encoder's input."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from ..bundle.manifest import ImagePreprocessing
from ..errors import ArgumentError, ImageError
from .fit import fitted

ImageSource = str | os.PathLike[str] | bytes | Image.Image

MAX_PIXELS = 178_956_970
"""Largest picture read, width times height: where Pillow itself, at its default settings, stops decoding for fear of
a decompression bomb. Photos of 50 to 100 million pixels stay below it; an RGB picture of this size takes 716 MB."""

_EXPECTED = "a picture such as JPEG, PNG, WebP or TIFF"

# EXIF tag 274 names the turn that was made when the picture was taken; the value undoes it (EXIF 2.3, section 4.6.4).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Python's warning filters belong to the process: two threads must not save and restore them crosswise.
_FILTERS_LOCK = threading.Lock()


def open_image(source: ImageSource) -> Image.Image:
    """Read a picture as an upright, opaque RGB image.

    The EXIF orientation is applied, transparency is composited on white, more than 8 bits a channel are scaled down
    to 8, and of an animation the first frame is taken (of one passed as a PIL image, the frame it stands at).
    Grey pictures of 32-bit integers or floats do not say where white is: values within 0-255 are taken as they are,
    floats within 0-1 and integers within 0-65535 as those ranges, all others are stretched between their extremes.

    Args:
        source: A path, the bytes of an image file, or a PIL image, which is neither modified nor closed.

    Returns:
        A new image of mode RGB that carries no metadata, so that it can be passed in again without being turned twice.

    Raises:
        ImageError: There is no such file, or it is no image, damaged, truncated or larger than ``MAX_PIXELS``.
        TypeError: ``source`` is none of the types above.
    """
    if isinstance(source, Image.Image):
        return _decode(source, name_of(source))
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), len(source), name_of(source))
    if not isinstance(source, str | os.PathLike) or not isinstance(path := os.fspath(source), str):
        raise TypeError(f"an image is a path, bytes or a PIL image, not {type(source).__name__}")
    name = name_of(path)
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # a pipe might never end
        raise ImageError(f"{name} is no file; expected {_EXPECTED}: save it as one, or pipe it to tinygptv ask -")
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; only opening it is tried here)
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist; expected {_EXPECTED}: check the path") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder; expected {_EXPECTED}: name one file in it") from error
    except (OSError, ValueError) as error:  # ValueError: a path that no file system can hold
        raise ImageError(f"{name!r} cannot be opened ({error}); expected {_EXPECTED}") from error
    with file:
        return _read(file, os.fstat(file.fileno()).st_size, name)


def name_of(source: ImageSource) -> str:
    """What messages call a picture: its path, or what it is."""
    if isinstance(source, Image.Image):
        return "the PIL image"
    return "image bytes" if isinstance(source, bytes) else os.fspath(source) or "the empty path"


def preprocess(
    image: Image.Image, preprocessing: ImagePreprocessing, name: str = "the picture"
) -> npt.NDArray[np.float32]:
    """Bring an RGB image to the vision encoder's square (squashed, padded or cropped) and normalise it.

    Numbers are those of torchvision's ``ToTensor`` and ``Normalize`` on the square, rounding included.

    Args:
        image: Mode RGB, of any size; not modified.
        preprocessing: From the bundle's manifest.
        name: What messages call the picture; see :func:`name_of`.

    Returns:
        pixel_values, float32 [1, 3, image_size, image_size], C-contiguous.

    Raises:
        ArgumentError: ``image`` is not RGB.
        ImageError: It is too long and thin to be padded or cropped.
    """
    if image.mode != "RGB":
        raise ArgumentError(f"image has mode {image.mode}; expected RGB: pass it through open_image first")
    square = np.asarray(fitted(image, preprocessing, name))  # uint8 [size, size, 3]
    size = preprocessing.image_size
    pixel_values = np.empty((1, 3, size, size), np.float32)
    np.divide(square.transpose(2, 0, 1), np.float32(255), out=pixel_values[0])
    pixel_values -= np.array(preprocessing.mean, np.float32).reshape(3, 1, 1)
    pixel_values /= np.array(preprocessing.std, np.float32).reshape(3, 1, 1)
    return pixel_values


def _read(file: BinaryIO, size: int, name: str) -> Image.Image:
    """Identify an open file by its header and decode it."""
    if size == 0:
        raise ImageError(f"{name} is empty (0 bytes); expected {_EXPECTED}")
    try:
        with _no_bomb_warnings():
            image = Image.open(file)
    except UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(12)
        raise ImageError(
            f"{name} ({size:,} bytes, starting {start!r}) is not an image that Pillow reads; "
            f"expected {_EXPECTED}: convert it to one of these"
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error)) from error
    except Exception as error:  # Pillow's plugins let through whatever a damaged header makes them stumble over
        raise _undecodable(name, error) from error
    if image.format == "EPS":
        raise ImageError(f"{name} is PostScript, a program; expected {_EXPECTED}: convert it to one of these")
    return _decode(image, name)


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Load the pixels of an image whose header was read, and bring them to upright RGB."""
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name, f"it has {image.width} x {image.height} = {image.width * image.height:,} pixels")
    if image.width * image.height == 0:
        raise ImageError(f"{name} has no pixels ({image.width} x {image.height}); expected {_EXPECTED}")
    try:
        with _no_bomb_warnings():
            image.load()
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error)) from error
    except Exception as error:  # as above, for damaged pixels
        raise _undecodable(name, error) from error
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _to_rgb(image)
    if turn is not None:
        rgb = rgb.transpose(turn)
    rgb.info = {}
    return rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB image from any of Pillow's modes, transparency composited on white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # Pillow converts premultiplied grey only to grey with alpha
        image = image.convert("LA")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or in floats, as mode L; Pillow's own conversion would clip at 255."""
    values = np.array(image, np.float64)  # [height, width]
    transparent = None
    if "transparency" in image.info:  # a PNG's one transparent level
        transparent = values == image.info["transparency"]
    np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = _range(image.mode, float(values.min()), float(values.max()))
    values -= low
    if high > low:
        values *= 255
        values /= high - low
    levels = np.rint(values, out=values).astype(np.uint8)
    if transparent is not None:
        levels[transparent] = 255
    return Image.fromarray(levels)


def _range(mode: str, low: float, high: float) -> tuple[float, float]:
    """Which values are black and white in a grey image whose extremes are ``low`` and ``high``."""
    if mode.startswith("I;16"):
        return 0, 65535
    if low < 0:
        return low, high
    for white in (1, 255) if mode == "F" else (255, 65535):
        if high <= white:
            return 0, white
    return low, high


def _orientation(image: Image.Image) -> Any:
    """The EXIF tag as the file has it, or None."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data, which leave the picture itself readable
        return None


@contextlib.contextmanager
def _no_bomb_warnings() -> Iterator[None]:
    """Keep back Pillow's warning about large pictures, since ``MAX_PIXELS`` is the limit here."""
    with _FILTERS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _too_large(name: str, found: str) -> ImageError:
    return ImageError(f"{name} is too large ({found}); expected at most {MAX_PIXELS:,} pixels: scale it down first")


def _undecodable(name: str, error: Exception) -> ImageError:
    found = f"{type(error).__name__}: {error}".replace("\n", " ")
    return ImageError(f"{name} cannot be decoded ({found}); expected a whole picture: copy or save it again")
