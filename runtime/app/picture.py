"""The picture, scaled to the available room, with boxes over it; the user can draw a box with the mouse."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QElapsedTimer, QPoint, QRect, QRectF, QSize, Qt, QTimer, Signal
from PySide6.QtGui import QColor, QImage, QMouseEvent, QPainter, QPainterPath, QPaintEvent, QPen
from PySide6.QtWidgets import QSizePolicy, QWidget

from ..boxes import Region
from . import overlay, theme

_MARGIN = 10
_LEAST_DRAG = 6
"""Minimum drag in pixels on the screen; a shorter one is taken as a click."""
_FRAME_MILLISECONDS = 50


class PictureView(QWidget):
    """Shows the complete picture."""

    boxed = Signal(QRectF)
    """The user drew a box, in pixels of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self._takes_boxes = False
        self._image = QImage()
        self._scaled = QImage()
        self._size, self._name = (1, 1), ""
        self._regions: tuple[Region, ...] = ()
        self._doing = ""
        self._drag: QRect | None = None
        self._clock = QElapsedTimer()
        self._frames = QTimer(self, interval=_FRAME_MILLISECONDS)
        self._frames.timeout.connect(self.update)
        self.setMinimumSize(120, 96)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Expanding)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setAccessibleName("Picture")
        self._show_cursor()

    @property
    def image(self) -> QImage:
        """The shown image; null before the first picture."""
        return self._image

    @property
    def regions(self) -> tuple[Region, ...]:
        """The boxes over the picture, in its pixels."""
        return self._regions

    @property
    def doing(self) -> str:
        """The text shown on the picture about what the model is doing."""
        return self._doing

    def take_boxes(self, wanted: bool) -> None:
        """Set whether boxes can be drawn: only some models can be asked about them."""
        self._takes_boxes = wanted
        self._drag = None
        self._show_cursor()

    def show_image(self, image: QImage, size: tuple[int, int], name: str) -> None:
        """Replace the picture; ``size`` is the picture's own, ``image`` may be smaller."""
        self._image, self._scaled, self._size, self._name = image, QImage(), size, name
        self._drag = None
        self._show_cursor()
        self.show_regions(())

    def show_regions(self, regions: Sequence[Region]) -> None:
        """Replace the boxes over the picture."""
        self._regions = tuple(regions)
        self.setAccessibleDescription("; ".join([self._name, *(region.phrase or "a box" for region in regions)]))
        self.update()

    def show_doing(self, doing: str, *, waits: bool = False) -> None:
        """Show on the picture what the model is doing with it, or that it waits; an empty text shows nothing."""
        self._doing = doing
        if doing and not waits:
            self._clock.start()
            self._frames.start()
        else:
            self._frames.stop()
            self._clock.invalidate()
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802
        return QSize(560, 480)

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        painter = QPainter(self)
        if self._image.isNull():
            return
        place = self._place()
        painter.save()
        if min(place.width(), place.height()) > 4 * theme.CONTROL_RADIUS:
            round_corners = QPainterPath()
            round_corners.addRoundedRect(QRectF(place), theme.CONTROL_RADIUS, theme.CONTROL_RADIUS)
            painter.setClipPath(round_corners)
        painter.drawImage(place, self._fitted())
        painter.restore()
        overlay.draw_regions(painter, self.size(), place, self._size, self._regions)
        if self._drag is not None and self._takes_boxes:
            overlay.draw_drag(painter, self._drag.normalized())
        if self._doing:
            passed = int(self._clock.elapsed()) if self._clock.isValid() else None
            overlay.draw_doing(painter, self.rect(), self._doing, passed)
        if self.hasFocus():
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            painter.setPen(QPen(QColor(theme.tokens().accent), 2))
            frame = QRectF(self.rect()).adjusted(1, 1, -1, -1)
            painter.drawRoundedRect(frame, theme.CARD_RADIUS, theme.CARD_RADIUS)

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
        if not self._image.isNull() and self._takes_boxes and min(box.width(), box.height()) >= _LEAST_DRAG:
            self.boxed.emit(self._in_picture(box))

    def _show_cursor(self) -> None:
        draws = self._takes_boxes and not self._image.isNull()
        self.setCursor(Qt.CursorShape.CrossCursor if draws else Qt.CursorShape.ArrowCursor)
        self.setToolTip("Draw a box to ask what is in it" if draws else "")

    def _place(self) -> QRect:
        """Rectangle of the picture in the widget."""
        room = self.rect().adjusted(_MARGIN, _MARGIN, -_MARGIN, -_MARGIN)
        size = self._image.size().scaled(room.size(), Qt.AspectRatioMode.KeepAspectRatio)
        place = QRect(QPoint(), size.expandedTo(QSize(1, 1)))
        place.moveCenter(room.center())
        return place

    def _fitted(self) -> QImage:
        """The picture scaled to the pixels of the screen; cached for each size."""
        wanted = self._place().size() * self.devicePixelRatio()
        if self._scaled.size() != wanted:
            self._scaled = self._image.scaled(
                wanted, Qt.AspectRatioMode.IgnoreAspectRatio, Qt.TransformationMode.SmoothTransformation
            )
        return self._scaled

    def _in_picture(self, box: QRect) -> QRectF:
        place = self._place()
        x, y = self._size[0] / place.width(), self._size[1] / place.height()
        return QRectF((box.left() - place.left()) * x, (box.top() - place.top()) * y, box.width() * x, box.height() * y)
