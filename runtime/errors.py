"""Every error this package raises on purpose, so that a host program can catch one class."""

from __future__ import annotations

import errno
import re

_OF_MEMORY = re.compile(
    "bad_alloc|bad allocation|failed to allocate|cannot allocate|failed to map segment|out of memory|start new thread",
    re.IGNORECASE,
)
"""Phrases with which libraries report a lack of memory, and Python that it cannot start a thread."""


class TinyGPTVError(Exception):
    """Base of all errors that tinygptv raises on purpose; its text is one line meant for the user."""


class ArgumentError(TinyGPTVError, ValueError):
    """An argument is out of range or does not fit the model."""


class BundleError(TinyGPTVError):
    """A bundle is missing, damaged, incomplete or of another format version."""


class ImageError(TinyGPTVError):
    """An image cannot be read, is truncated, or is larger than the limit."""


class ContextOverflowError(TinyGPTVError):
    """Prompt and new tokens together do not fit in the model's context."""


class CancellationError(TinyGPTVError):
    """The call was cancelled before it was complete."""


class MemoryShortageError(TinyGPTVError, MemoryError):
    """There is not enough memory; says how much is needed and what would help."""


class ExportError(TinyGPTVError):
    """The published files cannot be turned into a bundle; names the file and key that stopped it."""


def reason_of(error: BaseException) -> str:
    """The reason of a failure, for a message: the system's words, without error numbers or Python's names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeError):
        return "it is not UTF-8 text"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error)


def line_of(error: BaseException) -> str:
    """:func:`reason_of` with the affected file, if the system names one: a complete message."""
    name = error.filename if isinstance(error, OSError) else None
    return reason_of(error) if name is None else f"{name}: {reason_of(error)}"


def is_memory_shortage(error: BaseException) -> bool:
    """Whether an error is due to a lack of memory, however a library reports it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return _OF_MEMORY.search(str(error)) is not None
