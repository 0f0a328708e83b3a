"""Where a question is typed: Enter asks, Shift+Enter begins a line, a picture may be pasted."""

from __future__ import annotations

from PySide6.QtCore import QMimeData, QSize, Qt, Signal
from PySide6.QtGui import QKeyEvent
from PySide6.QtWidgets import QPlainTextEdit, QSizePolicy

from .sources import has_picture

_LINES = 3


class QuestionField(QPlainTextEdit):
    """A few lines of text."""

    entered = Signal()
    """Enter was pressed."""
    given = Signal(QMimeData)
    """Something was pasted or dropped that has a picture in it."""

    def __init__(self) -> None:
        super().__init__()
        self.setPlaceholderText("Ask about the picture …")
        self.setAccessibleName("Question")
        self.setTabChangesFocus(True)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def put(self, text: str) -> None:
        """Replace the text, which can be undone, and go on typing behind it."""
        self.selectAll()
        self.insertPlainText(text)
        self.setFocus()

    def sizeHint(self) -> QSize:  # noqa: N802
        margins = self.contentsMargins().top() + self.contentsMargins().bottom()
        document = 2 * round(self.document().documentMargin())
        return QSize(320, _LINES * self.fontMetrics().lineSpacing() + document + margins)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        shifted = event.modifiers() & Qt.KeyboardModifier.ShiftModifier
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and not shifted:
            self.entered.emit()
        else:
            super().keyPressEvent(event)

    def canInsertFromMimeData(self, source: QMimeData) -> bool:  # noqa: N802
        return _is_picture(source) or super().canInsertFromMimeData(source)

    def insertFromMimeData(self, source: QMimeData) -> None:  # noqa: N802
        if _is_picture(source):
            self.given.emit(source)
        else:
            super().insertFromMimeData(source)


def _is_picture(source: QMimeData) -> bool:
    """Whether a picture is meant: spreadsheets and word processors copy one beside the text."""
    return has_picture(source) and (source.hasUrls() or not source.hasText())
