"""The real window of ``tinygptv app``, without a screen, and a user's hands for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PySide6.QtCore import QEvent, QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QAction, QColor, QDragEnterEvent, QDropEvent, QImage
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QMenu, QWidget
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.app.settings import Settings
from tinygptv.runtime.app.turns import Said
from tinygptv.runtime.app.window import Window
from tinygptv.runtime.boxes import Box, plain_text
from tinygptv.runtime.language.decoder import DecoderState
from tinygptv.runtime.vision.encoder import Vision

IMAGES = Path(__file__).parent / "images"
TEAL, RED = str(IMAGES / "teal_circle.png"), str(IMAGES / "red_triangle.png")
SHAPE = "what shape is in the image?"
ORANGE = QColor(230, 159, 0)
"""Of the first box that is drawn."""
_SECONDS = 60


@contextmanager
def shown_window(bundle: Path | None, picture: str | None = RED, settings: Settings | None = None) -> Iterator[Window]:
    """A window with a model, the demo if None, that has looked at a picture."""
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    QApplication.instance() or QApplication([])
    QApplication.setAttribute(Qt.ApplicationAttribute.AA_DontUseNativeDialogs)
    window = Window(TinyGPTV.load, settings)
    try:
        window.show()
        window.activateWindow()
        QTest.qWaitForWindowActive(window)
        window.files.open_bundle(bundle)
        if picture:
            window.files.open(picture)
        yield idle(window)
    finally:
        window.close()
        window.deleteLater()  # a window that is closed only would be styled with all later ones
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def slow_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of 200 tokens takes ten seconds."""
    run = DecoderState.run

    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.05)
        return run(*arguments, **named)

    monkeypatch.setattr(DecoderState, "run", slow)


def gate_before_looking(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The model does not look at a picture before it is set."""
    opened, look = threading.Event(), Vision.image_features

    def waiting(*arguments: Any) -> Any:
        assert opened.wait(_SECONDS)
        return look(*arguments)

    monkeypatch.setattr(Vision, "image_features", waiting)
    return opened


def answers(model: TinyGPTV, image: str, *questions: str) -> list[str]:
    """What the model itself says, as the window would show it."""
    chat = model.chat(image)
    return [plain_text(chat.ask(question).text) for question in questions]


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
    field = window.panel.composer.question
    field.setFocus()
    QTest.keyClicks(field, text)
    QTest.keyClick(field, Qt.Key.Key_Return)


def ask(window: Window, text: str) -> Said:
    """Type a question, and wait for the answer."""
    type_question(window, text)
    idle(window)
    return said_of(window)[-1]


def said_of(window: Window) -> list[Said]:
    """The conversation that is shown."""
    return window.session.sheet.said if window.session.sheet else []


def boxes_of(window: Window) -> list[Box]:
    """What is drawn on the picture, in pixels of it."""
    return [box for region in window.picture.regions for box in region.boxes]


def drag_over(window: Window, left: float, top: float, right: float, bottom: float) -> None:
    """Draw a box, given in fractions of the picture as it is shown."""
    place = window.picture._place()

    def at(x: float, y: float) -> QPoint:
        return place.topLeft() + QPoint(round(place.width() * x), round(place.height() * y))

    drag(window.picture, at(left, top), at(right, bottom))


def menu_action(window: Window, title: str) -> QAction:
    """An entry of a menu, by its text without "&"."""
    actions = [action for menu in window.menuBar().findChildren(QMenu) for action in menu.actions()]
    return next(action for action in actions if action.text().replace("&", "") == title)


def open_and_wait(window: Window, source: str | QImage) -> Window:
    window.files.open(source)
    return idle(window)


def drop(target: QWidget, data: QMimeData, offered: Qt.DropAction = Qt.DropAction.CopyAction) -> bool:
    """As the system does it; returns whether it was taken."""
    arguments = (offered, data, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier)
    enter = QDragEnterEvent(QPoint(10, 10), *arguments)
    QApplication.sendEvent(target, enter)
    if not enter.isAccepted():
        return False
    assert enter.dropAction() == Qt.DropAction.CopyAction
    dropped = QDropEvent(QPointF(10, 10), *arguments)
    dropped.setAccepted(False)
    QApplication.sendEvent(target, dropped)
    assert dropped.dropAction() == Qt.DropAction.CopyAction
    return dropped.isAccepted()


def told(signal: Any) -> list[tuple]:
    """What a signal of the worker brings from now on."""
    heard: list[tuple] = []
    signal.connect(lambda *what: heard.append(what))
    return heard


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


def is_colour(image: QImage, colour: QColor) -> NDArray[np.bool_]:
    """Which pixels of a picture have a colour: [height, width]."""
    rgb = image.convertToFormat(QImage.Format.Format_RGB888)
    rows = np.frombuffer(rgb.constBits(), np.uint8).reshape(rgb.height(), rgb.bytesPerLine())
    pixels = rows[:, : 3 * rgb.width()].reshape(rgb.height(), rgb.width(), 3)
    return (pixels == (colour.red(), colour.green(), colour.blue())).all(axis=2)


def has_colour(image: QImage, colour: QColor) -> bool:
    return bool(is_colour(image, colour).any())
