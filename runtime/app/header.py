"""The top row: the loaded model and the most frequent actions."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QMenu, QPushButton, QSizePolicy, QWidget

from . import theme
from .icons import IconButton, program_icon

_WIDEST, _MARGIN = 320, 44


class Header(QWidget):
    """The top row; every action in it is in the menus too."""

    model_wanted = Signal()
    demo_wanted = Signal()
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
        self._model = _ElidedButton()
        models = QMenu(self)
        models.addAction("&Built-in demo").triggered.connect(self.demo_wanted)
        models.addAction("&Choose a model …").triggered.connect(self.model_wanted)
        self._model.setMenu(models)
        self._save = IconButton("save", "Save the conversation", 32)
        row = QHBoxLayout(self)
        row.setContentsMargins(16, 8, 12, 4)
        row.setSpacing(theme.SPACE)
        row.addWidget(mark)
        row.addWidget(name)
        row.addWidget(self._model, 1)
        row.addStretch(0)
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
        """Show the name of the model, and whether it is being loaded."""
        text = f"Loading {name} …" if loading else name or "no model"
        self._model.show_text(text)
        self._model.setAccessibleName(f"Model: {text}. Choose another")
        self._model.setToolTip("Choose another model")

    def show_savable(self, savable: bool) -> None:
        """Set whether there is a conversation to save."""
        self._save.setEnabled(savable)


class _ElidedButton(QPushButton):
    """A button whose text is elided if it does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self._whole = ""
        self.setProperty("role", "chip")
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)

    def show_text(self, text: str) -> None:
        """Set the text, elided if it does not fit."""
        self._whole = text
        self.ensurePolished()
        self.setMaximumWidth(min(_WIDEST, self.fontMetrics().horizontalAdvance(text) + _MARGIN))
        self._elide()
        self.updateGeometry()

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(self.maximumWidth(), super().sizeHint().height())

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(60, super().sizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        super().resizeEvent(event)
        self._elide()

    def _elide(self) -> None:
        room = max(0, min(self.width(), self.maximumWidth()) - _MARGIN)
        shown = self.fontMetrics().elidedText(self._whole, Qt.TextElideMode.ElideMiddle, room + 1)
        self.setText(f"{shown} ▾".replace("&", "&&"))
