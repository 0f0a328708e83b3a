"""The loaded model and the open pictures; independent of how they are shown."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, Signal
from PySide6.QtGui import QImage

from .. import TinyGPTVError
from ..boxes import Region
from ..bundle.manifest import Manifest
from .model_thread import ModelThread
from .samples import Sample
from .saving import SavedConversation
from .settings import Settings, forget_settings, write_settings
from .sources import name_of
from .turns import Picture, Said, Sheet
from .worker import Load, Source


@dataclass(frozen=True)
class _Opening:
    """What to do with a picture once it is open."""

    path: str = ""
    said: list[Said] = field(default_factory=list)
    known_from: int = 0
    sample: Sample | None = None


class Session(QObject):
    """One model, and several pictures, each with its own conversation."""

    began = Signal(str)
    """An action of this name begins; earlier errors no longer matter."""
    failed = Signal(str)
    """An error, in one line."""
    sheet_opened = Signal(object)
    sheet_closed = Signal(object)
    sample_opened = Signal(object)
    """This :class:`.Sample` is shown and should be asked about."""
    switched = Signal()
    """Another sheet is shown, or none, or the conversation of the sheet was cleared."""
    model_changed = Signal()
    state_changed = Signal()
    seen = Signal(float)
    """The model has encoded the picture that is shown, in this many seconds."""
    saved = Signal(str)
    """A file was written to this path."""
    settings_changed = Signal()

    def __init__(self, load: Load, settings: Settings) -> None:
        """
        Args:
            load: Loads a bundle; called in another thread.
            settings: The initial settings.
        """
        super().__init__()
        self.model = ModelThread(load)
        self.settings = settings
        self.sheets: dict[int, Sheet] = {}
        """The open pictures, by number."""
        self.sheet: Sheet | None = None
        """The sheet that is shown."""
        self.manifest: Manifest | None = None
        """Manifest of the loaded model; while none is loaded, of the previous one."""
        self.bundle_name = ""
        """Name of the loaded model; empty while none is loaded."""
        self.loading = ""
        """Name of the model that is being loaded."""
        self.looking = 0
        """Number of the picture that the model is encoding."""
        self._bundle: Path | None = None
        self._wanted = settings
        self._load_request = self._number = 0
        self._openings: dict[int, _Opening] = {}
        self._closed: list[Sheet] = []
        self._connect()
        self.model.start()

    @property
    def opening(self) -> bool:
        """Whether a picture is being opened."""
        return bool(self._openings)

    @property
    def reopens(self) -> bool:
        """Whether there is a closed picture or an earlier conversation to reopen."""
        return bool(self._closed)

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions drawn on the picture that is shown."""
        shown = self.sheet.shown if self.sheet else None
        return shown.shown_regions if shown else ()

    def load(self, settings: Settings) -> None:
        """Load the model named in the settings; the settings are applied once it is loaded."""
        if settings.folder:  # whatever folder the program is started in the next time
            settings = replace(settings, bundle=str(settings.folder.absolute()))
        self.loading, self._wanted = bundle_name(settings.folder), settings
        self.began.emit(f"Loading {self.loading} …")
        picture = self.sheet.picture if self.sheet else None
        self._load_request = self.model.load(settings.folder, settings.threads, settings.memory, picture)
        self.state_changed.emit()

    def take(self, settings: Settings) -> None:
        """Apply settings, and write them to the file if they are to be remembered."""
        if settings == self.settings:
            return
        before, self.settings = self.settings, settings
        try:
            if settings.remember:
                write_settings(settings)
            elif before.remember:
                forget_settings()
        except TinyGPTVError as error:
            self.failed.emit(str(error))
        self.settings_changed.emit()

    def use(self, settings: Settings) -> None:
        """Apply the chosen settings, and reload the model if they require it."""
        loaded = _of_loading(self.settings)
        self.take(replace(settings, **loaded, recent=self.settings.recent))
        if _of_loading(settings) != loaded or not (self.bundle_name or self.loading):
            self.load(settings)

    def forget(self) -> None:
        """Delete remembered settings, including recent pictures."""
        try:
            forget_settings()  # also where nothing is remembered any more: the file may be one that cannot be read
        except TinyGPTVError as error:
            self.failed.emit(str(error))
        self.take(replace(self.settings, remember=False, recent=()))

    def open(self, source: str | QImage, sample: Sample | None = None) -> None:
        """Open a picture from a path or the clipboard, or a sample, which is asked about immediately."""
        self.began.emit(f"Opening {name_of(source)} …")
        path = source if isinstance(source, str) and sample is None else ""
        self._open(Source(source, self._next_number()), _Opening(path, sample=sample))

    def open_conversation(self, saved: SavedConversation) -> None:
        """Continue a saved conversation."""
        self.began.emit(f"Opening {saved.name} …")
        said = saved.said
        same = all(turn.model == self.bundle_name for turn in said[saved.known_from :])
        opening = _Opening(saved.path, said, saved.known_from if same else len(said))
        turns = [(turn.question, turn.text) for turn in said[opening.known_from :] if turn.answered]
        size = (saved.width, saved.height)
        self._open(Source(saved.data, self._next_number(), saved.name, turns, size), opening)

    def show(self, number: int) -> None:
        """Show another open picture; an answer about the previous one continues."""
        sheet = self.sheets[number]
        if sheet is not self.sheet:
            self._switch(sheet)
            self._look(sheet)

    def step(self, by: int) -> None:
        """Show the picture ``by`` places further; negative numbers go back."""
        if self.sheet is not None:
            numbers = list(self.sheets)
            self.show(numbers[(numbers.index(self.sheet.picture.number) + by) % len(numbers)])

    def close(self, number: int) -> None:
        """Close a picture; it can be reopened until the window is closed."""
        sheet = self.sheets[number]
        if self.looking == number:
            self.model.cancel()
        place = list(self.sheets).index(number)
        del self.sheets[number]
        self._closed.append(sheet)
        self.sheet_closed.emit(sheet)
        if sheet is self.sheet:
            self._switch(None)
            if others := list(self.sheets):
                self.show(others[min(place, len(others) - 1)])

    def close_shown(self) -> None:
        """Close the picture that is shown."""
        if self.sheet is not None:
            self.close(self.sheet.picture.number)

    def reopen(self) -> None:
        """Reopen what was closed or restarted last."""
        if self._closed:
            sheet = self._closed.pop()
            self._add(sheet)
            self._look(sheet)

    def start_over(self) -> Sheet | None:
        """Begin a new conversation about the picture that is shown; returns the previous one, which can be reopened."""
        sheet = self.sheet
        if sheet is None or not sheet.said:
            return None
        self.began.emit("")
        before = replace(sheet, picture=replace(sheet.picture, number=self._next_number()))
        self._closed.append(before)
        sheet.said, sheet.known_from, sheet.shown = [], 0, None
        self.model.look(sheet.picture, ())
        self.switched.emit()
        return before

    def save_picture(self, path: str) -> None:
        """Write the picture that is shown, with its boxes."""
        if self.sheet is not None:
            self.began.emit(f"Saving {name_of(path)} …")
            self.model.save_picture(self.sheet.picture, self.regions, path)

    # What the worker tells

    def _unloaded(self) -> None:
        self.bundle_name = ""
        self.model_changed.emit()

    def _loaded(self, bundle: Path | None, manifest: Manifest) -> None:
        if (bundle, manifest) != (self._bundle, self.manifest):
            for sheet in (*self.sheets.values(), *self._closed):
                sheet.known_from = len(sheet.said)
        self._bundle, self.manifest = bundle, manifest
        self.bundle_name, self.loading = bundle_name(bundle), ""
        self.take(replace(self.settings, **_of_loading(self._wanted)))
        self.model_changed.emit()
        self.state_changed.emit()

    def _opened(self, request: int, picture: Picture, image: QImage) -> None:
        opening = self._openings.pop(request)
        self._add(Sheet(picture, image, opening.path, opening.said, opening.known_from))
        if opening.path and not opening.said:
            self.take(self.settings.with_recent(str(Path(opening.path).absolute())))
        if opening.sample is not None:
            self.sample_opened.emit(opening.sample)

    def _looks(self, number: int) -> None:
        self.looking = number
        self.state_changed.emit()

    def _has_seen(self, number: int, seconds: float) -> None:
        self.looking = 0
        if self.sheet is not None and self.sheet.picture.number == number:
            self.seen.emit(seconds)
        self.state_changed.emit()

    def _failed(self, request: int, error: str) -> None:
        self.failed.emit(error)

    def _finished(self, request: int) -> None:
        self._openings.pop(request, None)
        if request == self._load_request:
            self.loading = ""
        self.looking = 0
        self.state_changed.emit()

    # Inside

    def _open(self, source: Source, opening: _Opening) -> None:
        self._openings[self.model.open(source)] = opening
        self.state_changed.emit()

    def _add(self, sheet: Sheet) -> None:
        self.sheets[sheet.picture.number] = sheet
        self.sheet_opened.emit(sheet)
        self._switch(sheet)

    def _switch(self, sheet: Sheet | None) -> None:
        self.sheet = sheet
        self.switched.emit()
        self.state_changed.emit()

    def _look(self, sheet: Sheet) -> None:
        """Have the model encode a picture, unless it is answering: then that happens with the next question."""
        if not self.model.answering:
            self.model.look(sheet.picture, sheet.known())

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _connect(self) -> None:
        worker = self.model.worker
        worker.unloaded.connect(self._unloaded)
        worker.loaded.connect(self._loaded)
        worker.opened.connect(self._opened)
        worker.looking.connect(self._looks)
        worker.seen.connect(self._has_seen)
        worker.saved.connect(self.saved)
        worker.failed.connect(self._failed)
        worker.finished.connect(self._finished)
        self.model.busy_changed.connect(self.state_changed)


def _of_loading(settings: Settings) -> dict[str, Any]:
    """The settings that require the model to be loaded again when they change."""
    return {name: getattr(settings, name) for name in ("bundle", "threads", "low_memory")}


def bundle_name(bundle: Path | None) -> str:
    """The name of a bundle for display."""
    return bundle.resolve().name if bundle else "built-in demo"
