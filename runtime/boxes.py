"""Boxes in answers and questions: the published text form, and pixels of the picture it speaks of.

A box is ``{<x1><y1><x2><y2>}``, integers from 0 to 100 of the width and height of what the model was shown: the whole
picture, or another rectangle where it was padded or cropped. A phrase stands before its boxes,
``<p>dogs</p> {<1><2><30><40>}<delim>{<50><2><80><40>}``; answers to ``[refer]`` are boxes alone.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from .errors import ArgumentError

# Possessive quantifiers, and no part that matches another brace or bracket: a failed match never looks at a character
# twice, so that time stays linear in the text. Of single characters only: Python before 3.11.5 matches other parts
# wrongly if they are possessive. Nine digits keep int() cheap. What is cut off matches at the end only.
_NUMBER = r"<\s*+(-?[0-9]{1,9}+)\s*+>\s*+"
_SYNTAX = re.compile(
    rf"(?P<box>\{{\s*+{_NUMBER * 4}\}})"
    r"|(?P<open><\s*+p\s*+>)"
    r"|(?P<close><\s*+/\s*+p\s*+>)"
    r"|(?P<delimiter><\s*+delim\s*+>)"
    r"|(?P<malformed>\{(?:\s*+<\s*+-?[0-9]++(?:\s*+>)?)+(?:\s*+\})?)"
    r"|(?P<cut_box>\{\s*+(?:<\s*+-?\s*+)?\Z|<\s*+-\s*+\Z)"
    r"|(?P<cut_tag><\s*+/?\s*+(?:p|d|de|del|deli|delim)?\s*+\Z)"
)


View = tuple[float, float, float, float]
"""Left, top, right and bottom of what the model was shown, in pixels of the picture: :attr:`EncodedImage.view`."""


class Box(NamedTuple):
    """A rectangle in pixels of the upright picture, never empty and never beyond its edges.

    ``left`` and ``top`` are the first column and row inside, ``right`` and ``bottom`` the first ones outside, as
    ``Image.crop`` takes them.
    """

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Region:
    """A phrase of an answer, with its boxes."""

    phrase: str | None
    """The words before the boxes, on one line; None if there are boxes only."""
    boxes: tuple[Box, ...]
    """One or more, in the answer's order."""


def parse_boxes(text: str, width: int, height: int, view: View | None = None) -> tuple[Region, ...]:
    """Read the boxes of an answer.

    Models do not always keep to the form. Blanks between its parts do not matter, numbers beyond 0 to 100 are moved
    to the nearer of the two, corners may come in any order, and a box without area becomes one pixel wide or high.
    A box belongs to the phrase before it unless words come between; so does the next one, with or without
    ``<delim>``. Boxes that lack numbers or braces, as the last one of an answer cut short, are left out, as are
    phrases without a box.

    Args:
        text: Any text; what is not a box is ignored.
        width: Width of the upright picture in pixels, such as :attr:`EncodedImage.width`.
        height: Height of the upright picture in pixels, such as :attr:`EncodedImage.height`.
        view: What the model was shown, such as :attr:`EncodedImage.view`; the whole picture if None.

    Returns:
        The regions in the answer's order; edges are rounded to the nearest pixel, and moved into the picture.

    Raises:
        ArgumentError: ``width`` or ``height`` is less than 1. No text raises anything.
    """
    across, down = _extents(width, height, view)
    groups: list[tuple[str | None, list[Box]]] = [(None, [])]
    opened: int | None = None  # where the words behind a <p> begin, until they end
    end = 0
    for part in _SYNTAX.finditer(text):
        before, end = text[end : part.start()], part.end()
        kind = part.lastgroup
        if opened is None:
            if any(character.isalnum() for character in before):
                groups.append((None, []))
        elif kind in ("box", "close"):  # a box ends a phrase that was not closed
            groups.append((" ".join(plain_text(text[opened : part.start()]).split()) or None, []))
            opened = None
        if kind == "open":
            groups.append((None, []))
            opened = end
        elif kind == "box":
            x1, y1, x2, y2 = (int(number) for number in part.groups()[1:5])
            left, right = _pixels(x1, x2, width, across)
            top, bottom = _pixels(y1, y2, height, down)
            groups[-1][1].append(Box(left, top, right, bottom))
    return tuple(Region(phrase, tuple(boxes)) for phrase, boxes in groups if boxes)


