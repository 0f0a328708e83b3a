"""The row at the top: which model answers, and what is done most often."""

from __future__ import annotations

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QWidget

from . import theme
from .icons import IconButton, program_icon

_NAME_WIDTH = 260


class Header(QWidget):
    """Everything here is in the menus too."""

    model_wanted = Signal()
    picture_wanted = Signal()
    save_wanted = Signal()
    settings_wanted = Signal()

    def __init__(self) -> None:
        super().__init__()
        mark = QLabel()
        mark.setPixmap(program_icon().pixmap(28, 28))
        mark.setFixedSize(28, 28)
        name = QLabel("tinygptv")
        name.setProperty("role", "heading")
        self._model = QPushButton()
        self._model.setProperty("role", "chip")
        self._model.setCursor(Qt.CursorShape.PointingHandCursor)
        self._model.clicked.connect(self.model_wanted)
        self._save = IconButton("save", "Save the conversation", 32)
        row = QHBoxLayout(self)
        row.setContentsMargins(16, 8, 12, 4)
        row.setSpacing(theme.SPACE)
        for widget in (mark, name, self._model):
            row.addWidget(widget)
        row.addStretch(1)
        for button, signal in (
            (IconButton("picture", "Open a picture", 32), self.picture_wanted),
            (self._save, self.save_wanted),
            (IconButton("settings", "Settings", 32), self.settings_wanted),
        ):
            button.clicked.connect(signal)
            row.addWidget(button)
        self.show_model("", loading=False)
        self.show_savable(False)

    def show_model(self, name: str, *, loading: bool) -> None:
        """Say which model answers."""
        text = f"Loading {name} …" if loading else name or "no model"
        self._model.ensurePolished()
        shown = self._model.fontMetrics().elidedText(text, Qt.TextElideMode.ElideMiddle, _NAME_WIDTH)
        self._model.setText(f"{shown} ▾".replace("&", "&&"))
        self._model.setAccessibleName(f"Model: {text}. Choose another")
        self._model.setToolTip("Choose another model: a bundle's folder")

    def show_savable(self, savable: bool) -> None:
        """Whether there is a conversation to save."""
        self._save.setEnabled(savable)
