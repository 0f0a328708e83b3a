"""What a person at a terminal sees besides answers; programs that read stderr get plain lines."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")

RED, GREEN, DIM = "31", "32", "2"
"""Select Graphic Rendition codes (ECMA-48)."""
COLUMNS, ROWS = 79, 24
"""Taken for the size of a terminal that does not know it."""
_NOTICED_SECONDS = 0.1
"""After which Ctrl-C is noticed on Windows, where it does not end a wait for another thread."""


def replace_what_lacks() -> None:
    """Where a console or file lacks a character (Windows code pages), it gets a replacement, and nothing fails."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def paint(text: str, colour: str, stream: TextIO) -> str:
    """Text in a colour where it is going to a terminal that has them, and ``NO_COLOR`` is not set."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and is_terminal(stream)
    understood = sys.platform != "win32" or "WT_SESSION" in os.environ  # an old Windows console shows the codes
    return f"\x1b[{colour}m{text}\x1b[0m" if wanted and understood else text


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person reads or writes there; a program without a console has no such streams at all."""
    return stream is not None and stream.isatty()


def complain(message: object) -> None:
    """One line on stderr about what went wrong; a file's name in it cannot command the terminal."""
    line = "".join(letter if letter.isprintable() else " " for letter in str(message))
    _print(f"{paint('tinygptv:', RED, sys.stderr)} {line}")


def remark(message: str) -> None:
    """One line on stderr that is good to know."""
    _print(paint(message, DIM, sys.stderr))


def _print(line: str) -> None:
    """One line on stderr, above what is shown there for now."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show a person at a terminal what takes so long; the line is gone once it is done."""
    if not is_terminal(sys.stderr):
        yield
        return
    with _tqdm()(
        desc=text,
        bar_format="{desc}",
        leave=False,
        file=sys.stderr,
        dynamic_ncols=_has_size(sys.stderr),
        ncols=COLUMNS,
        nrows=ROWS,
    ):
        yield


def progress_bar(doing: str, total: int, unit: str, unit_scale: bool = False) -> tqdm:
    """A bar on stderr at a terminal, elsewhere nothing; a context manager, at whose end it is gone.

    Args:
        doing: Such as ``captioning``.
        total: How many steps there are; ``update`` counts them.
        unit: What one step is.
        unit_scale: Whether to count in thousands, millions ... of it.
    """
    return _tqdm()(
        desc=doing,
        total=total,
        unit=unit,
        unit_scale=unit_scale,
        leave=False,
        disable=not is_terminal(sys.stderr),
        file=sys.stderr,
        mininterval=0,  # steps are long
        smoothing=0,  # batched steps end together: a rate over all of them is steadier
        dynamic_ncols=_has_size(sys.stderr),
        ncols=COLUMNS,
        nrows=ROWS,
    )


@functools.cache
def _tqdm() -> Any:
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own is for several processes, and starts one on some systems
    return tqdm


def _has_size(stream: TextIO) -> bool:
    """Whether it is a terminal that knows its size; where it was never set, that is 0 by 0."""
    try:
        return is_terminal(stream) and os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):  # a host program's own stream
        return False


def pace(rate: float) -> str:
    """A rate in steps a second, in words that keep it readable."""
    return f"{rate:.1f} a second" if rate >= 1 else f"{60 * rate:.1f} a minute"


def interruptible(work: Callable[[], T], cancel: Callable[[], object]) -> T:
    """Run ``work`` in a second thread, so that Ctrl-C is noticed in the middle of a computation.

    Args:
        work: What to do.
        cancel: Makes ``work`` end soon; called on Ctrl-C.

    Returns:
        What ``work`` returns.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; ``work`` has ended.
    """
    future: Future[T] = Future()

    def compute() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

    try:
        threading.Thread(target=compute).start()
        while not wait([future], timeout=_NOTICED_SECONDS).done:
            pass
    except KeyboardInterrupt:  # an executor would not know of a thread that was interrupted while it was started
        cancel()
        if not future.cancel():
            wait([future])
        raise
    return future.result()
