"""The window's interface to the worker's thread: it sends requests and never blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PySide6.QtCore import QThread, Signal

from .. import AnswerOptions, Cancellation
from ..boxes import Region
from ..loading import MemoryMode
from .turns import Picture
from .worker import Load, Request, Source, Turns, Worker


class ModelThread(QThread):
    """Runs one request at a time: a new request cancels the running one, unless it continues it.

    Every method returns the number of its request immediately. Use it from the window's thread only.
    """

    busy_changed = Signal(bool)

    _load = Signal(object, object, object, str, object)
    _open = Signal(object, object)
    _look = Signal(object, object, object)
    _ask = Signal(object, object, str, object, object)
    _save = Signal(object, object, object, str)

    def __init__(self, load: Load) -> None:
        """
        Args:
            load: Loads a bundle; called in the worker's thread.
        """
        super().__init__()
        self.worker = Worker(load)
        """Connect to its signals, but do not call its slots directly: they would run in the caller's thread."""
        self.worker.moveToThread(self)
        self._load.connect(self.worker.load)
        self._open.connect(self.worker.open)
        self._look.connect(self.worker.look)
        self._ask.connect(self.worker.ask)
        self._save.connect(self.worker.save_picture)
        self.worker.finished.connect(self._end)
        self._number = 0
        self._running: dict[int, Cancellation] = {}
        """Requests that the worker has not finished, by number."""
        self._questions: set[int] = set()

    @property
    def busy(self) -> bool:
        """Whether the worker has unfinished requests."""
        return bool(self._running)

    @property
    def answering(self) -> bool:
        """Whether any unfinished request is a question."""
        return bool(self._questions)

    def load(self, bundle: Path | None, threads: int | None, memory: MemoryMode, picture: Picture | None) -> int:
        """Load a bundle; see :meth:`.Worker.load`."""
        request = self._begin()
        self._load.emit(request, bundle, threads, memory, picture)
        return request.number

    def open(self, source: Source) -> int:
        """Open a picture; see :meth:`.Worker.open`."""
        request = self._begin()
        self._open.emit(request, source)
        return request.number

    def look(self, picture: Picture, turns: Turns) -> int:
        """Look at a picture again; see :meth:`.Worker.look`."""
        request = self._begin()
        self._look.emit(request, picture, turns)
        return request.number

    def ask(self, picture: Picture, question: str, turns: Turns, options: AnswerOptions, *, goes_on: bool) -> int:
        """Ask about a picture; see :meth:`.Worker.ask`. ``goes_on`` first lets a running encoding complete."""
        request = self._begin(goes_on)
        self._questions.add(request.number)
        self._ask.emit(request, picture, question, turns, options)
        return request.number

    def save_picture(self, picture: Picture, regions: Sequence[Region], path: str) -> int:
        """Write a picture after the running requests; see :meth:`.Worker.save_picture`."""
        request = self._begin(goes_on=True)
        self._save.emit(request, picture, regions, path)
        return request.number

    def cancel(self) -> None:
        """Cancel all requests; a bundle that is being loaded is still loaded."""
        for cancellation in self._running.values():
            cancellation.cancel()

    def close(self) -> None:
        """End the thread; waits for a bundle that is being loaded, since that cannot be cancelled."""
        self.cancel()
        self.requestInterruption()
        self.quit()
        self.wait()

    def _begin(self, goes_on: bool = False) -> Request:
        if not goes_on:
            self.cancel()
        self._number += 1
        request = Request(self._number, Cancellation())
        self._running[request.number] = request.cancellation
        if len(self._running) == 1:
            self.busy_changed.emit(True)
        return request

    def _end(self, number: int) -> None:
        del self._running[number]
        self._questions.discard(number)
        if not self._running:
            self.busy_changed.emit(False)
