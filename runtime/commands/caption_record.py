"""The record of one caption, and its JSON form."""

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
    """When the picture was captioned; this and the three before are as in :class:`..folder.Picture`."""
    model: str
    """Name of the model."""
    bundle: str
    """Identity of the bundle, independent of its name: the first 12 hexadecimal digits of its manifest's SHA-256."""
    question: str
    text: str
    finish_reason: str
    regions: tuple[Region, ...]
    """The regions in the text, in pixels of the upright picture."""


COLUMNS: dict[str, tuple[type, ...]] = dict.fromkeys(Caption.__dataclass_fields__, (str,)) | {
    "size": (int,),
    "mtime": (float, int),
    "regions": (list,),
}
"""Each field with the types that :mod:`json` reads it as."""


def from_document(found: object) -> Caption:
    """Create a caption from the result of ``json.loads``.

    Raises:
        ValueError: It is not a caption.
    """
    if not isinstance(found, dict) or found.keys() != COLUMNS.keys():
        raise ValueError("other fields")
    if not all(type(value) in COLUMNS[name] for name, value in found.items()):  # a bool is no size
        raise ValueError("values of other types")
    return Caption(**{**found, "regions": tuple(_region(region) for region in found["regions"])})


def regions_json(regions: Iterable[Region]) -> str:
    """Regions as JSON text, for formats whose fields are texts."""
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
