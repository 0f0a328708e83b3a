"""Stopping a computation from another thread, within one operator of ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from .errors import CancellationError

if TYPE_CHECKING:
    from onnxruntime import RunOptions

T = TypeVar("T")


class Cancellation:
    """Pass it to a call, then cancel the call from any thread, at any time. It cannot be reset.

    Example:
        >>> cancellation = Cancellation()
        >>> stream = model.stream("photo.jpg", "What is this?", cancellation=cancellation)
        >>> # meanwhile, in another thread
        >>> cancellation.cancel()
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested = False
        self._ends: list[Callable[[], object]] = []
        """Functions that end running computations and waits."""

    @property
    def requested(self) -> bool:
        """Whether it was cancelled."""
        return self._requested

    def cancel(self) -> None:
        """Stop what is running with it, image encoding and prefill included, and what would run next."""
        with self._lock:
            self._requested = True
            for end in self._ends:
                end()

    def check(self) -> None:
        """Raise CancellationError if it was cancelled."""
        if self._requested:
            raise CancellationError("cancelled")

    def wait(self, future: Future[T]) -> T:
        """Wait for another thread's result. Cancelling ends the wait, not the work.

        Raises:
            CancellationError: It was cancelled, before or meanwhile.
        """
        over = threading.Event()
        with self._ended_by(over.set):
            future.add_done_callback(lambda future: over.set())
            over.wait()
        if not future.done():
            self.check()
        return future.result()

    @contextmanager
    def stopping(self, options: RunOptions) -> Iterator[None]:
        """While a session runs with these options, cancelling ends that run.

        Raises:
            CancellationError: It was cancelled, before or meanwhile.
        """
        with self._ended_by(partial(setattr, options, "terminate", True)):
            try:
                yield
            except Exception as error:
                # Whatever onnxruntime calls a run that was ended from outside.
                if self._requested:
                    raise CancellationError("cancelled") from error
                raise

    @contextmanager
    def _ended_by(self, end: Callable[[], object]) -> Iterator[None]:
        with self._lock:
            self.check()
            self._ends.append(end)
        try:
            yield
        finally:
            with self._lock:
                self._ends.remove(end)
