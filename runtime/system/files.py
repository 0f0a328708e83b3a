"""Locks between processes, SHA-256, and files and folders that are written completely or not at all."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_HASHED_AT_ONCE = 4 << 20
_PARTIAL = re.compile(r"\.tinygptv\.[0-9a-f]{16}\.part")
_ABANDONED_SECONDS = 3600
"""Age from which a partial file without a lock counts as abandoned by a killed process."""


def sha256_of(
    path: Path,
    size: int | None = None,
    progress: Callable[[int], object] | None = None,
    seen: Callable[[memoryview], object] | None = None,
) -> str:
    """SHA-256 of a file.

    Args:
        path: The file.
        size: How many of its first bytes count; all of them if None.
        progress: Callback with the number of bytes read since the last call.
        seen: Callback with those bytes; they are overwritten after it.

    Returns:
        Hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    digest, left = hashlib.sha256(), sys.maxsize if size is None else size
    buffer = memoryview(bytearray(_HASHED_AT_ONCE))
    with path.open("rb", buffering=0) as file:
        while left and (count := file.readinto(buffer[:left])):
            digest.update(buffer[:count])
            if seen is not None:
                seen(buffer[:count])
            left -= count
            if progress is not None:
                progress(count)
    return digest.hexdigest()


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, then rename it; what was there before stays until then.

    A killed process leaves the partial file. Whoever writes to the same folder next removes it; on Windows, and where
    the file system has no locks, only an hour later or more.

    Args:
        path: The file. If it is a link, the link stays and its target is written.
        write: Writes the content.

    Raises:
        OSError: It cannot be written; names ``path`` where the system gives the reason.
    """
    place = Path(os.path.realpath(path))
    _remove_abandoned(place.parent)
    try:
        with _partial_file(place.parent) as (made, file):
            write(file)
            file.flush()
            if sys.platform == "win32":  # where no open file is renamed
                file.close()
            publish_file(made, place)
    except OSError as error:
        if error.errno is None:  # not the system's, such as Pillow's on a format
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def _partial_file(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new partial file, locked to show that it is in use; removed after an error."""
    while True:
        made = folder / f".tinygptv.{os.urandom(8).hex()}.part"  # short, however long the final name is
        file = made.open("xb")
        try:
            with file:
                with suppress(OSError):  # a file system without locks
                    _lock(file)
                if made.exists():  # else it was taken for an abandoned one before it had its lock
                    yield made, file
                    return
        except BaseException:
            with suppress(OSError):
                made.unlink(missing_ok=True)
            raise


def _lock(file: BinaryIO, *, wait: bool = True) -> None:
    """Lock a file until it is closed.

    Raises:
        BlockingIOError: Another process has the lock, and ``wait`` is False.
        OSError: Locks are not supported, as on Windows and some file systems.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


@functools.lru_cache(maxsize=1024)
def _remove_abandoned(folder: Path) -> None:
    """Remove the partial files of killed processes, once per process and folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _PARTIAL.fullmatch(entry.name):
                with suppress(OSError):
                    _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(path: Path) -> None:
    """Remove a partial file that no process is writing.

    Raises:
        OSError: It cannot be removed.
    """
    try:
        with path.open("r+b") as file:
            _lock(file, wait=False)
            path.unlink()  # under its lock: who has just made it waits for that, and then makes another
    except BlockingIOError:
        pass
    except OSError:
        if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
            path.unlink()


def publish_file(made: Path, place: Path) -> None:
    """Flush a finished file to the disk and rename it to its place, with the permissions of the file that was there.

    Args:
        made: The file, on the same disk.
        place: Its new name. A file of that name is replaced in one step.

    Raises:
        OSError: It cannot be renamed.
    """
    with made.open("r+b") as file:
        os.fsync(file.fileno())
    # Only where they differ: some file systems have no permissions to change.
    if place.exists() and place.stat().st_mode != made.stat().st_mode:
        shutil.copymode(place, made)
    made.replace(place)


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """An empty folder, removed at the end unless it was renamed.

    What a killed process left in its place is removed first. So if two processes may be at it, hold a lock.

    Args:
        folder: The folder; its parent exists.

    Raises:
        OSError: It cannot be made.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_folder(made: Path, target: Path) -> None:
    """Rename a finished folder to its place; one that was there is removed once the new one is in its place.

    However it is interrupted, the old or the new folder is in place. Only a kill between two renames leaves the old one
    beside its place, under a hidden name: :func:`recover_folder` puts it back.

    Args:
        made: The folder, on the same disk.
        target: Its new name.

    Raises:
        OSError: It cannot be renamed.
    """
    retired = retired_of(target)
    try:
        if target.exists():
            shutil.rmtree(retired, ignore_errors=True)
            target.rename(retired)
        made.rename(target)
    finally:
        if target.exists():
            shutil.rmtree(retired, ignore_errors=True)
        elif retired.exists():
            retired.rename(target)


def recover_folder(target: Path) -> None:
    """Restore a folder that a killed :func:`publish_folder` had moved away; its other remains are removed.

    Hold the lock that publishing uses.

    Args:
        target: Its name.

    Raises:
        OSError: It cannot be renamed.
    """
    retired = retired_of(target)
    if target.exists():
        shutil.rmtree(retired, ignore_errors=True)
    elif retired.exists():
        retired.rename(target)


def retired_of(target: Path) -> Path:
    """Path of a folder's old version while a new one replaces it."""
    return target.with_name(f".{target.name}.replaced")


def check_writable(folder: Path) -> None:
    """Check that files can be created in a folder, by creating one. On Windows, ``os.access`` ignores permissions.

    Args:
        folder: The folder.

    Raises:
        OSError: No file can be created; names the folder.
    """
    _remove_abandoned(folder)
    try:
        with _partial_file(folder) as (made, file):
            file.close()
            made.unlink(missing_ok=True)  # it has no lock any more: another process may have removed it
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(folder)) from error


@contextmanager
def locked(path: Path, refusal: Exception | None = None) -> Iterator[None]:
    """Hold a lock between processes and threads; if the process dies, the system releases it.

    Args:
        path: The lock's own file. It is made, with its folder, and removed at the end; one that a killed process left
            locks nobody out.
        refusal: Raised if another process has the lock; None to wait for it.

    Raises:
        OSError: The lock's file cannot be made, or its file system has no locks.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=-1 if refusal is None else 0)
    for remaining in reversed(range(100)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # On Windows, filelock 3 takes a refusal for a lock that another has: it would wait for ever.
            check_writable(path.parent)
            lock.acquire()
            break
        except Timeout as error:
            raise refusal or error from None
        except (FileNotFoundError, FileExistsError):  # somebody removes the folder just now, or it is a file for good
            if not remaining:
                raise
            time.sleep(0.001)
    try:
        yield
    finally:
        if sys.platform != "win32":  # where filelock itself removes it, when it is closed
            # While it is held: who waits does so for a file of this name, not for one that has been removed.
            with suppress(OSError):
                path.unlink()
        lock.release()
