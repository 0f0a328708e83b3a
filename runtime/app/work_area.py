"""The picture with the conversation beside it, or below it if the window is narrow."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QFrame, QSplitter, QVBoxLayout, QWidget

from .panel import Panel
from .picture import PictureView
from .strip import Strip

_STACKS_BELOW = 800
"""Width in pixels below which the conversation is placed under the picture."""
_THUMBNAILS_FROM = 540
"""Height in pixels below which there is no room for thumbnails between the two."""
_SIDE_BY_SIDE, _STACKED = (58, 42), (36, 64)
"""Percentages of picture and conversation in each layout."""


class WorkArea(QSplitter):
    """The part of the window that is shown once a picture is open."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = PictureView()
        self.strip = Strip()
        self.panel = Panel()
        frame = QFrame()
        frame.setProperty("role", "card")
        inner = QVBoxLayout(frame)
        inner.setContentsMargins(1, 1, 1, 1)
        inner.addWidget(self.picture)
        left = QWidget()
        column = QVBoxLayout(left)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(frame, 1)
        column.addWidget(self.strip)
        self.addWidget(left)
        self.addWidget(self.panel)
        self.setChildrenCollapsible(False)
        self.setHandleWidth(12)
        self.setContentsMargins(12, 4, 12, 4)
        self._share()

    def resizeEvent(self, event: QResizeEvent) -> None:  # noqa: N802
        stacks = event.size().width() < _STACKS_BELOW
        orientation = Qt.Orientation.Vertical if stacks else Qt.Orientation.Horizontal
        if self.orientation() != orientation:
            self.setOrientation(orientation)
            self._share()
        self.strip.give_room(not stacks or event.size().height() >= _THUMBNAILS_FROM)
        super().resizeEvent(event)

    def _share(self) -> None:
        shares = _SIDE_BY_SIDE if self.orientation() == Qt.Orientation.Horizontal else _STACKED
        for index, share in enumerate(shares):
            self.setStretchFactor(index, share)
        self.setSizes([10 * share for share in shares])
