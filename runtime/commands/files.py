"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, then put it there; what was there before stays until then.

    Args:
        path: The file; of a link, what it leads to is written, and the link stays.
        write: Writes its content.

    Raises:
        OSError: It cannot be written; names ``path`` where the system says why.
    """
    place = Path(os.path.realpath(path))
    made = place.with_name(f".tinygptv.{os.getpid()}.part")  # short, whatever the file's own name is
    try:
        try:
            with made.open("wb") as file:
                write(file)
            made.replace(place)
        finally:
            made.unlink(missing_ok=True)
    except OSError as error:
        if error.errno is None:  # not the system's, such as Pillow's on a format
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
