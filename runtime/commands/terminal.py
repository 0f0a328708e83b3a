"""What a person at a terminal sees besides answers; programs that read stderr get plain lines."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TextIO, TypeVar

T = TypeVar("T")

RED, GREEN, DIM = "31", "32", "2"
"""Select Graphic Rendition codes (ECMA-48)."""
_NOTICED_SECONDS = 0.1
"""After which Ctrl-C is noticed on Windows, where it does not end a wait for another thread."""


def paint(text: str, colour: str, stream: TextIO) -> str:
    """Text in a colour where it is going to a terminal that has them, and nobody has set ``NO_COLOR``."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and is_terminal(stream)
    understood = sys.platform != "win32" or "WT_SESSION" in os.environ  # an old Windows console shows the codes
    return f"\x1b[{colour}m{text}\x1b[0m" if wanted and understood else text


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person reads or writes there; a program without a console has no such streams at all."""
    return stream is not None and stream.isatty()


def complain(message: object) -> None:
    """One line on stderr about what went wrong; a file's name in it cannot command the terminal."""
    line = "".join(letter if letter.isprintable() else " " for letter in str(message))
    print(f"{paint('tinygptv:', RED, sys.stderr)} {line}", file=sys.stderr, flush=True)


def remark(message: str) -> None:
    """One line on stderr that is good to know."""
    print(paint(message, DIM, sys.stderr), file=sys.stderr, flush=True)


@contextmanager
def status(text: str) -> Iterator[None]:
    """Tell a person at a terminal what takes so long; the line is gone once it is done."""
    line = Line()
    line.show(text)
    try:
        yield
    finally:
        line.clear()


class Line:
    """A line on stderr that changes, at a terminal; elsewhere nothing."""

    def __init__(self) -> None:
        self._shown = is_terminal(sys.stderr)
        self._length = 0

    def show(self, text: str) -> None:
        """Put ``text`` in the place of what is shown."""
        if self._shown:
            text = text[: shutil.get_terminal_size().columns - 1]  # one that wraps could not be taken back
            print("\r" + text.ljust(self._length), end="", file=sys.stderr, flush=True)
            self._length = len(text)

    def clear(self) -> None:
        """Take it away, so that another line can be printed."""
        if self._shown and self._length:
            print("\r" + " " * self._length, end="\r", file=sys.stderr, flush=True)
            self._length = 0


class Progress:
    """How much of some work is done, how fast it goes, and what time is left at that rate."""

    def __init__(self, doing: str, total: int) -> None:
        """
        Args:
            doing: Such as ``captioning``.
            total: How many steps there are.
        """
        self._doing = doing
        self._total = total
        self._done = 0
        self._line = Line()
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._started

    def advance(self, steps: int = 1) -> None:
        """Say that so many more steps are done."""
        self._done += steps
        self.show()

    def show(self) -> None:
        """Show how it stands."""
        text = f"{self._doing} {self._done} of {self._total}"
        if self._done:
            rate = self._done / max(self.seconds, 1e-9)
            text += f", {pace(rate)}, {duration((self._total - self._done) / rate)} left"
        self._line.show(text)

    def clear(self) -> None:
        """Take the line away, so that another can be printed."""
        self._line.clear()


def pace(rate: float) -> str:
    """A rate in steps a second, in words that keep it readable."""
    return f"{rate:.1f} a second" if rate >= 1 else f"{60 * rate:.1f} a minute"


def duration(seconds: float) -> str:
    """``8 s``, ``2:05`` or ``1:00:09``."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}" if minutes else f"{rest} s"


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
