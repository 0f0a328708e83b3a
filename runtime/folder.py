"""The pictures of folders, in a fixed order, and the names of the texts beside them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import reason_of

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".tga", ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jxl", ".ppm", ".pgm", ".pbm", ".pnm"),
)
"""Suffixes of picture files; those that cannot be read are reported instead of being skipped silently."""
_SLUG_LENGTH = 40


@dataclass(frozen=True)
class Picture:
    """A picture file in its present state."""

    folder: str
    """Path of the folder as the user gave it."""
    file: str
    """Path relative to the folder, with ``/`` on every system."""
    size: int
    mtime: float
    """Time of the last change, in seconds since 1970."""

    @property
    def path(self) -> Path:
        """Path of the file."""
        return Path(self.folder, self.file)


@dataclass(frozen=True)
class Unreadable:
    """A file or folder that cannot be accessed."""

    folder: str
    file: str
    error: str


def pictures_in(folders: Sequence[Path]) -> Iterator[Picture | Unreadable]:
    """Every picture in the folders and their subfolders, folder by folder, sorted by name.

    Names that begin with a dot are hidden, and skipped. Links are followed, but no folder is entered twice.

    Args:
        folders: The folders.
    """
    entered: set[str] = set()
    for folder in folders:
        yield from _pictures_in(folder, folder, "", entered)


def _pictures_in(top: Path, folder: Path, prefix: str, entered: set[str]) -> Iterator[Picture | Unreadable]:
    real = os.path.realpath(folder)
    if real in entered:
        return
    entered.add(real)
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        yield Unreadable(str(top), prefix or ".", f"{folder} cannot be read: {reason_of(error)}")
        return
    for name in names:
        path, is_picture = folder / name, os.path.splitext(name)[1].lower() in SUFFIXES
        try:
            found = path.stat()
        except OSError as error:
            if is_picture:  # a link to nowhere
                yield Unreadable(str(top), prefix + name, f"{path} cannot be read: {reason_of(error)}")
            continue
        if stat.S_ISDIR(found.st_mode):
            yield from _pictures_in(top, path, f"{prefix}{name}/", entered)
        elif is_picture and stat.S_ISREG(found.st_mode):
            yield Picture(str(top), prefix + name, found.st_size, found.st_mtime)


def sidecar_ending(question: str, caption_question: str) -> str:
    """The ending of a sidecar file's name: ``.txt`` for captions, otherwise with the question in it.

    Args:
        question: The question that was asked.
        caption_question: The model's question for a caption.

    Returns:
        The ending, such as ``.what-color-is-it-e8eb81.txt``: the digits are of the question's SHA-256, as only its
        letters and digits are in the words.
    """
    if question == caption_question:
        return ".txt"
    slug = "-".join(re.findall(r"[^\W_]+", question.lower()))[:_SLUG_LENGTH].strip("-")
    digits = hashlib.sha256(question.encode(errors="surrogateescape")).hexdigest()[:6]
    return f".{slug}-{digits}.txt" if slug else f".{digits}.txt"


def sidecars(files: Iterable[str], ending: str = ".txt") -> dict[str, str]:
    """The sidecar file of each picture: ``photo.txt``, or ``photo.jpg.txt`` if another picture may use the former.

    Args:
        files: All pictures of a folder, as in :attr:`Picture.file`.
        ending: The result of :func:`sidecar_ending`.
    """
    names = {file: (os.path.splitext(file)[0] + ending, file + ending) for file in files}
    claims = Counter(name.casefold() for pair in names.values() for name in pair)  # some systems ignore case
    return {file: usual if claims[usual.casefold()] == 1 else whole for file, (usual, whole) in names.items()}
