"""Fits a picture of any shape to the vision encoder's square, and computes which part of the picture is visible."""

from __future__ import annotations

from PIL import Image

from ..bundle.manifest import ImagePreprocessing
from ..errors import ImageError
from .picture import Picture

View = tuple[float, float, float, float]
"""Left, top, right and bottom of a rectangle, in pixels of the upright picture; it may reach beyond the picture."""
MAX_SIDE = 65_535
"""Longest side of a picture that is padded, in pixels: JPEG's own limit."""
MAX_CROPPED = 1 << 26
"""Most pixels that a picture may have after resizing, before its middle is cut out: they take 268 MB."""
MAX_SIDE_SQUASHED = 131_072
"""Longest side of a picture that is squashed: with its rows resized to the square's width it takes 235 MB."""
BLOCK_PIXELS = 1 << 22
"""Number of pixels of a padded square that are in memory at a time."""


def fitted(image: Image.Image | Picture, preprocessing: ImagePreprocessing, name: str = "the picture") -> Image.Image:
    """Bring an RGB picture to the square of ``image_size`` pixels.

    Args:
        image: The picture; not modified.
        preprocessing: The preprocessing, whose ``fit`` selects the method.
        name: Name of the picture for messages.

    Raises:
        ImageError: The picture is so long and thin that it would take gigabytes, or minutes.
    """
    picture = image if isinstance(image, Picture) else Picture(image)
    size, color = preprocessing.image_size, preprocessing.pad_color
    if preprocessing.fit == "pad" and color is not None:
        return _padded(picture, size, color, name)
    return _squashed(picture, size, name) if preprocessing.fit == "squash" else _cropped(picture, size, name)


def view_of(width: int, height: int, preprocessing: ImagePreprocessing) -> View:
    """The rectangle of a picture that the encoder sees as its square.

    Args:
        width: Width of the upright picture, in pixels.
        height: Height of the upright picture, in pixels.
        preprocessing: The preprocessing, whose ``fit`` selects the method.

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


def _squashed(picture: Picture, size: int, name: str) -> Image.Image:
    _check_sides(picture, MAX_SIDE_SQUASHED, name)
    return _resized(_narrowed(picture, size), size, size)


def _padded(picture: Picture, size: int, color: tuple[int, int, int], name: str) -> Image.Image:
    """Centre the picture in a square and resize: the same pixels without the complete square in memory.

    Resizing works on each row separately, with integer results. Rows of one colour do not change: so only the picture's
    own rows are needed, some at a time.
    """
    width, height = picture.size
    side = max(width, height)
    _check_sides(picture, MAX_SIDE, name)
    left, top = (side - width) // 2, (side - height) // 2
    narrow = Image.new("RGB", (size, side), color)
    rows = max(1, BLOCK_PIXELS // side)
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        block = Image.new("RGB", (side, stop - start), color)
        block.paste(picture.rows(start, stop), (left, 0))
        narrow.paste(_resized(block, size, stop - start), (0, top + start))
    return _resized(narrow, size, size)


def _cropped(picture: Picture, size: int, name: str) -> Image.Image:
    """Resize by the shorter side, and cut out the middle."""
    width, height = _before_cropping(*picture.size, size)
    if width * height > MAX_CROPPED:
        before = "{} x {}".format(*picture.original_size)
        raise ImageError(
            f"{name} has {before} pixels, and would have {width:,} x {height:,} with its "
            f"shorter side at the {size} pixels that this model is shown: cut it first"
        )
    left, top = (width - size) // 2, (height - size) // 2
    return _resized(_narrowed(picture, width), width, height).crop((left, top, left + size, top + size))


def _narrowed(picture: Picture, width: int) -> Image.Image:
    """Resize the rows only, some at a time: a large picture is never in memory as RGB.

    This is a separate step because Pillow 13 begins with the columns of a tall picture, which changes the rounding.
    """
    narrow = Image.new("RGB", (width, picture.size[1]))
    for start, block in picture.blocks():
        narrow.paste(_resized(block, width, block.height), (0, start))
    return narrow


def _check_sides(picture: Picture, most: int, name: str) -> None:
    if max(picture.size) > most:
        width, height = picture.original_size
        raise ImageError(
            f"{name} has {width} x {height} pixels; expected at most {most:,} a side, because the model "
            "sees it as a square: scale it down or cut it first"
        )


def _before_cropping(width: int, height: int, size: int) -> tuple[int, int]:
    shorter, longer = sorted((width, height))
    length = int(size * longer / shorter)
    return (size, length) if width <= height else (length, size)


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BICUBIC)
