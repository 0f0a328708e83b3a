"""Line icons in the text colour, sharp at any resolution, and the program's own icon."""

from __future__ import annotations

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QIcon, QPainter, QPainterPath, QPaintEvent, QPen
from PySide6.QtWidgets import QToolButton

from . import theme
from .assets import ASSETS

_GRID = 24
"""Side of the square grid on which the icons' lines are defined."""


def program_icon() -> QIcon:
    """The icon of windows and launchers."""
    return QIcon(str(ASSETS / "tinygptv.png"))


class IconButton(QToolButton):
    """A button that shows an icon; its purpose is its tooltip and accessible name."""

    def __init__(self, icon: str, purpose: str, side: int = 28) -> None:
        super().__init__()
        self._icon = icon
        self._quiet = False
        self.setToolTip(purpose)
        self.setAccessibleName(purpose)
        self.setFixedSize(side, side)
        self.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.setCursor(Qt.CursorShape.PointingHandCursor)

    def show_icon(self, icon: str) -> None:
        """Change the icon."""
        self._icon = icon
        self.update()

    def be_quiet(self, quiet: bool) -> None:
        """Draw nothing unless the button has the focus; the button keeps its space, so the layout does not change."""
        self._quiet = quiet
        self.update()

    def sizeHint(self) -> QSize:  # noqa: N802
        return self.minimumSize()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: N802
        if self._quiet and not self.hasFocus():
            return
        super().paintEvent(event)
        side = 18
        place = QRectF((self.width() - side) / 2, (self.height() - side) / 2, side, side)
        colours = theme.tokens()
        colour = colours.ink if self.underMouse() or self.hasFocus() else colours.dim
        draw_icon(QPainter(self), self._icon, place, QColor(colour))


def draw_icon(painter: QPainter, name: str, place: QRectF, colour: QColor) -> None:
    """Draw an icon of :data:`_PATHS` into a square."""
    painter.save()
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.translate(place.topLeft())
    painter.scale(place.width() / _GRID, place.height() / _GRID)
    painter.setPen(QPen(colour, 1.8, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap, Qt.PenJoinStyle.RoundJoin))
    painter.drawPath(_path(name))
    painter.restore()


def _path(name: str) -> QPainterPath:
    path = QPainterPath()
    for x, y, width, height, radius in _RECTANGLES.get(name, ()):
        path.addRoundedRect(QRectF(x, y, width, height), radius, radius)
    for line in _LINES.get(name, ()):
        path.moveTo(QPointF(*line[0]))
        for point in line[1:]:
            path.lineTo(QPointF(*point))
    for across, down, far in _CIRCLES.get(name, ()):
        path.addEllipse(QPointF(across, down), far, far)
    if name == "again":
        around = QRectF(4, 4, 16, 16)
        path.arcMoveTo(around, 20)
        path.arcTo(around, 20, 300)
    return path


_RECTANGLES = {"copy": ((9, 9, 11, 11, 2.5),), "picture": ((3, 4, 18, 16, 3),)}
_LINES = {
    "copy": (((5, 15), (4, 15), (4, 4), (15, 4), (15, 5)),),
    "check": (((5, 13), (10, 18), (19, 7)),),
    "again": (((20, 4), (20, 9.3), (14.7, 9.3)),),
    "add": (((12, 5), (12, 19)), ((5, 12), (19, 12))),
    "close": (((7, 7), (17, 17)), ((17, 7), (7, 17))),
    "save": (((12, 4), (12, 15)), ((7.5, 10.5), (12, 15), (16.5, 10.5)), ((4, 17), (4, 20), (20, 20), (20, 17))),
    "settings": (((4, 8), (12, 8)), ((18, 8), (20, 8)), ((4, 16), (6, 16)), ((12, 16), (20, 16))),
    "picture": (((4, 17), (9, 11.5), (13, 16), (15.5, 13.5), (20, 18)),),
    "down": (((7, 10), (12, 15), (17, 10)),),
}
_CIRCLES = {"settings": ((15, 8, 2.8), (9, 16, 2.8)), "picture": ((15.5, 9, 1.6),)}
