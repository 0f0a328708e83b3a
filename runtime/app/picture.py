"""The picture, as large as there is room for, and a box that is drawn on it with the mouse."""

from __future__ import annotations

from PySide6.QtCore import QPoint, QRect, QRectF, QSize, Qt, Signal
from PySide6.QtGui import QColor, QImage, QKeyEvent, QMouseEvent, QPainter, QPaintEvent, QPalette, QPen
from PySide6.QtWidgets import QSizePolicy, QWidget

_MARGIN = 10
_BOX_HINT = "A box that you draw on it becomes a question about what is in it"
_LEAST_DRAG = 6
"""Pixels on the screen; less is a click with an unsteady hand."""


class PictureView(QWidget):
    """Shows a picture whole, or a hint where there is none."""

    wanted = Signal()
    """Where there is no picture yet, somebody clicked, or pressed Enter or Space."""
    boxed = Signal(QRectF)
    """A box was drawn, in pixels of the picture."""

    def __init__(self, hint: str) -> None:
        super().__init__()
        self._hint = hint
        self._takes_boxes = False
        self._image = QImage()
        self._scaled = QImage()
        self._drag: QRect | None = None
        self.setMinimumSize(240, 180)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setAccessibleName("Picture")
        self.setAccessibleDescription(hint)
        self._show_cursor()

    @property
    def image(self) -> QImage:
        """What is shown; null before the first picture."""
        return self._image

    def take_boxes(self, wanted: bool) -> None:
        """Whether boxes can be drawn: only some models can be asked about them."""
        self._takes_boxes = wanted
        self._drag = None
        self._show_cursor()
        self.update()

    def show_image(self, image: QImage) -> None:
        """Show a picture in the place of the one before."""
        self._image, self._scaled = image, QImage()
        self._show_cursor()
        self.setAccessibleDescription(f"{image.width()} by {image.height()} pixels")
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(520, 480)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        painter = QPainter(self)
        palette = self.palette()
        if self._image.isNull():
            painter.setPen(palette.color(QPalette.ColorRole.PlaceholderText))
            flags = Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap
            hint = f"{self._hint}\n\n{_BOX_HINT}" if self._takes_boxes else self._hint
            painter.drawText(self.rect().adjusted(_MARGIN, _MARGIN, -_MARGIN, -_MARGIN), flags, hint)
        else:
            painter.drawImage(self._place(), self._fitted())
        if self._drag is not None and self._takes_boxes and not self._image.isNull():
            for style, colour in ((Qt.PenStyle.SolidLine, "white"), (Qt.PenStyle.DashLine, "black")):
                painter.setPen(QPen(QColor(colour), 1, style))
                painter.drawRect(self._drag.normalized())
        if self.hasFocus():
            painter.setPen(palette.color(QPalette.ColorRole.Highlight))
            painter.drawRect(self.rect().adjusted(0, 0, -1, -1))

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        if event.button() == Qt.MouseButton.LeftButton:
            at = event.position().toPoint()
            self._drag = QRect(at, at)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        if self._drag is not None:
            self._drag.setBottomRight(event.position().toPoint())
            self.update()

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        if event.button() != Qt.MouseButton.LeftButton or self._drag is None:
            return
        drag, self._drag = self._drag, None
        self.update()
        box = drag.normalized().intersected(self._place())
        if self._image.isNull():
            if self.rect().contains(event.position().toPoint()):
                self.wanted.emit()
        elif self._takes_boxes and min(box.width(), box.height()) >= _LEAST_DRAG:
            self.boxed.emit(self._in_picture(box))

    def keyPressEvent(self, event: QKeyEvent) -> None:  # noqa: N802
        if self._image.isNull() and event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space):
            self.wanted.emit()
        else:
            super().keyPressEvent(event)

    def _show_cursor(self) -> None:
        if self._image.isNull():
            self.setCursor(Qt.CursorShape.PointingHandCursor)
        else:
            self.setCursor(Qt.CursorShape.CrossCursor if self._takes_boxes else Qt.CursorShape.ArrowCursor)

    def _place(self) -> QRect:
        """Where on the widget the picture is."""
        room = self.rect().adjusted(_MARGIN, _MARGIN, -_MARGIN, -_MARGIN)
        size = self._image.size().scaled(room.size(), Qt.AspectRatioMode.KeepAspectRatio)
        place = QRect(QPoint(), size.expandedTo(QSize(1, 1)))
        place.moveCenter(room.center())
        return place

    def _fitted(self) -> QImage:
        """The picture in as many pixels as the screen shows of it; scaled once for every size."""
        wanted = self._place().size() * self.devicePixelRatio()
        if self._scaled.size() != wanted:
            self._scaled = self._image.scaled(
                wanted, Qt.AspectRatioMode.IgnoreAspectRatio, Qt.TransformationMode.SmoothTransformation
            )
        return self._scaled

    def _in_picture(self, box: QRect) -> QRectF:
        place = self._place()
        x, y = self._image.width() / place.width(), self._image.height() / place.height()
        return QRectF((box.left() - place.left()) * x, (box.top() - place.top()) * y, box.width() * x, box.height() * y)
