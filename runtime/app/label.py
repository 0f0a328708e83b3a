"""Labels for text with arbitrary content, such as file names and errors."""

from __future__ import annotations

import html

from PySide6.QtCore import Qt
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QLabel, QSizePolicy


class PlainLabel(QLabel):
    """Shows text literally, never as HTML, and never makes the window wider.

    On one line, long text is elided and shown in full in the tooltip; otherwise it wraps.
    """

    def __init__(self, text: str = "", *, role: str = "", wraps: bool = False) -> None:
        super().__init__()
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setWordWrap(wraps)
        if not wraps:
            self.setSizePolicy(QSizePolicy.Policy.Ignored, self.sizePolicy().verticalPolicy())
        self.setProperty("role", role)
        self.setText(text)

    def setText(self, text: str) -> None:  # noqa: N802
        super().setText(text)
        if not self.wordWrap():
            self.setToolTip(f"<qt>{html.escape(text)}</qt>" if text else "")

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        if self.wordWrap():
            super().paintEvent(event)
            return
        room = self.contentsRect()
        painter = QPainter(self)
        painter.setPen(self.palette().color(self.foregroundRole()))
        line = " ".join(self.text().split())
        text = painter.fontMetrics().elidedText(line, Qt.TextElideMode.ElideRight, room.width())
        painter.drawText(room, self.alignment(), text)
