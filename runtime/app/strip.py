"""The open pictures as thumbnails; each has its own conversation."""

from __future__ import annotations

import html

from PySide6.QtCore import QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QImage, QKeyEvent, QPainter, QPainterPath, QPaintEvent, QPen
from PySide6.QtWidgets import QAbstractButton, QHBoxLayout, QScrollArea, QWidget

from . import theme
from .icons import IconButton
from .turns import Sheet

_SIDE = 56


class Strip(QScrollArea):
    """A row of thumbnails, and a button that opens another picture; hidden while only one picture is open."""

    chosen = Signal(int)
    """The user wants to see the picture of this number."""
    closed = Signal(int)
    """The user wants to close the picture of this number."""
    wanted = Signal()
    """The user wants to open another picture."""

    def __init__(self) -> None:
        super().__init__()
        self.setAccessibleName("Open pictures")
        self.setWidgetResizable(True)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setFixedHeight(_SIDE + 24)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._fits = True
        self._thumbnails: dict[int, _Thumbnail] = {}  # no button group: there, Tab reaches one of its buttons only
        inner = QWidget()
        self._row = QHBoxLayout(inner)
        self._row.setContentsMargins(0, 4, 0, 4)
        self._row.setSpacing(theme.SPACE)
        self._add = IconButton("add", "Open another picture", _SIDE // 2)
        self._add.clicked.connect(self.wanted)
        self._row.addWidget(self._add)
        self._row.addStretch(1)
        self.setWidget(inner)
        self.hide()

    @property
    def numbers(self) -> list[int]:
        """Numbers of the pictures, from left to right."""
        return list(self._thumbnails)

    def add(self, sheet: Sheet) -> None:
        """Add a picture at the end."""
        thumbnail = _Thumbnail(sheet.image, sheet.picture.name)
        number = sheet.picture.number
        thumbnail.clicked.connect(lambda: self._click(number))
        thumbnail.closed.connect(lambda: self.closed.emit(number))
        self._row.insertWidget(self._row.count() - 2, thumbnail)
        self.setTabOrder(next(reversed(self._thumbnails.values()), self), thumbnail)
        self.setTabOrder(thumbnail, self._add)
        self._thumbnails[number] = thumbnail
        self._show_if_several()

    def remove(self, number: int) -> None:
        """Remove a picture."""
        thumbnail = self._thumbnails.pop(number)
        self._row.removeWidget(thumbnail)
        thumbnail.hide()
        thumbnail.deleteLater()
        self._show_if_several()

    def choose(self, number: int) -> None:
        """Mark the picture that is shown."""
        for other, thumbnail in self._thumbnails.items():
            thumbnail.setChecked(other == number)
        self.ensureWidgetVisible(self._thumbnails[number])

    def give_room(self, enough: bool) -> None:
        """Set whether there is room for the thumbnails; without them, menu and shortcuts still switch pictures."""
        self._fits = enough
        self._show_if_several()

    def _click(self, number: int) -> None:
        self.choose(number)
        self.chosen.emit(number)

    def _show_if_several(self) -> None:
        self.setVisible(self._fits and len(self._thumbnails) > 1)


class _Thumbnail(QAbstractButton):
    """A picture as a small square; Delete or its button closes it."""

    closed = Signal()

    def __init__(self, image: QImage, name: str) -> None:
        super().__init__()
        self.setCheckable(True)
        self.setFixedSize(_SIDE, _SIDE)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setAccessibleName(name)
        self.setToolTip(f"<qt>{html.escape(name)}</qt>")
        side = 2 * _SIDE  # enough for screens of two pixels to the point
        self._image = image.scaled(
            QSize(side, side), Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
        )
        close = IconButton("close", f"Close {name}", 20)
        close.setParent(self)
        close.move(_SIDE - 20, 0)
        close.setStyleSheet("QToolButton { background: palette(base); border-radius: 10px; }")
        close.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        close.clicked.connect(self.closed)

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        if event.key() == Qt.Key.Key_Delete:
            self.closed.emit()
        else:
            super().keyPressEvent(event)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
        colours = theme.tokens()
        frame = QRectF(self.rect()).adjusted(1.5, 1.5, -1.5, -1.5)
        shape = QPainterPath()
        shape.addRoundedRect(frame, theme.CONTROL_RADIUS, theme.CONTROL_RADIUS)
        painter.fillPath(shape, QColor(colours.card))
        painter.setClipPath(shape)
        size = self._image.size().scaled(self.size(), Qt.AspectRatioMode.KeepAspectRatio)
        place = QRectF(0, 0, size.width(), size.height())
        place.moveCenter(frame.center())
        painter.drawImage(place, self._image)
        painter.setClipping(False)
        marked = self.isChecked() or self.hasFocus()
        painter.setPen(QPen(QColor(colours.accent if marked else colours.line), 3 if self.isChecked() else 1.5))
        painter.drawPath(shape)
