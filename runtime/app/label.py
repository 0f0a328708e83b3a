"""A line about files and errors, whose text may be anything."""

from __future__ import annotations

import html

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QLabel, QSizePolicy


class PlainLabel(QLabel):
    """Shows text as it is, never as HTML, and never makes the window wider: all of it is in the tooltip."""

    def __init__(self) -> None:
        super().__init__()
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, self.sizePolicy().verticalPolicy())

    def setText(self, text: str) -> None:  # noqa: N802
        super().setText(text)
        self.setToolTip(f"<qt>{html.escape(text)}</qt>" if text else "")
