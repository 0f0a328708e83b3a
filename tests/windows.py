"""The real window of ``tinygptv app``, without a screen, and a user's hands for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QColor, QDragEnterEvent, QDropEvent, QImage
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QWidget
from tinygptv.runtime.app.conversation import Said
from tinygptv.runtime.app.window import Window

IMAGES = Path(__file__).parent / "images"
TEAL, RED = str(IMAGES / "teal_circle.png"), str(IMAGES / "red_triangle.png")
ORANGE = QColor(230, 159, 0)
"""Of the first box that is drawn."""
_SECONDS = 60


def wait_until(condition: Callable[[], object]) -> None:
    """Let the window do what it does until something holds."""
    give_up = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < give_up, "it never happened"
        QTest.qWait(2)


def idle(window: Window) -> Window:
    wait_until(lambda: not window.model.busy)
    return window


def type_question(window: Window, text: str) -> None:
    window.panel.question.setFocus()
    QTest.keyClicks(window.panel.question, text)
    QTest.keyClick(window.panel.question, Qt.Key.Key_Return)


def ask(window: Window, text: str) -> Said:
    """Type a question, and wait for the answer."""
    type_question(window, text)
    idle(window)
    return window.panel.conversation.said[-1]


def open_and_wait(window: Window, source: str | bytes) -> Window:
    window.open_picture(source)
    return idle(window)


def drop(target: QWidget, data: QMimeData) -> bool:
    """As the system does it; returns whether it was taken."""
    arguments = (Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier)
    enter = QDragEnterEvent(QPoint(10, 10), *arguments)
    QApplication.sendEvent(target, enter)
    if not enter.isAccepted():
        return False
    QApplication.sendEvent(target, QDropEvent(QPointF(10, 10), *arguments))
    return True


def file_data(path: str) -> QMimeData:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(path)])
    return data


def image_data(path: str) -> QMimeData:
    data = QMimeData()
    data.setImageData(QImage(path))
    return data


def drag(view: QWidget, start: QPoint, end: QPoint) -> None:
    """Hold the left mouse button from here to there."""
    QTest.mousePress(view, Qt.MouseButton.LeftButton, pos=start)
    QTest.mouseMove(view, (start + end) / 2)
    QTest.mouseMove(view, end)
    QTest.mouseRelease(view, Qt.MouseButton.LeftButton, pos=end)


def has_colour(image: QImage, colour: QColor) -> bool:
    return any(
        image.pixelColor(x, y).rgb() == colour.rgb() for y in range(image.height()) for x in range(image.width())
    )
