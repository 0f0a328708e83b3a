"""The meaning of stored values that Pillow decodes without saying what they mean, or wrongly.

Each correction checks how Pillow is about to unpack the values, so that it no longer applies once Pillow is fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, TiffTags

from ..errors import ImageError

_TAGS = {tag.name: number for number, tag in TiffTags.TAGS_V2.items()}
_NATIVE = {"F;32F": "F;32NF", "F;32BF": "F;32NF", "I;32S": "I;32NS", "I;32BS": "I;32NS"}
_NATIVE |= {"I;16S": "I;16NS", "I;16BS": "I;16NS"}


@dataclass(frozen=True)
class Corrections:
    """Corrections for one image's values; a plain image needs none."""

    white: float | None = None
    """The value of white in a deep grey image."""
    min_is_white: bool = False
    """Whether 0 is white."""
    unsigned: bool = False
    """Whether 32-bit integers are unsigned, which Pillow stores as signed ones."""
    palette: bytes | None = None
    """RGB palette that replaces the image's."""
    transparency: int | tuple[int, int, int] | None = None
    """The single transparent level or colour, which replaces the image's."""
    opaque: Image.Image | None = None
    """Mask of mode L: 255 where the 16-bit colour is not the transparent one, even if its high bytes are."""

    def values(self, image: Image.Image) -> npt.NDArray[np.float64]:
        """The values of a deep grey image, as a new float64 array [height, width]."""
        values = np.asarray(image)
        return np.array(values.view(np.uint32) if self.unsigned else values, np.float64)


def corrections_for(image: Image.Image, name: str, reopened: Callable[[], Image.Image] | None) -> Corrections:
    """Find the corrections for an image, before it is loaded if that is still possible.

    Args:
        image: An image opened by Pillow. If ``reopened`` is given, the way in which it unpacks values may be changed.
        name: Name of the picture for messages.
        reopened: Opens the same file again; None if the image belongs to the caller.

    Raises:
        ImageError: Pillow would return wrong pixels that cannot be corrected.
    """
    if not isinstance(image, ImageFile.ImageFile):
        return Corrections()
    if image.format == "PNG" and "transparency" in image.info:
        return _of_png(image, reopened)
    if hasattr(image, "tag_v2"):
        return _of_tiff(image, name, reopened is not None)
    if image.format == "BMP":
        _check_bmp(image, name)
    if image.format == "PPM" and image.mode == "I":  # which Pillow has scaled to 16 bits
        return Corrections(white=65535)
    return Corrections()


def _rawmode(image: ImageFile.ImageFile) -> str:
    """The raw mode from which values will be unpacked; empty if they have been."""
    if not image.tile:
        return ""
    arguments = image.tile[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _of_png(image: ImageFile.ImageFile, reopened: Callable[[], Image.Image] | None) -> Corrections:
    """The single transparent level or colour of a PNG, which is stored at the file's depth."""
    rawmode, stored = _rawmode(image), image.info["transparency"]
    most = {"L;2": 3, "L;4": 15}.get(rawmode)
    if most is not None and stored <= most:
        return Corrections(transparency=stored * 255 // most)
    if rawmode != "RGB;16B":
        return Corrections()
    high = tuple(value >> 8 for value in stored)
    return Corrections(transparency=high, opaque=_other_low_bytes(reopened(), stored) if reopened else None)


def _other_low_bytes(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Mask of mode L: 255 where the low bytes of 16-bit RGB, which Pillow drops, differ from those of a colour."""
    assert isinstance(image, ImageFile.ImageFile)
    _unpack_as(image, "RGB;16L")  # which takes the second byte of two
    image.load()
    image.info["transparency"] = tuple(value & 255 for value in colour)
    other = Image.new("L", image.size)
    for top in range(0, image.height, 64):  # the whole as RGBA would be another copy of a large picture
        rows = image.crop((0, top, image.width, min(top + 64, image.height)))
        other.paste(rows.convert("RGBA").getchannel("A"), (0, top))
    return other


def _unpack_as(image: ImageFile.ImageFile, rawmode: str) -> None:
    tiles: list[Any] = list(image.tile)
    (tile,) = tiles
    arguments = (rawmode, *tile[3][1:]) if isinstance(tile[3], tuple) else rawmode
    parts = (*tile[:3], arguments)
    tiles[0] = type(tile)(*parts) if hasattr(tile, "_fields") else parts  # a plain tuple before Pillow 11
    image.tile = tiles


def _check_bmp(image: ImageFile.ImageFile, name: str) -> None:
    """Refuse 16-bit pixels with an alpha bit, which Pillow ignores."""
    if image.fp is None or not image.tile:
        return
    image.fp.seek(14)
    header = image.fp.read(56)
    if len(header) == 56 and header[0] >= 56 and header[14:18] == b"\x10\0\x03\0" and any(header[52:56]):
        raise ImageError(
            f"{name} is a BMP of 16 bits a pixel with transparency, which is not read; expected 24 or 32 bits: save it "
            "as such a BMP, or as PNG"
        )


def _of_tiff(image: ImageFile.ImageFile, name: str, ours: bool) -> Corrections:
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    rawmode = _rawmode(image)
    bits = tags.get(_TAGS["BitsPerSample"], (1,))
    photometric = tags.get(_TAGS["PhotometricInterpretation"], 0)
    packed = tags.get(_TAGS["Compression"], 1) != 1
    if tags.get(_TAGS["PlanarConfiguration"], 1) == 2 and len(bits) > 1:
        mixed_up = bits[0] != 8 and not packed
        if mixed_up or photometric in (0, 1, 3, 8):
            raise ImageError(
                f"{name} is a TIFF with separate planes of a kind that is not read right ({bits[0]} bits, photometric "
                f"interpretation {photometric}); expected pixels in one plane: save it as such a TIFF, or as PNG"
            )
    if image.mode in ("P", "PA"):
        colours = tags[_TAGS["ColorMap"]]
        if max(colours) > 255:  # as the format has it: Pillow takes their high bytes
            return Corrections()
        return Corrections(palette=np.array(colours, np.uint8).reshape(3, -1).T.tobytes())
    if packed and ours and rawmode in _NATIVE:  # libtiff has put them into the machine's byte order
        _unpack_as(image, _NATIVE[rawmode])
    plain = rawmode in ("", "I;16", "I;16N")
    return Corrections(
        white=4095 if bits == (12,) and image.mode == "I;16" else None,
        min_is_white=image.mode == "I;16" and photometric == 0 and plain,
        unsigned=image.mode == "I" and bits == (32,) and tags.get(_TAGS["SampleFormat"], (1,)) == (1,),
    )
