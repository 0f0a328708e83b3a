"""Reading a file before somebody who maps it gets there: in order, where pages of a mapping come one by one."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STEP = 1 << 20
"""Bytes read at a time; whether they are cached already is asked of the first."""


@contextmanager
def reading_ahead(path: Path, turn: threading.Lock) -> Iterator[None]:
    """Have the system read a file into its cache in a second thread while the body maps it.

    What is cached already is passed over, in a few milliseconds for gigabytes. Where the system does not tell what that
    is (all but Linux), nothing is read.

    Args:
        path: The file.
        turn: Held until it is read: the next one's body begins then, and the disk reads one file at a time.
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
