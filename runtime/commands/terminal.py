"""Output for a person at a terminal, besides answers; programs that read stderr get plain lines."""

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
"""The assumed size of a terminal that does not report one."""
_NOTICED_SECONDS = 0.1
"""Interval at which Ctrl-C is checked on Windows, where it does not interrupt waiting for a thread."""


def replace_what_lacks() -> None:
    """Replace characters that the output cannot encode (Windows code pages) instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def paint(text: str, colour: str, stream: TextIO) -> str:
    """Add a colour to text if the stream is a terminal with colours and ``NO_COLOR`` is not set."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and is_terminal(stream)
    understood = sys.platform != "win32" or "WT_SESSION" in os.environ  # an old Windows console shows the codes
    return f"\x1b[{colour}m{text}\x1b[0m" if wanted and understood else text


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal; None, as in a program without a console, is not."""
    return stream is not None and stream.isatty()


def complain(message: object) -> None:
    """Print an error as one line on stderr; control characters, in a file name for example, are made harmless."""
    line = "".join(letter if letter.isprintable() else " " for letter in str(message))
    _print(f"{paint('tinygptv:', RED, sys.stderr)} {line}")


def remark(message: str) -> None:
    """Print a remark as one line on stderr."""
    _print(paint(message, DIM, sys.stderr))


def _print(line: str) -> None:
    """Print one line on stderr, above any progress bar."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show a message at a terminal while something takes long; it is removed at the end."""
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
    """A progress bar at a terminal, otherwise nothing; a context manager that removes it at the end.

    Args:
        doing: Name of the activity, such as ``captioning``.
        total: Number of steps; ``update`` counts them.
        unit: Name of one step.
        unit_scale: Whether to show counts in thousands, millions and so on.
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
    """Whether a terminal reports its size; one whose size was never set reports 0 by 0."""
    try:
        return is_terminal(stream) and os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):  # a host program's own stream
        return False


def pace(rate: float) -> str:
    """A rate in steps per second, as readable text."""
    return f"{rate:.1f} a second" if rate >= 1 else f"{60 * rate:.1f} a minute"


def number_of(pictures: int) -> str:
    """Of pictures, as readable text."""
    return "1 picture" if pictures == 1 else f"{pictures} pictures"


def tally(captioned: int, skipped: int, failed: int, seconds: float) -> str:
    """What a run over many pictures has done so far, as readable text."""
    rate = f"; {pace(captioned / seconds)}" if captioned else ""
    return f"{captioned} captioned, {skipped} done before, {failed} failed{rate}"


def interruptible(work: Callable[[], T], cancel: Callable[[], object]) -> T:
    """Run ``work`` in a second thread, so that Ctrl-C is noticed during a computation.

    Args:
        work: The function to run.
        cancel: Makes ``work`` return soon; called on Ctrl-C.

    Returns:
        The result of ``work``.

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
