"""Boxes and labels over a picture, painted at the screen's resolution: readable at any size of the picture."""

from __future__ import annotations

from collections.abc import Sequence

from PySide6.QtCore import QPointF, QRect, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QFont, QPainter, QPen

from ..boxes import Box, Region
from ..drawing import PALETTE, contrasting, label_place
from . import theme

_LINE = 3
_LEAST = 5
"""Minimum side of a box on the screen, in pixels, so that it stays visible."""
_PADDING = 6
_TURNS = 900
"""Milliseconds of one turn of the progress arc."""


def draw_regions(
    painter: QPainter, room: QSize, place: QRect, size: tuple[int, int], regions: Sequence[Region]
) -> None:
    """Draw regions over a picture, with colours and labels as :func:`tinygptv.runtime.drawing.draw_regions` has them.

    Args:
        painter: Painter of the widget that shows the picture.
        room: The widget's size; labels may stand beside the picture.
        place: Rectangle of the picture in the widget.
        size: Width and height that the regions' coordinates refer to.
        regions: The regions to draw.
    """
    painter.save()
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    font = QFont(painter.font())
    font.setPixelSize(theme.NOTE)
    font.setWeight(QFont.Weight.DemiBold)
    painter.setFont(font)
    parts = [
        (on_screen(box, place, size), region.phrase, PALETTE[number % len(PALETTE)])
        for number, region in enumerate(regions)
        for box in region.boxes
    ]
    for box, _, colour in parts:
        _draw_outline(painter, box, QColor(*colour), QColor(*contrasting(colour)))
    labels: list[Box] = []
    height = painter.fontMetrics().height() + 4
    for box, phrase, colour in parts:  # after all outlines, so that none runs through a label
        widest = room.width() - 2 * _PADDING
        text = painter.fontMetrics().elidedText(" ".join((phrase or "").split()), Qt.TextElideMode.ElideRight, widest)
        width = painter.fontMetrics().horizontalAdvance(text) + 2 * _PADDING
        label = label_place(box, width, height, (room.width(), room.height()), labels) if text else None
        if label is not None:
            labels.append(label)
            ground = QRectF(label.left, label.top, label.right - label.left, label.bottom - label.top)
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(QColor(*colour))
            painter.drawRoundedRect(ground, 4, 4)
            painter.setPen(QColor(*contrasting(colour)))
            painter.drawText(ground, Qt.AlignmentFlag.AlignCenter, text)
    painter.restore()


def on_screen(box: Box, place: QRect, size: tuple[int, int]) -> Box:
    """A box of the picture in the widget's coordinates, in whole pixels; enlarged if it is too small to be visible."""
    left, right = _edges(box.left, box.right, place.left(), place.width() / size[0])
    top, bottom = _edges(box.top, box.bottom, place.top(), place.height() / size[1])
    return Box(left, top, right, bottom)


def draw_drag(painter: QPainter, drag: QRect) -> None:
    """Draw the box that the user is dragging."""
    painter.fillRect(drag, QColor(*PALETTE[0], 40))
    for style, colour in ((Qt.PenStyle.SolidLine, "white"), (Qt.PenStyle.DashLine, "black")):
        painter.setPen(QPen(QColor(colour), 1.5, style))
        painter.drawRect(drag)


def draw_doing(painter: QPainter, room: QRect, text: str, milliseconds: int | None) -> None:
    """Write on the picture what the model is doing with it.

    Args:
        painter: Painter of the widget that shows the picture.
        room: The widget's rectangle.
        text: The text to show.
        milliseconds: Time since it began, for the progress arc; None if it is waiting.
    """
    painter.save()
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    font = QFont(painter.font())
    font.setPixelSize(theme.NOTE)
    font.setWeight(QFont.Weight.DemiBold)
    painter.setFont(font)
    arc = 0 if milliseconds is None else 16 + theme.SPACE
    text = painter.fontMetrics().elidedText(text, Qt.TextElideMode.ElideRight, room.width() - arc - 48)
    width = painter.fontMetrics().horizontalAdvance(text) + arc + 32
    pill = QRectF(0, 0, width, 34)
    pill.moveCenter(QPointF(room.center().x(), room.bottom() - 36))
    painter.setPen(Qt.PenStyle.NoPen)
    painter.setBrush(QColor(20, 22, 26, 225))
    painter.drawRoundedRect(pill, 17, 17)
    painter.setPen(QColor("white"))
    painter.drawText(pill.adjusted(16 + arc, 0, -16, 0), Qt.AlignmentFlag.AlignVCenter, text)
    if milliseconds is not None:
        painter.setPen(QPen(QColor("white"), 2, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap))
        circle = QRectF(pill.left() + 16, pill.center().y() - 7, 14, 14)
        painter.drawArc(circle, -round(16 * 360 * milliseconds / _TURNS) % (16 * 360), 16 * 270)
    painter.restore()


def _edges(low: int, high: int, start: int, scale: float) -> tuple[int, int]:
    first, last = round(start + low * scale), round(start + high * scale)
    more = max(0, _LEAST - (last - first))
    return first - more // 2, last + more - more // 2


def _draw_outline(painter: QPainter, box: Box, colour: QColor, within: QColor) -> None:
    """Draw the box in its colour, with a thin line inside it for places where the picture has the same colour."""
    edge = QRectF(box.left, box.top, box.right - box.left, box.bottom - box.top)
    painter.setBrush(Qt.BrushStyle.NoBrush)
    half = _LINE / 2
    if min(edge.width(), edge.height()) > 4 * _LINE:
        painter.setPen(QPen(within, 1))
        painter.drawRect(edge.adjusted(_LINE + 0.5, _LINE + 0.5, -_LINE - 0.5, -_LINE - 0.5))
    painter.setPen(QPen(colour, _LINE, Qt.PenStyle.SolidLine, Qt.PenCapStyle.SquareCap, Qt.PenJoinStyle.MiterJoin))
    painter.drawRect(edge.adjusted(half, half, -half, -half))
