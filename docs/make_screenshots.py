"""Takes pictures of the window in each of its states: ``python docs/make_screenshots.py [--font FILE.otf ...]``.

The window's font is the desktop's, which the offscreen platform does not know: without ``--font`` it is Qt's choice.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ["XDG_CONFIG_HOME"] = "/home/you/.config"

from PIL import Image
from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QFont, QFontDatabase, QImage
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QDialog, QWidget
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.app.window import Window
from tinygptv.runtime.language.decoder import DecoderState
from tinygptv.runtime.vision.encoder import Vision

IMAGES = Path(__file__).resolve().parent / "images"
RED, GREEN, BLUE, TEAL = (
    str(IMAGES / f"{name}.png") for name in ("red_triangle", "green_triangle", "blue_circle", "teal_rectangle")
)
SIZE = (1080, 680)


def main() -> int:
    """Use the window as a person would, and look at it now and then."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--font", action="append", default=[], metavar="FILE", help="font to show text in (repeatable)")
    parser.add_argument("--hidpi", action="store_true", help="take only the picture of two pixels to the point")
    options = parser.parse_args()
    application = QApplication([])
    families = [QFontDatabase.applicationFontFamilies(QFontDatabase.addApplicationFont(file)) for file in options.font]
    if families:
        application.setFont(QFont(families[0][0]))
    window = Window(TinyGPTV.load)
    window.resize(*SIZE)
    window.show()
    window.activateWindow()
    if options.hidpi:
        take_hidpi(window)
    else:
        take_all(window)
        fonts = [argument for file in options.font for argument in ("--font", file)]
        again = [sys.executable, __file__, "--hidpi", *fonts]
        subprocess.run(again, check=True, env=os.environ | {"QT_SCALE_FACTOR": "2"})
    window.close()
    return 0


def take_all(window: Window) -> None:
    """All states at the usual resolution."""
    window.files.open_bundle(None)
    QTest.qWait(1)
    take(window, "app_loading")
    wait_for(window)
    take(window, "app_empty")
    with_gate(window)
    window.files.open(RED)
    wait_for(window)
    for question in ("what shape is in the image?", "is it red?", "[detection] triangle"):
        ask(window, question)
    take(window, "app")
    with_slow_answer(window)
    window.files.open(GREEN)
    wait_for(window)
    draw_box(window, 0.02, 0.22, 0.66, 0.8)
    take(window, "app_box")
    window.session.show(window.strip.numbers[1])
    wait_for(window)
    window.menus.choose_appearance("dark")
    take(window, "app_dark")
    window.menus.show_settings()
    take(window.findChild(QDialog), "app_settings")
    window.findChild(QDialog).reject()
    window.menus.choose_appearance("light")
    window.files.open("/home/you/notes.txt")
    wait_for(window)
    take(window, "app_error")
    window.notice.clear()
    window.resize(420, 780)
    take(window, "app_narrow")
    window.resize(*SIZE)
    panorama = QImage(TEAL).scaled(2400, 200)
    window.files.open(panorama)
    wait_for(window)
    ask(window, "[grounding] what do you see?")
    take(window, "app_panorama")


def take_hidpi(window: Window) -> None:
    """A picture of 64 pixels, with boxes, on a screen of two pixels to the point."""
    window.resize(820, 560)
    window.files.open_bundle(None)
    window.files.open(QImage(RED).scaled(64, 64, mode=Qt.TransformationMode.SmoothTransformation))
    wait_for(window)
    ask(window, "[detection] triangle")
    take(window, "app_hidpi")


def with_gate(window: Window) -> None:
    """While the model looks at a picture, which here takes as long as the picture of it."""
    gate, look = threading.Event(), Vision.image_features

    def waiting(*arguments: Any) -> Any:
        gate.wait()
        return look(*arguments)

    Vision.image_features = waiting  # type: ignore[method-assign]
    window.files.open(BLUE)
    while not window.session.looking:
        QTest.qWait(5)
    window.talk.ask("what color is the shape?")
    QTest.qWait(300)
    take(window, "app_looking")
    gate.set()
    Vision.image_features = look  # type: ignore[method-assign]
    wait_for(window)


def with_slow_answer(window: Window) -> None:
    """While an answer comes."""
    run = DecoderState.run

    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.5)
        return run(*arguments, **named)

    window.files.open(TEAL)
    wait_for(window)
    ask(window, "what shape is in the image?")
    DecoderState.run = slow  # type: ignore[method-assign]
    window.talk.ask("[caption]")
    while window.session.sheet and len(window.session.sheet.said[-1].answer.split()) < 2:
        QTest.qWait(5)
    take(window, "app_streaming")
    DecoderState.run = run  # type: ignore[method-assign]
    wait_for(window)


def ask(window: Window, question: str) -> None:
    """Ask, and wait for the answer."""
    window.talk.ask(question)
    wait_for(window)


def draw_box(window: Window, left: float, top: float, right: float, bottom: float) -> None:
    """Draw a box with the mouse, in fractions of the picture, and wait for the answer."""
    view, place = window.picture, window.picture._place()
    ends = [
        place.topLeft() + QPoint(round(x * place.width()), round(y * place.height()))
        for x, y in ((left, top), (right, bottom))
    ]
    QTest.mousePress(view, Qt.MouseButton.LeftButton, pos=ends[0])
    QTest.mouseMove(view, ends[1])
    QTest.mouseRelease(view, Qt.MouseButton.LeftButton, pos=ends[1])
    wait_for(window)


def wait_for(window: Window) -> None:
    """Until the model has nothing to do."""
    while window.model.busy:
        QTest.qWait(5)


def take(window: QWidget, name: str) -> None:
    """Look at the window."""
    QTest.qWait(80)
    path = IMAGES / f"{name}.png"
    window.grab().save(str(path))
    with Image.open(path) as picture:
        picture.convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
