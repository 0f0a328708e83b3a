"""A decoded picture that is converted to upright RGB on white some rows at a time, without a second complete copy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from .corrections import Corrections

BLOCK_PIXELS = 1 << 22
"""Number of pixels converted at a time: 16 MB as RGB, 34 MB as floats."""

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


class Picture:
    """An upright, opaque RGB view of a decoded image. The image is not modified; not for concurrent use."""

    def __init__(
        self,
        image: Image.Image,
        orientation: object = 1,
        corrections: Corrections | None = None,
        original_size: tuple[int, int] | None = None,
    ) -> None:
        """
        Args:
            image: A loaded image of any mode.
            orientation: The EXIF orientation; all values but 2 to 8 mean upright.
            corrections: Corrections of values that Pillow misinterprets.
            original_size: Width and height as stored, if ``image`` is smaller.
        """
        self._image = image
        turn = orientation if isinstance(orientation, int) else 1
        self._turn = _UPRIGHT.get(turn)
        self._swaps = turn in (5, 6, 7, 8)
        self._backwards = turn in (3, 4, 7, 8)
        self._corrections = corrections or Corrections()
        self._levels = self._black_and_white() if _is_deep(image) else (0.0, 255.0)
        self.size = self._upright(image.size)
        """Width and height of the result of :meth:`rows`, in pixels."""
        self.original_size = self._upright(original_size or image.size)
        """Width and height of the upright picture in its file: larger if it was decoded at a fraction of its size."""

    def rows(self, start: int, stop: int) -> Image.Image:
        """These rows of the upright picture, as a new image of mode RGB."""
        if self._backwards:
            start, stop = self.size[1] - stop, self.size[1] - start
        width, height = self._image.size
        box = (start, 0, stop, height) if self._swaps else (0, start, width, stop)
        rgb = self._to_rgb(box)
        return rgb if self._turn is None else rgb.transpose(self._turn)

    def blocks(self) -> Iterator[tuple[int, Image.Image]]:
        """The complete picture in blocks of rows, each with the index of its first row."""
        width, height = self.size
        rows = max(1, BLOCK_PIXELS // width)
        for start in range(0, height, rows):
            yield start, self.rows(start, min(start + rows, height))

    def whole(self) -> Image.Image:
        """The complete picture, as a new image of mode RGB without metadata."""
        if self.size[0] * self.size[1] <= BLOCK_PIXELS:
            whole = self.rows(0, self.size[1])
            whole.info = {}
            return whole
        whole = Image.new("RGB", self.size)
        for start, block in self.blocks():
            whole.paste(block, (0, start))
        return whole

    def _upright(self, size: tuple[int, int]) -> tuple[int, int]:
        return (size[1], size[0]) if self._swaps else size

    def _to_rgb(self, box: tuple[int, int, int, int]) -> Image.Image:
        """Convert a part of the stored image to RGB, with transparency composited on white."""
        image = self._image.crop(box)
        if self._corrections.palette is not None:
            image.putpalette(self._corrections.palette)
        if self._corrections.transparency is not None:
            image.info["transparency"] = self._corrections.transparency
        if _is_deep(image):
            return self._deep_to_rgb(image)
        if not image.has_transparency_data:
            return image if image.mode == "RGB" else image.convert("RGB")
        if image.mode == "La":  # Pillow converts premultiplied grey only to grey with alpha
            image = image.convert("LA")
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if self._corrections.opaque is not None:
            alpha = ImageChops.lighter(alpha, self._corrections.opaque.crop(box))
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=alpha)
        return white

    def _deep_to_rgb(self, image: Image.Image) -> Image.Image:
        """Convert grey values of 16 or 32 bits or floats; Pillow's own conversion would clip at 255."""
        values = self._corrections.values(image)
        transparent = None
        if "transparency" in image.info:  # a PNG's one transparent level
            transparent = values == image.info["transparency"]
        low, high = self._levels
        values = _finite(values)
        values -= low
        if high > low:
            values *= 255
            values /= high - low
        levels = np.rint(values, out=values).astype(np.uint8)
        if self._corrections.min_is_white:
            levels = 255 - levels
        if transparent is not None:
            levels[transparent] = 255
        return Image.fromarray(levels).convert("RGB")

    def _black_and_white(self) -> tuple[float, float]:
        """The values of black and white in a deep image."""
        if self._corrections.white is not None:
            return 0.0, self._corrections.white
        if self._image.mode.startswith("I;16"):
            return 0.0, 65535.0
        width, height = self._image.size
        rows = max(1, BLOCK_PIXELS // width)
        low, high = np.inf, -np.inf
        for start in range(0, height, rows):
            part = self._image.crop((0, start, width, min(start + rows, height)))
            values = _finite(self._corrections.values(part))
            low, high = min(low, values.min()), max(high, values.max())
        if low >= 0:
            for white in (1, 255) if self._image.mode == "F" else (255, 65535):
                if high <= white:
                    return 0.0, float(white)
        return float(low), float(high)


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _finite(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    finite: npt.NDArray[np.float64] = np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return finite
