"""What is in files: to compare folders, and to damage a file."""

from __future__ import annotations

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files below a folder, by their path within it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path, place: int) -> None:
    """Change one bit of the byte at this place; negative places count from the end."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0x40
    path.write_bytes(data)
