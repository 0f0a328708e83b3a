"""The application: a window, and what ends it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from PySide6.QtCore import QSettings, QTimer
from PySide6.QtWidgets import QApplication

from .. import TinyGPTV
from .window import Window

_LOOK_MILLISECONDS = 200
"""How often Python gets to see a Ctrl-C that was pressed while Qt waited."""
_INTERRUPTED = 130


def start(load: Callable[[Path | None], TinyGPTV], bundle: Path | None, image: str | None) -> int:
    """Show the window, and load the model while it is there.

    Args:
        load: Loads a bundle.
        bundle: The one to begin with; the built-in demo if None.
        image: The picture to begin with, if any.

    Returns:
        The exit status: 0, or 130 after Ctrl-C.
    """
    app = QApplication(sys.argv[:1])
    app.setApplicationName("tinygptv")
    _forget_folders()
    window: Window | None = None
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        if window is not None:
            window.close()

    before = signal.signal(signal.SIGINT, interrupt)
    looking = QTimer(interval=_LOOK_MILLISECONDS)
    looking.timeout.connect(lambda: None)
    looking.start()
    try:
        window = Window(load)
        window.show()
        window.open_bundle(bundle)
        if image is not None:
            window.open_picture(image)
        if interrupted:
            window.close()
        else:
            app.exec()
    finally:
        signal.signal(signal.SIGINT, before)
    return _INTERRUPTED if interrupted else 0


def _forget_folders() -> None:
    """Keep Qt's file dialogs from noting the folders that were visited in the user's ``QtProject.conf``.

    Where the system brings its own dialogs (Windows, macOS, many Linux desktops), what those remember is the system's.
    """
    QSettings.setPath(QSettings.Format.NativeFormat, QSettings.Scope.UserScope, os.devnull)
