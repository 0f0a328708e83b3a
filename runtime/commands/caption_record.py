"""One caption as it is kept, and what it looks like in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from ..boxes import Box, Region


@dataclass(frozen=True)
class Caption:
    """One caption of one picture."""

    file: str
    folder: str
    size: int
    mtime: float
    """These four as in :class:`..folder.Picture`: of the picture when it was captioned."""
    model: str
    """Its name."""
    bundle: str
    """Which one it is, whatever its name: the first 12 digits of its manifest's SHA-256, in hexadecimal."""
    question: str
    text: str
    finish_reason: str
    regions: tuple[Region, ...]
    """What the text points at, in pixels of the upright picture."""


COLUMNS: dict[str, tuple[type, ...]] = dict.fromkeys(Caption.__dataclass_fields__, (str,)) | {
    "size": (int,),
    "mtime": (float, int),
    "regions": (list,),
}
"""Fields, and what :mod:`json` reads them as."""


def from_document(found: object) -> Caption:
    """A caption of what ``json.loads`` gave.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(found, dict) or found.keys() != COLUMNS.keys():
        raise ValueError("other fields")
    if not all(type(value) in COLUMNS[name] for name, value in found.items()):  # a bool is no size
        raise ValueError("values of other types")
    return Caption(**{**found, "regions": tuple(_region(region) for region in found["regions"])})


def regions_json(regions: Iterable[Region]) -> str:
    """Regions where there is room for a text only."""
    return json.dumps([asdict(region) for region in regions])


def _region(found: object) -> Region:
    match found:
        case {"phrase": str() | None as phrase, "boxes": list(boxes), **more} if not more:
            return Region(phrase, tuple(_box(box) for box in boxes))
    raise ValueError("regions of another form")


def _box(found: object) -> Box:
    if not isinstance(found, list) or len(found) != 4 or not all(type(edge) is int for edge in found):
        raise ValueError("boxes of another form")
    return Box(*found)
