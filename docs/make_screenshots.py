"""Takes the pictures of the window in docs/images, without a screen: ``python docs/make_screenshots.py``."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"

from PySide6.QtCore import Qt
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.app import appearance
from tinygptv.runtime.app.window import Window

IMAGES = Path(__file__).resolve().parent / "images"
PICTURE = IMAGES / "red_triangle.png"
QUESTIONS = (
    ("", "what shape is in the image?"),
    ("", "is it red?"),
    ("[detection]", "triangle"),
)


def main() -> None:
    """Use the window as a person would, and look at it now and then."""
    application = QApplication([])
    window = Window(TinyGPTV.load)
    window.resize(960, 600)
    window.show()
    appearance.choose(Qt.ColorScheme.Light)
    window.open_bundle(None)
    take(window, "app_loading")
    wait_for(window)
    window.open_picture(str(PICTURE))
    wait_for(window)
    for tag, question in QUESTIONS:
        window.panel.task.setCurrentIndex(window.panel.task.findData(tag))
        QTest.keyClicks(window.panel.question, question)
        QTest.keyClick(window.panel.question, Qt.Key.Key_Return)
        wait_for(window)
    take(window, "app")
    appearance.choose(Qt.ColorScheme.Dark)
    window.open_picture(str(IMAGES / "notes.txt"))
    wait_for(window)
    take(window, "app_dark")
    window.close()
    application.quit()


def wait_for(window: Window) -> None:
    """Until the model has nothing to do."""
    while window.model.busy:
        QTest.qWait(5)


def take(window: Window, name: str) -> None:
    """Look at the window."""
    QTest.qWait(50)
    window.grab().save(str(IMAGES / f"{name}.png"))


if __name__ == "__main__":
    main()
