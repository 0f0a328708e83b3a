"""The file that captions are kept in: JSON Lines, one caption a line, appended to as they come."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import ArgumentError
from ..system.files import locked
from .folder import Picture

_BEGINNING = b'{"file": "'
"""Of every line."""


@dataclass(frozen=True)
class Caption:
    """One line."""

    file: str
    size: int
    mtime: float
    """These three as in :class:`.folder.Picture`: of the picture when it was captioned."""
    model: str
    """Which one wrote it: the first 12 digits of its manifest's SHA-256, in hexadecimal."""
    question: str
    text: str
    finish_reason: str


_TYPES: dict[str, tuple[type, ...]] = dict.fromkeys(Caption.__dataclass_fields__, (str,)) | {
    "size": (int,),
    "mtime": (float, int),
}
"""What :mod:`json` reads a line's fields as."""


class Captions:
    """What is known so far; of several captions of a picture the last counts."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        """
        Args:
            path: The file's name.
            file: The file, unbuffered, to read and to append to; see :func:`open_captions`.

        Raises:
            ArgumentError: It holds anything else.
            OSError: It cannot be read.
        """
        self.path = path
        self._file = file
        self._known: dict[tuple[str, str, str], Caption] = {}
        self._texts: dict[str, set[str]] = {}
        self._length = 0
        """Bytes of whole lines."""
        self._is_cut = False
        """Whether more follows them: a line that was cut while it was written."""
        file.seek(0)
        for number, line in enumerate(io.BytesIO(file.read()), start=1):
            if line.endswith(b"\n"):
                if line.strip():
                    self._remember(self._parsed(line, number))
                self._length += len(line)
            elif line.strip() and not line.startswith(_BEGINNING[: len(line)]):
                raise self._foreign(number)
            else:
                self._is_cut = True

    def find(self, picture: Picture, question: str, model: str) -> Caption | None:
        """The caption of a picture as it is now, if there is one."""
        known = self._known.get((picture.file, question, model))
        return known if known and (known.size, known.mtime) == (picture.size, picture.mtime) else None

    def wrote(self, file: str, text: str) -> bool:
        """Whether a text is a caption that the file has had, to this question or another, by whichever model."""
        return text in self._texts.get(file, ())

    def is_at(self, path: Path) -> bool:
        """Whether a path leads to this very file."""
        try:
            return os.path.samestat(path.stat(), os.fstat(self._file.fileno()))
        except OSError:
            return False

    def add(self, caption: Caption) -> None:
        """Append a caption; once this returns, no kill of the process can lose it.

        Raises:
            OSError: The disk is full, or the like. What is left of the line is dropped when the next one is added.
        """
        # ASCII is whole in any encoding, and carries names that are no Unicode.
        line = json.dumps(asdict(caption)).encode() + b"\n"
        if self._is_cut:
            self._file.truncate(self._length)
        self._is_cut = True
        written = 0
        while written < len(line):
            written += self._file.write(line[written:])
        self._length += written
        self._is_cut = False
        self._remember(caption)

    def _remember(self, caption: Caption) -> None:
        self._known[caption.file, caption.question, caption.model] = caption
        self._texts.setdefault(caption.file, set()).add(caption.text)

    def _parsed(self, line: bytes, number: int) -> Caption:
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._foreign(number) from error
        if not isinstance(fields, dict) or fields.keys() != _TYPES.keys():
            raise self._foreign(number)
        if not all(type(value) in _TYPES[name] for name, value in fields.items()):  # a bool is no size
            raise self._foreign(number)
        return Caption(**fields)

    def _foreign(self, number: int) -> ArgumentError:
        return ArgumentError(
            f"{self.path}: line {number} is no caption of this command's; expected its earlier output, or a new file"
        )


@contextmanager
def open_captions(path: Path) -> Iterator[Captions]:
    """Open the file, and keep other runs out of it meanwhile.

    Args:
        path: The file, which need not be there yet, and is not if nothing comes of it.

    Raises:
        ArgumentError: Another run is writing to it, it is no file, or it holds anything else.
        OSError: It cannot be read or written.
    """
    if path.exists() and not path.is_file():
        raise ArgumentError(f"{path} is not a regular file; expected an earlier OUTPUT, or a new file")
    place = Path(os.path.realpath(path))  # whatever link leads to it, there is one lock
    refusal = ArgumentError(f"another caption run is writing to {path}; wait for it, or choose another OUTPUT")
    with locked(place.with_name(f".{place.name}.lock"), refusal):
        is_new = not place.exists()
        try:
            with place.open("a+b", buffering=0) as file:
                yield Captions(path, file)
        finally:
            with suppress(OSError):
                if is_new and not place.stat().st_size:
                    place.unlink()