def plain_text(text: str) -> str:
    """Take the box syntax out of an answer, malformed and cut off parts included, and keep the words.

    Args:
        text: An answer, or what there is of it so far: a tag or box that has only begun at its end is taken out too.

    Returns:
        Text for people to read, ``a man with a dog`` of ``<p>a man</p> {<1><2><30><40>} with <p>a dog</p> {<50``;
        empty where the answer is boxes alone.
    """
    words: list[str] = []
    blanks = ""  # since the last word
    boxed = False  # whether anything but tags of phrases was taken out there
    end = 0
    for part in (*_SYNTAX.finditer(text), None):
        between = text[end : part.start() if part else None]
        body = between.strip()
        if body:
            blanks += between[: len(between) - len(between.lstrip())]
            if words:
                words.append(_joint(blanks, body) if boxed else blanks)
            words.append(body)
            blanks, boxed = between[len(between.rstrip()) :], False
        else:
            blanks += between
        if part:
            boxed |= part.lastgroup not in ("open", "close", "cut_tag")
            end = part.end()
    return "".join(words)


def format_box(
    left: float, top: float, right: float, bottom: float, width: int, height: int, view: View | None = None
) -> str:
    """Write a box as the model reads it.

    Args:
        left: In pixels of the upright picture, fractions allowed, from 0 up.
        top: Likewise.
        right: More than ``left``, at most ``width``: the first column outside, as in :class:`Box`.
        bottom: Likewise.
        width: Width of the upright picture in pixels.
        height: Height of the upright picture in pixels.
        view: What the model is shown, such as :attr:`EncodedImage.view`; the whole picture if None. Of a box that
            reaches beyond it, the part within it.

    Returns:
        ``{<x1><y1><x2><y2>}``, each number rounded to the nearest hundredth; where that would leave no area, outwards.

    Raises:
        ArgumentError: The box is empty, turned inside out, not finite, not within the picture or outside of what the
            model is shown, or ``width`` or ``height`` is less than 1.
    """
    across, down = _extents(width, height, view)
    x1, x2 = _hundredths("left", left, "right", right, "width", width, across)
    y1, y2 = _hundredths("top", top, "bottom", bottom, "height", height, down)
    return f"{{<{x1}><{y1}><{x2}><{y2}>}}"


def identify_question(
    left: float, top: float, right: float, bottom: float, width: int, height: int, view: View | None = None
) -> str:
    """Ask what is in a box: ``[identify] what is this {<x1><y1><x2><y2>}``, as the released demo words it.

    Arguments and errors are those of :func:`format_box`.
    """
    return f"[identify] what is this {format_box(left, top, right, bottom, width, height, view)}"


def _extents(width: int, height: int, view: View | None) -> tuple[tuple[float, float], tuple[float, float]]:
    """The positions of 0 and 100, horizontally and vertically."""
    if width < 1 or height < 1:
        raise ArgumentError(f"the picture's size is {width} x {height}; expected at least one pixel each way")
    left, top, right, bottom = view or (0, 0, width, height)
    return (left, right), (top, bottom)


def _pixels(one: int, other: int, size: int, extent: tuple[float, float]) -> tuple[int, int]:
    """Two edges in hundredths, in any order, converted to the first pixel inside and the first one outside."""
    start, end = extent
    low, high = sorted(min(max(edge, 0), 100) for edge in (one, other))
    first, last = (math.floor(start + edge * (end - start) / 100 + 0.5) for edge in (low, high))
    first = min(max(first, 0), size - 1)
    return first, min(max(last, first + 1), size)


def _hundredths(
    low_name: str,
    low: float,
    high_name: str,
    high: float,
    size_name: str,
    size: int,
    extent: tuple[float, float],
) -> tuple[int, int]:
    if not 0 <= low < high <= size:  # not a number is neither
        raise ArgumentError(
            f"the box's {low_name} is {low} and its {high_name} {high}; "
            f"expected 0 <= {low_name} < {high_name} <= {size}, the picture's {size_name} in pixels"
        )
    start, end = extent
    first, last = (min(max(100 * (edge - start) / (end - start), 0), 100) for edge in (low, high))
    if first >= last:
        raise ArgumentError(
            f"the box's {low_name} is {low} and its {high_name} {high}; this model is shown {start:g} to {end:g} of "
            f"the picture's {size_name}: choose a box within that"
        )
    nearest = round(first), round(last)
    return nearest if nearest[0] < nearest[1] else (math.floor(first), math.ceil(last))


def _joint(blanks: str, after: str) -> str:
    """The text between two words after a box was removed."""
    if after[0] in ",.;:!?)":
        return ""
    return "\n" if "\n" in blanks else " "
