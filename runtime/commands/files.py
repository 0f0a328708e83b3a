"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, then put it there; what was there before stays until then.

    Args:
        path: The file.
        write: Writes its content.

    Raises:
        OSError: It cannot be written.
    """
    made = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with made.open("wb") as file:
            write(file)
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)
