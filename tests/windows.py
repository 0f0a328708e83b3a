"""The real window of ``tinygptv app``, without a screen, and a user's hands for it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from PySide6.QtGui import QColor, QDragEnterEvent, QDropEvent, QImage
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QWidget
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.app.conversation import Said
from tinygptv.runtime.app.window import Window
from tinygptv.runtime.boxes import plain_text
from tinygptv.runtime.language.decoder import DecoderState
from tinygptv.runtime.vision.encoder import Vision

IMAGES = Path(__file__).parent / "images"
TEAL, RED = str(IMAGES / "teal_circle.png"), str(IMAGES / "red_triangle.png")
ORANGE = QColor(230, 159, 0)
"""Of the first box that is drawn."""
_SECONDS = 60


@contextmanager
def shown_window(bundle: Path | None, picture: str | None = RED) -> Iterator[Window]:
    """A window with a model, the demo if None, that has looked at a picture."""
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    QApplication.instance() or QApplication([])
    QApplication.setAttribute(Qt.ApplicationAttribute.AA_DontUseNativeDialogs)
    window = Window(TinyGPTV.load)
    try:
        window.show()
        window.activateWindow()
        QTest.qWaitForWindowActive(window)
        window.open_bundle(bundle)
        if picture:
            window.open_picture(picture)
        yield idle(window)
    finally:
        window.close()


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
    window.panel.question.setFocus()
    QTest.keyClicks(window.panel.question, text)
    QTest.keyClick(window.panel.question, Qt.Key.Key_Return)


def ask(window: Window, text: str) -> Said:
    """Type a question, and wait for the answer."""
    type_question(window, text)
    idle(window)
    return window.panel.conversation.said[-1]


def open_and_wait(window: Window, source: str | QImage) -> Window:
    window.open_picture(source)
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


def has_colour(image: QImage, colour: QColor) -> bool:
    return any(
        image.pixelColor(x, y).rgb() == colour.rgb() for y in range(image.height()) for x in range(image.width())
    )
