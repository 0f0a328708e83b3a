"""The pictures of a folder, in an order that is always the same, and what texts beside them are called."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".tga"),
    *(".avif", ".heic", ".heif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Of files that people take for pictures; those that Pillow cannot read are reported, not passed over in silence."""


@dataclass(frozen=True)
class Picture:
    """A picture file as it is now."""

    file: str
    """Its path relative to the folder, with ``/`` on every system."""
    size: int
    mtime: float
    """When it was last changed, in seconds since 1970."""


@dataclass(frozen=True)
class Unreadable:
    """A file or folder that could not even be looked at."""

    file: str
    error: str


def pictures_in(folder: Path) -> Iterator[Picture | Unreadable]:
    """Every picture in a folder and those below it, by name.

    Names that begin with a dot are hidden, and skipped. Links are followed, but no folder is entered twice.

    Args:
        folder: The folder.
    """
    yield from _pictures_in(folder, "", set())


def _pictures_in(folder: Path, prefix: str, entered: set[str]) -> Iterator[Picture | Unreadable]:
    real = os.path.realpath(folder)
    if real in entered:
        return
    entered.add(real)
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        yield Unreadable(prefix or ".", f"{folder} cannot be read: {error.strerror}")
        return
    for name in names:
        path, is_picture = folder / name, os.path.splitext(name)[1].lower() in SUFFIXES
        try:
            found = path.stat()
        except OSError as error:
            if is_picture:  # a link to nowhere
                yield Unreadable(prefix + name, f"{path} cannot be read: {error.strerror}")
            continue
        if stat.S_ISDIR(found.st_mode):
            yield from _pictures_in(path, f"{prefix}{name}/", entered)
        elif is_picture and stat.S_ISREG(found.st_mode):
            yield Picture(prefix + name, found.st_size, found.st_mtime)


def sidecars(files: Iterable[str]) -> dict[str, str]:
    """Where the text about each picture goes: ``photo.txt``, or ``photo.jpg.txt`` if the former may be another's too.

    Args:
        files: All pictures, as in :attr:`Picture.file`.
    """
    names = {file: (f"{os.path.splitext(file)[0]}.txt", f"{file}.txt") for file in files}
    claims = Counter(name.casefold() for pair in names.values() for name in pair)  # some systems ignore case
    return {file: usual if claims[usual.casefold()] == 1 else whole for file, (usual, whole) in names.items()}
