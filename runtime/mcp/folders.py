"""The files that the tools may read: those in folders that both the user and the client have allowed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..errors import ArgumentError

_SCHEME = "file"


class Folders:
    """Nothing outside the folders is read or revealed; links are resolved first."""

    def __init__(self, allowed: Iterable[Path]) -> None:
        """
        Args:
            allowed: Folders that the user has chosen.

        Raises:
            ArgumentError: A path is not a folder.
        """
        given = list(allowed)
        for folder in given:
            if not folder.is_dir():
                raise ArgumentError(f"--allow {folder} is not a folder; expected one with pictures")
        self.allowed = [Path(os.path.realpath(folder)) for folder in given]

    def find(self, path: str, roots: Sequence[str] | None = None) -> Path:
        """The file at a path, if it may be read.

        Args:
            path: Absolute, or relative to one of the folders; ``~`` and ``file://`` addresses are understood.
            roots: Addresses of the folders that the client opened, if it tells. They narrow what the user allowed, and
                are all that counts where the user allowed nothing by name.

        Returns:
            Its path without any link. It need not be there.

        Raises:
            ArgumentError: It may not be read; says which folders may be.
        """
        opened = [Path(os.path.realpath(root)) for root in map(_local, roots or ()) if root]
        folders = self.allowed or opened
        if not folders:
            raise ArgumentError(
                "no folder may be read; start the server as tinygptv mcp --allow FOLDER, or open a folder in the client"
            )
        name = os.path.expanduser(_local(path) or path)
        try:
            places = [Path(os.path.realpath(folder / name)) for folder in folders]  # of an absolute one, all the same
        except ValueError as error:
            raise ArgumentError(
                "path holds a character that file names cannot have; give a file that may be read"
            ) from error
        found = next((place for place in places if place.is_file() and _within(place, folders)), places[0])
        for bounds in (folders, opened) if roots else (folders,):
            if not _within(found, bounds):
                named = ", ".join(map(str, bounds)) or "a folder of this machine"
                raise ArgumentError(f"{path} is outside of the folders that may be read; expected a picture in {named}")
        return found


def _within(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _local(address: str) -> str | None:
    """The path of a ``file://`` address of this machine; None of anything else."""
    parts = urlsplit(address)
    if parts.scheme != _SCHEME or parts.netloc not in ("", "localhost"):
        return None
    return url2pathname(parts.path)
