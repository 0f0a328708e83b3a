"""Paths as people type them, and as terminals insert them when files are dropped."""

from __future__ import annotations

import os
import shlex
import sys
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..errors import ArgumentError
from ..folder import SUFFIXES

_FILE_URL = "file://"


def paths_in(text: str) -> list[str]:
    """The paths in a command's line: quoted, with escapes, or as ``file://`` addresses.

    Raises:
        ArgumentError: A quotation mark is not closed.
    """
    whole = os.path.expanduser(text.strip("\"'"))
    if not text or os.path.exists(whole):
        return [whole] if text else []
    if sys.platform == "win32" and not text.startswith(_FILE_URL):  # where backslashes are separators, not quotes
        text = text.removeprefix("& ")  # PowerShell's
        return [part.strip("\"'") for part in shlex.split(text, posix=False)] if text[:1] in "\"'" else [text]
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise ArgumentError(f"{text} has a quotation mark that is not closed; expected PATH, or 'PATH'") from error
    return [_from_address(part) if part.startswith(_FILE_URL) else os.path.expanduser(part) for part in parts]


def dropped_in(line: str) -> list[str]:
    """The pictures in a line that consists only of their paths; empty for a question.

    Args:
        line: A line without white space at its ends. A relative path counts only if the file exists and has a picture's
            suffix: a question of one word may be the name of a file, too.
    """
    try:
        paths = paths_in(line)
    except ArgumentError:  # an apostrophe
        return []
    return paths if all(map(_is_meant, paths)) else []


def _is_meant(path: str) -> bool:
    if os.path.isabs(path):
        return os.path.exists(path) or _is_picture(path)
    return os.path.isfile(path) and _is_picture(path)


def _is_picture(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in SUFFIXES


def _from_address(address: str) -> str:
    return url2pathname(urlsplit(address).path)
