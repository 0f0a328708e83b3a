"""Regions of an answer drawn on its picture: outlines and labels that people tell apart and can read."""

from __future__ import annotations

import bisect
import math
import unicodedata
from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw, ImageFont

from .boxes import Box, Region
from .errors import ArgumentError
from .vision.image import ImageSource, open_image

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (0, 158, 115),  # bluish green
    (240, 228, 66),  # yellow
    (0, 114, 178),  # blue
    (213, 94, 0),  # vermilion
    (204, 121, 167),  # reddish purple
)
"""Colours that colour-blind people tell apart, RGB: M. Okabe and K. Ito, "Color Universal Design", 2008,
https://jfly.uni-koeln.de/color/, without black. Region ``n`` of an answer has colour ``n % len(PALETTE)``."""

_BLACK: Colour = (0, 0, 0)
_WHITE: Colour = (255, 255, 255)
_SMALLEST_TEXT = 10
"""Font size in pixels; smaller letters run together."""
_ELLIPSIS = "…"
# Pillow's font, an excerpt of Aileron, is ASCII and little more; of anything else it draws an empty frame.
_TYPEWRITTEN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"})


def draw_regions(image: ImageSource, regions: Sequence[Region]) -> Image.Image:
    """Draw boxes and their phrases on a copy of a picture.

    Lines and letters grow with the picture; letters do not shrink below what can be read. Each box has its region's
    colour and, where there is one, its region's phrase on a label: above the box, below it, inside, or further off
    where other labels are. A phrase wider than the picture is cut short, and one for which no room is left is left
    out. Pillow's font knows little beyond English: accents are left off, other scripts become question marks.

    Args:
        image: The picture that was asked about, as :func:`open_image` takes it; not modified.
        regions: In pixels of the upright picture, as :func:`parse_boxes` gives them.

    Returns:
        A new image of mode RGB, upright, of the picture's own size.

    Raises:
        ArgumentError: A box is empty or not within the picture.
        ImageError: There is no such picture, or it cannot be read.
        TypeError: ``image`` is no picture, path or bytes.
    """
    picture = open_image(image)
    shorter = min(picture.size)
    line = max(1, round(shorter / 200))
    font = ImageFont.load_default(max(_SMALLEST_TEXT, round(shorter / 28)))
    draw = ImageDraw.Draw(picture)
    parts = [
        (box, region.phrase, PALETTE[number % len(PALETTE)])
        for number, region in enumerate(regions)
        for box in region.boxes
    ]
    for box, _, colour in parts:
        _check_box(box, picture.size)
        _draw_outline(draw, box, colour, line)
    margin = line + 1
    _, ink_top, _, ink_bottom = font.getbbox("Ag")  # for all labels, so that they have one height
    height = round(ink_bottom - ink_top) + 2 * margin
    labels: list[Box] = []
    for box, phrase, colour in parts:  # after all outlines, so that none runs through a label
        text = _fitting(phrase or "", font, picture.width - 2 * margin)
        width = round(font.getlength(text)) + 2 * margin
        label = label_place(box, width, height, picture.size, labels) if text else None
        if label is not None:
            labels.append(label)
            draw.rectangle(_inclusive(label), fill=colour)
            draw.text((label.left + margin, label.top + margin - ink_top), text, contrasting(colour), font)
    return picture


def _check_box(box: Box, size: tuple[int, int]) -> None:
    width, height = size
    if not (0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height):
        raise ArgumentError(
            f"{box} is not within the picture of {width} x {height} pixels; "
            "expected boxes that were parsed with this picture's own width and height"
        )


def _draw_outline(draw: ImageDraw.ImageDraw, box: Box, colour: Colour, line: int) -> None:
    """Draw the box's outermost pixels in its colour, and inside them a thin line for places of the same colour."""
    shorter = min(box.right - box.left, box.bottom - box.top)
    hair = max(1, line // 3)
    if shorter > 4 * (line + hair):
        inside = Box(box.left + line, box.top + line, box.right - line, box.bottom - line)
        draw.rectangle(_inclusive(inside), outline=contrasting(colour), width=hair)
    # Pillow draws outlines wider than the box beyond it.
    if shorter > 2 * line:
        draw.rectangle(_inclusive(box), outline=colour, width=line)
    else:
        draw.rectangle(_inclusive(box), fill=colour)


def _fitting(phrase: str, font: Font, width: int) -> str:
    """A phrase on one line, limited to the font's characters and to ``width`` pixels."""
    letters = unicodedata.normalize("NFKD", phrase.translate(_TYPEWRITTEN))
    letters = "".join(letter for letter in letters if not unicodedata.combining(letter))
    text = " ".join(letters.split())
    text = "".join(letter if " " <= letter <= "~" else "?" for letter in text)
    text = text[: max(width, 0)]  # no letter is narrower than a pixel, and what is far too long is not worth measuring
    if font.getlength(text) <= width:
        return text
    lengths = range(1, len(text) + 1)
    fitting = bisect.bisect_right(lengths, width, key=lambda end: math.ceil(font.getlength(text[:end] + _ELLIPSIS)))
    return text[:fitting].rstrip() + _ELLIPSIS if fitting else ""


def label_place(box: Box, width: int, height: int, size: tuple[int, int], others: Sequence[Box]) -> Box | None:
    """Where a label of ``width`` by ``height`` pixels goes, within an area of ``size`` and off the other labels.

    Returns:
        The place, or None where there is no room left.
    """
    for place in _places(box, width, height, size):
        if place.top >= 0 and place.bottom <= size[1] and not any(_overlap(place, other) for other in others):
            return place
    return None


def _places(box: Box, width: int, height: int, size: tuple[int, int]) -> Iterator[Box]:
    """Possible places for a label, best first: above the box, below, in its corners, then anywhere lower and higher."""
    beside, inside = (box.top - height, box.bottom), (box.top, box.bottom - height)
    lower, higher = range(box.top, size[1], height), range(box.top - height, -1, -height)
    for tops in (beside, inside, lower, higher):
        for left in (box.left, box.right - width):
            left = max(0, min(left, size[0] - width))
            yield from (Box(left, top, left + width, top + height) for top in tops)


def _overlap(one: Box, other: Box) -> bool:
    return one.left < other.right and other.left < one.right and one.top < other.bottom and other.top < one.bottom


def _inclusive(box: Box) -> tuple[int, int, int, int]:
    """A box in Pillow's form for rectangles, which includes the last column and row."""
    return box.left, box.top, box.right - 1, box.bottom - 1


def contrasting(colour: Colour) -> Colour:
    """Black or white, whichever stands out more: relative luminance and contrast as WCAG 2.1 defines them."""
    channels = (level / 255 for level in colour)
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Contrast with black is (luminance + 0.05) / 0.05, with white 1.05 / (luminance + 0.05).
    return _BLACK if (luminance + 0.05) ** 2 > 0.05 * 1.05 else _WHITE
