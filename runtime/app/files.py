"""Opening and saving files, and the dialogs that ask for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PySide6.QtCore import QMimeData
from PySide6.QtGui import QGuiApplication, QImage
from PySide6.QtWidgets import QWidget

from .. import TinyGPTVError
from . import choosers
from .saving import open_conversation, save_conversation
from .session import Session
from .sources import pictures_in


class Files:
    """Opens files in the session; a file that cannot be opened is reported, and the others are still opened."""

    def __init__(self, parent: QWidget, session: Session) -> None:
        """
        Args:
            parent: Parent of the dialogs.
            session: The session that opens the files.
        """
        self._parent, self._session = parent, session

    def open(self, *sources: str | QImage) -> None:
        """Open pictures, from paths or the clipboard, and conversations that were saved as JSON."""
        self._session.began.emit("")
        errors: list[str] = []
        for source in sources:
            if isinstance(source, str) and source.lower().endswith(".json"):
                try:
                    self._session.open_conversation(open_conversation(Path(source)))
                except TinyGPTVError as error:
                    errors.append(str(error))
            else:
                self._session.open(source)
        for text in errors:  # now, since each picture clears what went wrong before
            self._session.failed.emit(text)

    def open_bundle(self, bundle: Path | None) -> None:
        """Load another model, the built-in demo if None."""
        self._session.load(replace(self._session.settings, bundle=str(bundle) if bundle else ""))

    def take(self, data: QMimeData) -> None:
        """Open dropped or pasted data."""
        sources = pictures_in(data)
        self.open(*sources)
        if not sources:
            self._session.failed.emit("there is no picture in what was pasted or dropped; expected one, or a file")

    def paste(self) -> None:
        """Open the picture on the clipboard."""
        self.take(QGuiApplication.clipboard().mimeData())

    def save_conversation(self, path: Path) -> None:
        """Write the conversation that is shown to a file."""
        if self._session.sheet is not None:
            self._session.began.emit("")
            try:
                save_conversation(self._session.sheet, path)
            except TinyGPTVError as error:
                self._session.failed.emit(str(error))
            else:
                self._session.saved.emit(str(path))

    def choose_pictures(self) -> None:
        """Ask which pictures to open."""
        choosers.choose_pictures(self._parent, self.open)

    def choose_bundle(self) -> None:
        """Ask which model to load."""
        choosers.choose_bundle(self._parent, self.open_bundle)

    def choose_conversation(self) -> None:
        """Ask which saved conversation to open."""
        choosers.choose_conversation(self._parent, self.open)

    def choose_conversation_file(self) -> None:
        """If there is a conversation, ask where to save it."""
        sheet = self._session.sheet
        if sheet is not None and sheet.said:
            choosers.save_conversation(self._parent, sheet.picture.name, self.save_conversation)

    def choose_picture_file(self) -> None:
        """Ask where to save the picture with its boxes."""
        if self._session.sheet is not None:
            choosers.save_picture(self._parent, self._session.sheet.picture.name, self._session.save_picture)
