"""The worker's thread, as the window sees it: asks of it what to do, and waits for nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QThread, Signal
from PySide6.QtGui import QImage

from .. import Cancellation, TinyGPTV
from .worker import Worker


class ModelThread(QThread):
    """One thing at a time: what is asked for cancels what is being done. Belongs to the window's thread."""

    busy_changed = Signal(bool)

    _load = Signal(object, object)
    _open = Signal(object, object)
    _ask = Signal(str, object)
    _reset = Signal()
    """To the worker, with the Cancellation of what can be cancelled."""

    def __init__(self, load: Callable[[Path | None], TinyGPTV]) -> None:
        """
        Args:
            load: Loads a bundle; called in this thread.
        """
        super().__init__()
        self.worker = Worker(load)
        """Its signals are for the window; its slots are not: they would run where they are called."""
        self.worker.moveToThread(self)
        self._load.connect(self.worker.load)
        self._open.connect(self.worker.open)
        self._ask.connect(self.worker.ask)
        self._reset.connect(self.worker.reset)
        self.worker.finished.connect(self._end)
        self._asked_for = 0
        """What the worker has not done yet."""
        self._cancellation = Cancellation()
        """Of the last of it."""

    @property
    def busy(self) -> bool:
        """Whether the worker has anything to do."""
        return self._asked_for > 0

    def load(self, bundle: Path | None) -> None:
        """Load a bundle; see :meth:`.Worker.load`."""
        self._load.emit(bundle, self._begin())

    def open(self, source: str | QImage) -> None:
        """Open a picture; see :meth:`.Worker.open`."""
        self._open.emit(source, self._begin())

    def ask(self, question: str) -> None:
        """Ask about it; see :meth:`.Worker.ask`."""
        self._ask.emit(question, self._begin())

    def reset(self) -> None:
        """Begin another conversation; see :meth:`.Worker.reset`."""
        self._begin()
        self._reset.emit()

    def cancel(self) -> None:
        """End what is being done; a bundle that is being loaded is loaded all the same."""
        self._cancellation.cancel()

    def close(self) -> None:
        """End the thread; waits for what cannot be cancelled, a bundle that is being loaded."""
        self.cancel()
        self.requestInterruption()
        self.quit()
        self.wait()

    def _begin(self) -> Cancellation:
        self._cancellation.cancel()
        self._cancellation = Cancellation()
        self._asked_for += 1
        if self._asked_for == 1:
            self.busy_changed.emit(True)
        return self._cancellation

    def _end(self) -> None:
        self._asked_for -= 1
        if self._asked_for == 0:
            self.busy_changed.emit(False)
