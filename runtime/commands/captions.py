"""The file that captions are kept in: JSON Lines, one caption a line, appended to as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import ArgumentError
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
    question: str
    text: str
    finish_reason: str


class Captions:
    """What is known so far; of several captions of a picture the last counts."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: The file, which need not be there yet.

        Raises:
            ArgumentError: It is there and holds anything else.
            OSError: It cannot be read.
        """
        self._path = path
        self._known: dict[tuple[str, str], Caption] = {}
        self._texts: dict[str, set[str]] = {}
        self._length = 0
        """Bytes of whole lines."""
        data = path.read_bytes() if path.exists() else b""
        for number, line in enumerate(data.splitlines(keepends=True), start=1):
            if line.endswith(b"\n"):
                self._remember(self._parsed(line, number))
                self._length += len(line)
            elif not line.startswith(_BEGINNING[: len(line)]):  # else it was cut while it was written, and is dropped
                raise self._foreign(number)

    def find(self, picture: Picture, question: str) -> Caption | None:
        """The caption of a picture as it is now, if there is one."""
        known = self._known.get((picture.file, question))
        return known if known and (known.size, known.mtime) == (picture.size, picture.mtime) else None

    def wrote(self, file: str, text: str) -> bool:
        """Whether a text is a caption that the file has had, to this question or another."""
        return text in self._texts.get(file, ())

    @contextmanager
    def appending(self) -> Iterator[BinaryIO]:
        """Open the file for :meth:`add`; a last line that was cut is gone then."""
        with self._path.open("ab") as file:
            file.truncate(self._length)
            yield file

    def add(self, file: BinaryIO, caption: Caption) -> None:
        """Append a caption; once this returns, no kill of the process can lose it."""
        # ASCII is whole in any encoding, and carries names that are no Unicode.
        file.write(json.dumps(asdict(caption)).encode() + b"\n")
        file.flush()
        self._remember(caption)

    def _remember(self, caption: Caption) -> None:
        self._known[caption.file, caption.question] = caption
        self._texts.setdefault(caption.file, set()).add(caption.text)

    def _parsed(self, line: bytes, number: int) -> Caption:
        try:
            return Caption(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise self._foreign(number) from error

    def _foreign(self, number: int) -> ArgumentError:
        return ArgumentError(
            f"{self._path}: line {number} is no caption of this command's; expected its earlier output, or a new file"
        )
