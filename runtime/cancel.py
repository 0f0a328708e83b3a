"""Stopping a computation from another thread: within one operator of ONNX Runtime, wherever it stands."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import CancellationError

if TYPE_CHECKING:
    from onnxruntime import RunOptions


class Cancellation:
    """Give it to a call, and cancel that call from any thread, any time; once cancelled it stays so.

    Example:
        >>> cancellation = Cancellation()
        >>> stream = model.stream("photo.jpg", "What is this?", cancellation=cancellation)
        >>> # meanwhile, in another thread
        >>> cancellation.cancel()
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested = False
        self._runs: list[RunOptions] = []

    @property
    def requested(self) -> bool:
        """Whether it was cancelled."""
        return self._requested

    def cancel(self) -> None:
        """Stop what is running with it, image encoding and prefill included, and whatever would run next."""
        with self._lock:
            self._requested = True
            for options in self._runs:
                options.terminate = True

    def check(self) -> None:
        """Raise CancellationError if it was cancelled."""
        if self._requested:
            raise CancellationError("cancelled")

    @contextmanager
    def stopping(self, options: RunOptions) -> Iterator[None]:
        """While a session runs with these options, cancelling ends that run.

        Raises:
            CancellationError: It was cancelled, before or meanwhile.
        """
        with self._lock:
            self.check()
            self._runs.append(options)
        try:
            yield
        except Exception as error:
            # Whatever onnxruntime calls a run that was ended from outside.
            if self._requested:
                raise CancellationError("cancelled") from error
            raise
        finally:
            with self._lock:
                self._runs.remove(options)
