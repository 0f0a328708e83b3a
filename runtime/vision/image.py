"""Pictures to pixel_values: decodes them to upright RGB on white, then computes the vision encoder's input."""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from ..bundle.manifest import ImagePreprocessing
from ..errors import ArgumentError, ImageError, TinyGPTVError, reason_of
from .corrections import corrections_for
from .fit import fitted
from .heif import open_heif
from .metadata import without_metadata
from .picture import Picture
from .unreadable import damaged_format, described, is_heif, why_undecodable

ImageSource = str | os.PathLike[str] | bytes | Image.Image

MAX_PIXELS = 178_956_970
"""Largest picture read, width times height: where Pillow itself, at its default settings, stops decoding for fear of
a decompression bomb. Photos of 50 to 100 million pixels stay below it.

To prepare the largest takes up to 1.5 GB; to return it from ``open_image`` as RGB, up to 0.7 GB more while both are
there. docs/reliability.md has what was measured for each kind."""
MAX_WEBP_PIXELS = MAX_PIXELS // 2
"""Largest WebP picture, whose decoder holds it four times."""
LARGE_PIXELS = 50_000_000
"""A JPEG file with more pixels may be decoded at a fraction of its size: memory matters more here than exactness."""
DRAFT_OVERSIZE = 4
"""Minimum side of a large JPEG file that is decoded at a fraction, as a multiple of the encoder's square."""

_EXPECTED = "a picture such as JPEG, PNG, WebP or TIFF"

# Python's warning filters belong to the process: two threads must not save and restore them crosswise.
_FILTERS_LOCK = threading.Lock()


def open_image(source: ImageSource) -> Image.Image:
    """Read a picture as an upright, opaque RGB image.

    The EXIF orientation is applied, transparency is composited on white, more than 8 bits a channel are scaled down
    to 8, and of an animation the first frame is taken (of one passed as a PIL image, the frame it stands at).
    Grey pictures of 32-bit integers or floats do not say where white is: values within 0-255 are taken as they are,
    floats within 0-1 and integers within 0-65535 as those ranges, all others are stretched between their extremes.
    ICC profiles are ignored, as by the published code; no damaged metadata keep a picture from being read.

    Args:
        source: A path, the bytes of an image file, or a PIL image, which is neither modified nor closed.

    Returns:
        A new image of mode RGB that carries no metadata, so that it can be passed in again without being turned twice.

    Raises:
        ImageError: There is no such file, or it is no image, damaged, truncated or larger than ``MAX_PIXELS``.
        TypeError: ``source`` is none of the types above.
    """
    picture = open_picture(source)
    with _refusing(name_of(source)):
        return picture.whole()


def open_picture(source: ImageSource, smallest: int | None = None) -> Picture:
    """Decode a picture like :func:`open_image`, but convert it to RGB only when its rows are read.

    Args:
        source: See :func:`open_image`; a PIL image must not be changed before the picture has been used.
        smallest: If given, a JPEG file of more than ``LARGE_PIXELS`` may be decoded at 1/2, 1/4 or 1/8 of its size, as
            long as each side keeps at least this many pixels.

    Raises:
        ImageError: See :func:`open_image`.
        TypeError: See :func:`open_image`.
    """
    if isinstance(source, Image.Image):
        return _decode(source, name_of(source))
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), len(source), name_of(source), smallest)
    if not isinstance(source, str | os.PathLike) or not isinstance(path := os.fspath(source), str):
        raise TypeError(f"an image is a path, bytes or a PIL image, not {type(source).__name__}")
    name = name_of(path)
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # a pipe might never end
        raise ImageError(f"{name} is not a file; expected {_EXPECTED}: save it as one, or pipe it to tinygptv ask -")
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; only opening it is tried here)
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist; expected {_EXPECTED}: check the path") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder; expected {_EXPECTED}: name one file in it") from error
    except (OSError, ValueError) as error:  # ValueError: a path that no file system can hold
        why = reason_of(error) if isinstance(error, OSError) else "file names cannot be like this"
        raise ImageError(f"{name} cannot be opened ({why}); expected {_EXPECTED}") from error
    with file:
        return _read(file, os.fstat(file.fileno()).st_size, name, smallest)


def name_of(source: ImageSource) -> str:
    """The name of a picture for messages: its path or its type."""
    if isinstance(source, Image.Image):
        return "the PIL image"
    return "image bytes" if isinstance(source, bytes) else os.fspath(source) or "the empty path"


