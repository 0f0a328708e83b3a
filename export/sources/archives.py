"""The zip files that ``torch.save`` writes: their records' lengths, and the CRC-32 that each was written with.

torch reads storages from a mapping and compares neither: half a record is filled up from what is behind it, and a
flipped bit is a weight like any other. Lengths are checked at once. Sums need every byte, so they are checked when the
file is hashed.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tinygptv.runtime.errors import ExportError, reason_of

_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<26x2H")
"""Only the lengths of the name and of the extra field are read (PKWARE's APPNOTE, section 4.3.7)."""
_PICKLE = "/data.pkl"
_ITEM_BYTES = {
    **dict.fromkeys(("Untyped", "Byte", "Char", "Bool", "QUInt8", "QInt8", "QUInt4x2", "QUInt2x4"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
"""Bytes of an item, by the part before ``Storage`` in the names of torch's classes."""


def is_archive(file: Path) -> bool:
    """Whether a file begins like a zip file; torch uses the same test."""
    with file.open("rb") as opened:
        return opened.read(len(_MAGIC)) == _MAGIC


@dataclass(frozen=True)
class Record:
    """A file within the archive."""

    name: str
    start: int
    """Offset of its bytes in the archive."""
    size: int
    crc: int

    @property
    def end(self) -> int:
        return self.start + self.size


class Archive:
    """The records of a file.

    Raises:
        ExportError: A record is compressed, or is not as long as the tensors in it, or the file ends before it does.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            with file.open("rb") as opened:
                found = [_record(opened, info) for info in zipfile.ZipFile(opened).infolist()]
                by_name = {record.name: record for record in found}
                pickled = next(record for record in found if record.name.endswith(_PICKLE))
                opened.seek(pickled.start)
                storages = _Storages(opened.read(pickled.size)).read()
        except Exception as error:  # a damaged archive or pickle can raise anything
            told = isinstance(error, OSError | ValueError | zipfile.BadZipFile)
            raise self._damaged(reason_of(error)[:100] if told else "damaged pickle") from error
        self.records = sorted(found, key=lambda record: record.start)
        ends = [0, *(record.end for record in self.records)]
        if len(by_name) < len(found) or any(r.start < end for r, end in zip(self.records, ends, strict=False)):
            raise self._damaged("two of its records overlap")
        if ends[-1] > file.stat().st_size:
            raise self._damaged(f"it is cut off in {self.records[-1].name}")
        for key, size in storages.items():
            name = pickled.name.removesuffix(_PICKLE) + f"/data/{key}"
            if name not in by_name or by_name[name].size != size:
                there = f"{by_name[name].size} bytes" if name in by_name else "absent"
                raise self._damaged(f"{name} is {there}; expected {size} bytes")

    @property
    def has_sums(self) -> bool:
        """Whether the archive has checksums, which torch can omit."""
        return any(record.crc for record in self.records)

    def _damaged(self, reason: str) -> ExportError:
        return ExportError(f"{self.file}: not a complete torch file of plain weights ({reason}); download it again")


class RecordSums:
    """CRC-32 of each record, from the bytes of the archive in their order."""

    def __init__(self, archive: Archive) -> None:
        self._file, self._records = archive.file, archive.records
        self._at, self._crc, self._done = 0, 0, 0
        self._damaged: list[str] = []

    def __call__(self, piece: memoryview) -> None:
        """Process the next bytes."""
        end = self._at + len(piece)
        for record in self._records[self._done :]:
            begun, stop = max(self._at, record.start), min(end, record.end)
            if begun < stop:
                self._crc = zlib.crc32(piece[begun - self._at : stop - self._at], self._crc)
            if record.end > end:
                break
            if self._crc != record.crc:
                self._damaged.append(record.name)
            self._crc, self._done = 0, self._done + 1
        self._at = end

    def finish(self) -> None:
        """Check the last record, after the last byte.

        Raises:
            ExportError: A record is not the one that was written.
        """
        damaged = self._damaged + [record.name for record in self._records[self._done :]]
        if damaged:
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            raise ExportError(
                f"{self._file}: the file is damaged: {damaged[0]}{more} does not match its CRC-32; download it again"
            )


def _record(opened: BinaryIO, info: zipfile.ZipInfo) -> Record:
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed, which torch.save does not do")
    opened.seek(info.header_offset)
    name, extra = _LOCAL_HEADER.unpack(opened.read(_LOCAL_HEADER.size))
    return Record(info.filename, info.header_offset + _LOCAL_HEADER.size + name + extra, info.file_size, info.CRC)


class _Named:
    """Stands in for every class in a pickle: accepts every argument, item and state, and does nothing."""

    def __init__(self, *arguments: object) -> None: ...
    def __setstate__(self, state: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...
    def append(self, value: object) -> None: ...
    def extend(self, values: object) -> None: ...


class _Storages(pickle.Unpickler):
    """Reads from a pickle which storages it needs. No class in it is looked up, so that no code is run."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._sizes: dict[str, int] = {}

    def read(self) -> dict[str, int]:
        """Size of each storage in bytes, by its key."""
        self.load()
        return self._sizes

    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Named,), {})

    def persistent_load(self, pid: Any) -> _Named:
        _, kind, key, _, count = pid
        self._sizes[key] = count * _ITEM_BYTES[kind.__name__.removesuffix("Storage")]
        return _Named()
