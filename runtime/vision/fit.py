"""A picture of any shape brought to the square that the vision encoder takes, and what part of the picture that is."""

from __future__ import annotations

from PIL import Image

from ..bundle.manifest import ImagePreprocessing
from ..errors import ImageError

View = tuple[float, float, float, float]
"""Left, top, right and bottom of a rectangle, in pixels of the upright picture; it may reach beyond the picture."""
MAX_SIDE = 65_535
"""Longest side of a picture that is padded, in pixels: JPEG's own limit."""
MAX_CROPPED = 1 << 26
"""Most pixels that a picture may have after resizing, before its middle is cut out: they take 268 MB."""
BLOCK_PIXELS = 1 << 22
"""Of a padded square, as many as are there at a time."""


def fitted(image: Image.Image, preprocessing: ImagePreprocessing, name: str = "the picture") -> Image.Image:
    """Bring an RGB picture to the square of ``image_size`` pixels.

    Args:
        image: Not modified.
        preprocessing: Whose ``fit`` says how.
        name: What messages call the picture.

    Raises:
        ImageError: The picture is so long and thin that it would take gigabytes, or minutes.
    """
    size, color = preprocessing.image_size, preprocessing.pad_color
    if preprocessing.fit == "squash":
        return _resized(image, size, size)
    return _cropped(image, size, name) if color is None else _padded(image, size, color, name)


def view_of(width: int, height: int, preprocessing: ImagePreprocessing) -> View:
    """The rectangle of a picture that the encoder sees as its square.

    Args:
        width: Of the upright picture, in pixels.
        height: Likewise.
        preprocessing: Whose ``fit`` says how the picture is brought to the square.

    Returns:
        For ``squash`` the whole picture; for ``pad`` a square around it, which begins at negative offsets; for
        ``crop`` its middle.
    """
    if preprocessing.fit == "squash":
        return 0.0, 0.0, float(width), float(height)
    if preprocessing.fit == "pad":
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        return float(-left), float(-top), float(side - left), float(side - top)
    size = preprocessing.image_size
    resized_width, resized_height = _before_cropping(width, height, size)
    left, top = (resized_width - size) // 2, (resized_height - size) // 2
    across, down = width / resized_width, height / resized_height
    return left * across, top * down, (left + size) * across, (top + size) * down


def _padded(image: Image.Image, size: int, color: tuple[int, int, int], name: str) -> Image.Image:
    """Pasted in the middle of a square and resized: the same pixels without the whole square in memory.

    Pillow resizes rows first, each by itself, to whole levels, and columns then. Rows of one colour stay as they are:
    so the picture's own rows are enough, and of them some at a time.
    """
    width, height = image.size
    side = max(width, height)
    if side > MAX_SIDE:
        raise ImageError(
            f"{name} has {width} x {height} pixels; expected at most {MAX_SIDE:,} a side, since this model is "
            "shown it on a square: scale it down or cut it first"
        )
    left, top = (side - width) // 2, (side - height) // 2
    narrow = Image.new("RGB", (size, side), color)
    rows = max(1, BLOCK_PIXELS // side)
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        block = Image.new("RGB", (side, stop - start), color)
        block.paste(image.crop((0, start, width, stop)), (left, 0))
        narrow.paste(_resized(block, size, stop - start), (0, top + start))
    return _resized(narrow, size, size)


def _cropped(image: Image.Image, size: int, name: str) -> Image.Image:
    """Resized by its shorter side, and the middle cut out."""
    width, height = _before_cropping(*image.size, size)
    if width * height > MAX_CROPPED:
        raise ImageError(
            f"{name} has {image.width} x {image.height} pixels, and would have {width:,} x {height:,} with its "
            f"shorter side at the {size} pixels that this model is shown: cut it first"
        )
    left, top = (width - size) // 2, (height - size) // 2
    return _resized(image, width, height).crop((left, top, left + size, top + size))


def _before_cropping(width: int, height: int, size: int) -> tuple[int, int]:
    shorter, longer = sorted((width, height))
    length = int(size * longer / shorter)
    return (size, length) if width <= height else (length, size)


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BICUBIC)