def preprocess(
    image: Image.Image | Picture, preprocessing: ImagePreprocessing, name: str = "the picture"
) -> npt.NDArray[np.float32]:
    """Fit an RGB image to the vision encoder's square (squashed, padded or cropped) and normalise it.

    The result equals that of torchvision's ``ToTensor`` and ``Normalize`` on the square, including rounding.

    Args:
        image: An image of mode RGB, or the result of :func:`open_picture`; not modified.
        preprocessing: The preprocessing in the bundle's manifest.
        name: Name of the picture for messages; see :func:`name_of`.

    Returns:
        pixel_values, float32 [1, 3, image_size, image_size], C-contiguous.

    Raises:
        ArgumentError: ``image`` is not RGB.
        ImageError: It is too long and thin, or takes more memory than there is.
    """
    if isinstance(image, Image.Image) and image.mode != "RGB":
        raise ArgumentError(f"image has mode {image.mode}; expected RGB: pass it through open_image first")
    with _refusing(name):
        square = np.asarray(fitted(image, preprocessing, name))  # uint8 [size, size, 3]
    size = preprocessing.image_size
    pixel_values = np.empty((1, 3, size, size), np.float32)
    np.divide(square.transpose(2, 0, 1), np.float32(255), out=pixel_values[0])
    pixel_values -= np.array(preprocessing.mean, np.float32).reshape(3, 1, 1)
    pixel_values /= np.array(preprocessing.std, np.float32).reshape(3, 1, 1)
    return pixel_values


def _read(file: BinaryIO, size: int, name: str, smallest: int | None) -> Picture:
    """Identify an open file by its header and decode it."""
    if size == 0:
        raise ImageError(f"{name} is empty (0 bytes); expected {_EXPECTED}")
    with _refusing(name), _without_warnings():
        start = file.read(12)
        file.seek(0)
        shown = without_metadata(file, size)

        def opened() -> Image.Image:
            shown.seek(0)
            try:
                return Image.open(shown)
            except UnidentifiedImageError:
                if not is_heif(start):
                    raise
                shown.seek(0)
                return open_heif(shown, name)

        try:
            image = opened()
        except UnidentifiedImageError as error:
            raise _unidentified(name, size, start) from error
        if image.format == "EPS":
            raise ImageError(f"{name} is PostScript, a program; expected {_EXPECTED}: convert it to one of these")
        _check_size(image, name)
        corrections = corrections_for(image, name, opened)
        whole_size = None
        if smallest is not None and image.width * image.height > LARGE_PIXELS:
            whole_size = image.size
            if image.draft(None, (smallest, smallest)) is None:  # not a JPEG file
                whole_size = None
        image.load()
        return Picture(image, _orientation(image), corrections, whole_size)


def _decode(image: Image.Image, name: str) -> Picture:
    """Decode an image that the caller opened, and whose pixels may already be loaded."""
    _check_size(image, name)
    with _refusing(name), _without_warnings():
        corrections = corrections_for(image, name, None)
        image.load()
        return Picture(image, _orientation(image), corrections)


def _check_size(image: Image.Image, name: str) -> None:
    pixels = image.width * image.height
    most = MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_PIXELS
    if pixels > most:
        raise _too_large(name, f"it has {image.width} x {image.height} = {pixels:,} pixels", most)
    if pixels == 0:
        raise ImageError(f"{name} has no pixels ({image.width} x {image.height}); expected {_EXPECTED}")


def _orientation(image: Image.Image) -> object:
    """The EXIF orientation tag of the file, or None."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data, which leave the picture itself readable
        return None


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn every exception about a picture into an ImageError, including Pillow's own failures on damaged files."""
    try:
        yield
    except TinyGPTVError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, f"it has {int(re.findall('[0-9]+', str(error))[0]):,} pixels") from error
    except MemoryError as error:
        raise ImageError(
            f"{name} takes more memory than there is; expected a smaller one: scale it down, or close other programs"
        ) from error
    except Exception as error:
        raise _undecodable(name, error) from error


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress Pillow's warnings: ``MAX_PIXELS`` limits the size here, and metadata do not matter."""
    with _FILTERS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _unidentified(name: str, size: int, start: bytes) -> ImageError:
    if format := damaged_format(start):
        return ImageError(
            f"{name} ({size:,} bytes) is a damaged {format}, or one of a kind that tinygptv does not read; expected "
            f"{_EXPECTED}, undamaged: copy it again, or save it as PNG or JPEG"
        )
    return ImageError(
        f"{name} ({size:,} bytes) is {described(start)}; expected {_EXPECTED}: convert it to one of these"
    )


def _too_large(name: str, found: str, most: int = MAX_PIXELS) -> ImageError:
    advice = "scale it down first" if most == MAX_PIXELS else "scale it down first, or save it as JPEG or PNG"
    return ImageError(f"{name} is too large ({found}); expected at most {most:,} pixels: {advice}")


def _undecodable(name: str, error: Exception) -> ImageError:
    return ImageError(
        f"{name} cannot be decoded ({why_undecodable(error)}); expected {_EXPECTED}, undamaged: copy it again, or save "
        "it as PNG or JPEG"
    )
