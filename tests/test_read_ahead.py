"""Reading a file ahead of who maps it."""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path

import pytest
from tinygptv.runtime.system.read_ahead import STEP, reading_ahead

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is cached")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(5 * STEP + 1000))
    return path


def cached(path: Path) -> list[bool]:
    """Whether the first byte of each step is in the system's cache."""
    found = []
    with path.open("rb", buffering=0) as file:
        for place in range(0, path.stat().st_size, STEP):
            try:
                os.preadv(file.fileno(), [bytearray(1)], place, os.RWF_NOWAIT)
                found.append(True)
            except BlockingIOError:
                found.append(False)
    return found


@linux
def test_a_file_is_in_the_cache_afterwards(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if all(cached(path)):
        pytest.skip("this file system keeps what it holds in memory")
    turn = threading.Lock()
    with reading_ahead(path, turn), turn:  # which is free when all is read
        assert all(cached(path))


@linux
@pytest.mark.parametrize("tells", [True, False])
def test_what_is_cached_is_not_read(path: Path, tells: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything where the file system does not tell what is."""
    asked: list[int] = []
    preadv = os.preadv

    def noting(file: int, buffers: list[memoryview], place: int, flags: int = 0) -> int:
        asked.append(len(buffers[0]))
        if not tells:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return preadv(file, buffers, place, flags)

    monkeypatch.setattr(os, "preadv", noting)
    turn = threading.Lock()
    with reading_ahead(path, turn), turn:
        assert asked == [1] * (6 if tells else 1)


def test_one_file_at_a_time(path: Path) -> None:
    turn, begun = threading.Lock(), threading.Event()

    def second() -> None:
        with reading_ahead(path, turn):
            begun.set()

    with turn:
        thread = threading.Thread(target=second)
        thread.start()
        assert not begun.wait(0.1)
    assert begun.wait(60)
    thread.join(60)
    assert not turn.locked()


def test_a_file_that_is_not_there_is_the_bodys_business(path: Path) -> None:
    turn = threading.Lock()
    with pytest.raises(ZeroDivisionError), reading_ahead(path.with_name("nowhere"), turn):
        raise ZeroDivisionError
    assert not turn.locked()


@linux
def test_reading_ends_with_the_body(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    reading, go_on = threading.Event(), threading.Event()

    def slow(file: int, buffers: list[memoryview], place: int, flags: int = 0) -> None:
        if flags:
            raise BlockingIOError
        read.append(place)
        reading.set()
        go_on.wait(60)

    monkeypatch.setattr(os, "preadv", slow)
    with reading_ahead(path, threading.Lock()):
        assert reading.wait(60)
        threading.Timer(0.2, go_on.set).start()  # the body has ended by then
    assert read == [0]
