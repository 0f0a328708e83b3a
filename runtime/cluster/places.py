"""Files on any file system that pyarrow or fsspec can reach: a path of this machine, or a URI such as ``s3://``."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ArgumentError, reason_of

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

T = TypeVar("T")

TRIES = 4
"""Maximum number of attempts to read from another machine; each pause is twice as long as the one before."""
_FIRST_PAUSE = 0.5
"""Seconds before the second attempt."""


def is_local(name: str) -> bool:
    """Whether a name is a path of this machine."""
    return "://" not in name


def absolute(name: str) -> str:
    """A name that is valid in every working folder."""
    return os.path.abspath(name) if is_local(name) else name


def place_of(name: str) -> tuple[FileSystem, str]:
    """The file system of a path or URI, and the path within it.

    Raises:
        ArgumentError: No installed library supports the scheme, or the file system refuses access.
    """
    from pyarrow.fs import LocalFileSystem

    if is_local(name):
        return LocalFileSystem(), os.path.abspath(name).replace(os.sep, "/")
    scheme, rest = name.split("://", 1)
    authority, _, path = rest.partition("/")
    file_system, root = _file_system(f"{scheme}://{authority}")
    return file_system, f"{root}/{path}".rstrip("/")


@functools.lru_cache(maxsize=64)
def _file_system(uri: str) -> tuple[Any, str]:
    import pyarrow
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        found, root = FileSystem.from_uri(f"{uri}/")
        return found, root.rstrip("/")
    except pyarrow.ArrowInvalid as error:
        if "nrecognized filesystem" not in str(error):
            raise ArgumentError(f"{uri} cannot be opened: {error}") from error
    except OSError as error:
        raise ArgumentError(f"{uri} cannot be opened: {reason_of(error)}") from error
    import fsspec

    try:
        found, root = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError, OSError) as error:
        raise ArgumentError(f"{uri} cannot be opened: {error}") from error
    return PyFileSystem(FSSpecHandler(found)), root.rstrip("/")


def persistently(work: Callable[[], T], *, local: bool) -> T:
    """Access a file; on another machine, temporary failures are retried.

    Raises:
        OSError: All attempts failed, or the failure is permanent.
    """
    for left in reversed(range(1 if local else TRIES)):
        try:
            return work()
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except OSError:
            if not left:
                raise
            time.sleep(_FIRST_PAUSE * 2 ** (TRIES - 1 - left))
    raise AssertionError


def read_bytes(name: str) -> bytes:
    """The complete content of a file.

    Raises:
        OSError: It cannot be read.
    """

    def read() -> bytes:
        file_system, path = place_of(name)
        with file_system.open_input_file(path) as file:
            return bytes(file.read())

    return persistently(read, local=is_local(name))
