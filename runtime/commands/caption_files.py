"""The formats of a file that captions are appended to: JSON Lines and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from ..errors import ArgumentError
from .caption_record import COLUMNS, Caption, from_document, regions_json


class Form(Protocol):
    """A file format for captions."""

    header: bytes
    """The first bytes of a file."""

    def dumps(self, caption: Caption) -> bytes:
        """One record, including its line ending."""

    def loads(self, record: bytes) -> Caption:
        """The caption in a record; ValueError or RecursionError if it holds anything else."""

    def records(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        """Joins lines into records; the last record may be truncated."""

    def may_begin(self, cut: bytes) -> bool:
        """Whether a truncated record may have been a caption."""


class JsonLines:
    """One JSON object a line."""

    header = b""
    _BEGINNING = b'{"file": "'

    def dumps(self, caption: Caption) -> bytes:
        return json.dumps(asdict(caption)).encode() + b"\n"  # ASCII: carries names that are no Unicode

    def loads(self, record: bytes) -> Caption:
        return from_document(json.loads(record))

    def records(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        return lines

    def may_begin(self, cut: bytes) -> bool:
        return cut.startswith(self._BEGINNING[: len(cut)])


class Csv:
    """RFC 4180 in UTF-8, with a header line; regions are JSON in their column."""

    def __init__(self) -> None:
        self.header = self._line(COLUMNS.keys())

    def dumps(self, caption: Caption) -> bytes:
        return self._line((asdict(caption) | {"regions": regions_json(caption.regions)}).values())

    def loads(self, record: bytes) -> Caption:
        text = record.decode(errors="surrogateescape")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        if len(rows) != 1 or len(rows[0]) != len(COLUMNS):
            raise ValueError("another number of columns")
        row = dict(zip(COLUMNS, rows[0], strict=True))
        typed = {"size": int(row["size"]), "mtime": float(row["mtime"]), "regions": json.loads(row["regions"])}
        return from_document(row | typed)

    def records(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        record = b""
        for line in lines:
            record += line
            if record.count(b'"') % 2 == 0:  # else the line ends within a quoted text
                yield record
                record = b""
        if record:
            yield record.rstrip(b"\r\n")  # cut, wherever that was

    def may_begin(self, cut: bytes) -> bool:
        return True  # the header has told whose file it is

    def _line(self, values: object) -> bytes:
        text = io.StringIO()
        csv.writer(text).writerow(values)  # type: ignore[arg-type]
        return text.getvalue().encode(errors="surrogateescape")


class CaptionFile:
    """A file that captions are appended to."""

    def __init__(self, path: Path, file: io.FileIO, form: Form) -> None:
        """
        Args:
            path: The file's name, for messages.
            file: The file, unbuffered, opened for reading and appending.
            form: The file's format.

        Raises:
            ArgumentError: The file contains anything but captions.
            OSError: It cannot be read.
        """
        self._path, self._file, self._form = path, file, form
        self._length = 0
        """Length of all complete records, in bytes."""
        self._is_cut = False
        """Whether a truncated record follows them, from an interrupted write."""
        file.seek(0)
        self.captions = list(self._read(file.read()))

    def _read(self, content: bytes) -> Iterator[Caption]:
        header = self._form.header
        if not content.startswith(header):
            if not header.startswith(content):
                raise self._foreign(1)
            self._is_cut = bool(content)
            return
        self._length, number = len(header), 1 + header.count(b"\n")
        for record in self._form.records(io.BytesIO(content[len(header) :])):
            if record.endswith(b"\n"):
                if record.strip():
                    try:
                        yield self._form.loads(record)
                    except (ValueError, RecursionError, csv.Error) as error:
                        raise self._foreign(number) from error
                self._length += len(record)
                number += record.count(b"\n")
            elif record.strip() and not self._form.may_begin(record):
                raise self._foreign(number)
            else:
                self._is_cut = True

    def add(self, caption: Caption) -> None:
        """Append a caption; once this returns, killing the process cannot lose it.

        Raises:
            OSError: The disk is full, or the like. A partial record is dropped when the next one is added.
        """
        record = self._form.dumps(caption)
        if self._is_cut:
            self._file.truncate(self._length)
        if not self._length:
            record = self._form.header + record
        self._is_cut = True
        written = 0
        while written < len(record):
            written += self._file.write(record[written:])
        self._length += written
        self._is_cut = False

    def _foreign(self, number: int) -> ArgumentError:
        return ArgumentError(
            f"{self._path}: line {number} is not a caption that this command wrote; expected its earlier output, or a "
            "new file"
        )
