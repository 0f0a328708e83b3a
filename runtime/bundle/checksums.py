"""Detects changed files: by SHA-256 against the manifest, and by sums that are fast enough for each load."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import numpy as np

from ..errors import BundleError
from ..system.files import sha256_of
from .manifest import FileRecord

CHUNK_BYTES = 4 << 20
COLUMNS = 2039
"""Words in a row, a prime: exchanged disk blocks or memory pages then fall into different columns."""


def sums_of(path: Path) -> list[int]:
    """A sum for each :data:`CHUNK_BYTES` of a file, at about the speed of reading it (SHA-256 takes 5 to 15 times).

    A chunk's 64-bit words are laid out in rows of :data:`COLUMNS` and added up by column, and the columns' sums are
    hashed (CRC-32). So any damage that lies within 16 KB is noticed but for one chance in 2^32, zeroed and exchanged
    blocks too; it is no defence against someone who changes the file on purpose.

    Raises:
        OSError: The file cannot be read.
    """
    buffer = bytearray(CHUNK_BYTES)
    sums = []
    with path.open("rb", buffering=0) as file:
        while length := _fill(file, memoryview(buffer)):
            buffer[length:] = bytes(CHUNK_BYTES - length)
            words = np.frombuffer(buffer, "<u8")
            whole = len(words) // COLUMNS * COLUMNS
            columns = np.add.reduce(words[:whole].reshape(-1, COLUMNS), axis=0)
            columns[: len(words) - whole] += words[whole:]
            sums.append(zlib.crc32(columns.astype("<u8").tobytes()))
    return sums


def _fill(file: FileIO, view: memoryview) -> int:
    """Read until the view is full or the file ends; returns the number of bytes."""
    filled = 0
    while count := file.readinto(view[filled:]):
        filled += count
    return filled


@contextmanager
def verified(path: Path, sums: Sequence[int], advice: str) -> Iterator[None]:
    """Check a file in a second thread while the body, which reads it too, runs.

    Args:
        path: The file.
        sums: The result of :func:`sums_of` for it.
        advice: What the user should do if the sums differ.

    Raises:
        BundleError: The file has changed. That explains whatever the body failed with.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        found = pool.submit(sums_of, path)
        try:
            yield
        finally:
            if list(sums) != found.result():
                wrong = sum(a != b for a, b in zip(sums, found.result(), strict=False))
                raise BundleError(f"{path} is damaged ({wrong} of {len(sums)} parts have changed); {advice}")


def is_whole(path: Path, record: FileRecord) -> bool:
    """Whether a file begins with the bytes that the manifest lists; packed weights may follow them.

    Raises:
        OSError: The file cannot be read.
    """
    return sha256_of(path, record.size) == record.sha256


def damaged_files(folder: Path, files: Sequence[FileRecord]) -> list[str]:
    """Names of the files of a bundle whose SHA-256 is not the manifest's; takes a second or two for each 2 GB."""
    with ThreadPoolExecutor() as pool:
        whole = pool.map(lambda record: is_whole(folder / record.name, record), files)
    return [record.name for record, good in zip(files, whole, strict=True) if not good]
