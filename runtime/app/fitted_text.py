"""Selectable text in a field that is as high as the text."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QSize, Qt
from PySide6.QtGui import QTextBlockFormat, QTextCursor, QTextOption, QWheelEvent
from PySide6.QtWidgets import QFrame, QSizePolicy, QTextEdit

from . import theme


class FittedText(QTextEdit):
    """A field as high as its text, at most as wide as its parent; appending text does not lose the selection."""

    def __init__(self, name: str, highest: int = 1 << 20) -> None:
        """
        Args:
            name: Accessible name, for screen readers.
            highest: Maximum height in pixels; longer text scrolls.
        """
        super().__init__()
        self._highest = highest
        self._shown = ""
        self.setAccessibleName(name)
        self.setReadOnly(True)
        self.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setStyleSheet("background: transparent; border: none;")
        self.setWordWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.setTabChangesFocus(True)
        self.document().setDocumentMargin(0)
        self.document().setUndoRedoEnabled(False)
        self.viewport().setAutoFillBackground(False)
        self.document().documentLayout().documentSizeChanged.connect(self._fit)

    def put(self, text: str) -> None:
        """Show a text; if it extends the previous text, only the new part is inserted, so that a selection is kept."""
        cursor = QTextCursor(self.document())
        cursor.beginEditBlock()
        kept = self._shown if self._shown and text.startswith(self._shown) else ""
        if not kept:
            cursor.select(QTextCursor.SelectionType.Document)
            cursor.removeSelectedText()
            spaced = QTextBlockFormat()
            spaced.setLineHeight(theme.LINE_HEIGHT, QTextBlockFormat.LineHeightTypes.MinimumHeight.value)
            cursor.setBlockFormat(spaced)
        cursor.movePosition(QTextCursor.MoveOperation.End)
        cursor.insertText(text[len(kept) :])
        cursor.endEditBlock()
        self._shown = text
        self.updateGeometry()

    def sizeHint(self) -> QSize:  # noqa: N802
        self.ensurePolished()
        width = self.fontMetrics().size(0, self._shown).width()
        return QSize(width + 4, self.minimumHeight())

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(24, theme.LINE_HEIGHT)

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        if self.verticalScrollBar().maximum() == 0:
            event.ignore()  # it is the conversation that scrolls
        else:
            super().wheelEvent(event)

    def changeEvent(self, event: QEvent) -> None:  # noqa: N802
        super().changeEvent(event)
        if event.type() in (QEvent.Type.FontChange, QEvent.Type.StyleChange):
            self.updateGeometry()

    def _fit(self) -> None:
        wanted = max(theme.LINE_HEIGHT, round(self.document().size().height()))
        scrolls = wanted > self._highest
        policy = Qt.ScrollBarPolicy.ScrollBarAsNeeded if scrolls else Qt.ScrollBarPolicy.ScrollBarAlwaysOff
        self.setVerticalScrollBarPolicy(policy)
        self.setFixedHeight(self._highest if scrolls else wanted)
