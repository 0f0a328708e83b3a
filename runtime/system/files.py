"""Locks between processes, on files; the system lets others in if a process dies."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

_LOCKED_BYTE = 2**31 - 2
"""Far behind what the file holds: on Windows nobody else can read the byte that is locked."""


def lock(file: IO[bytes], wait: bool) -> bool:
    """Lock a file until it is closed.

    Args:
        file: Open for appending.
        wait: For whoever has it.

    Returns:
        Whether it is locked now; False only where somebody else has it, and nobody waits.

    Raises:
        OSError: The file cannot be locked.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(_LOCKED_BYTE)
            while wait:
                with suppress(OSError):  # it gives up after ten seconds
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    return True
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # the one or the other, by the system
        return False
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error
    return True


def leads_to(path: Path, file: IO[bytes]) -> bool:
    """Whether there is this very file, and not another that took its place, or none."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False
