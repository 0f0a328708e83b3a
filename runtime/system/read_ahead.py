"""Sequential reading of a file that is about to be memory-mapped, which would load it page by page."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STEP = 1 << 20
"""Bytes read at a time; skipped if the first of them is already cached."""


@contextmanager
def reading_ahead(path: Path, turn: threading.Lock) -> Iterator[None]:
    """Have the system read a file into its cache in a second thread while the body maps it.

    Cached parts are skipped, in a few milliseconds for gigabytes. If the system does not report what is
    cached (all but Linux), nothing is read.

    Args:
        path: The file.
        turn: Held until the file is read: then the next body begins, so that the disk reads one file at a time.
    """
    begun, ended = threading.Event(), threading.Event()

    def read() -> None:
        with turn:
            begun.set()
            with suppress(OSError, MemoryError):  # whoever maps it meets the same
                _read(path, ended)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        begun.wait()
        yield
    finally:
        ended.set()
        thread.join()


def _read(path: Path, ended: threading.Event) -> None:
    if sys.platform == "win32" or not hasattr(os, "RWF_NOWAIT"):
        return
    buffer = memoryview(bytearray(STEP))
    with path.open("rb", buffering=0) as file:
        for place in range(0, path.stat().st_size, STEP):
            if ended.is_set():
                return
            try:
                os.preadv(file.fileno(), [buffer[:1]], place, os.RWF_NOWAIT)
            except BlockingIOError:
                os.preadv(file.fileno(), [buffer], place)
