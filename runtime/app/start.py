"""The application: shows the window, and handles its end and Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PySide6.QtCore import QSettings, QTimer
from PySide6.QtWidgets import QApplication

from .. import TinyGPTVError
from ..loading import MemoryMode
from . import theme
from .icons import program_icon
from .settings import Settings, read_settings
from .window import Window
from .worker import Load

_LOOK_MILLISECONDS = 200
"""Interval at which Python can handle a Ctrl-C that was pressed while Qt waited."""
_INTERRUPTED = 130


def start(load: Load, bundle: Path | None, threads: int | None, memory: MemoryMode, pictures: Sequence[str]) -> int:
    """Show the window, and load the model meanwhile.

    Args:
        load: Loads a bundle.
        bundle: The initial bundle; if None, that of the remembered settings, or the built-in demo.
        threads: Number of threads; if None, from the remembered settings.
        memory: Memory mode; ``low`` takes precedence over the remembered settings.
        pictures: Pictures to open at the start.

    Returns:
        The exit status: 0, or 130 after Ctrl-C.
    """
    app = QApplication(sys.argv[:1])
    app.setApplicationName("tinygptv")
    app.setDesktopFileName("tinygptv")
    app.setWindowIcon(program_icon())
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
        settings, error = _settings(bundle, threads, memory)
        window = Window(load, settings)
        app.styleHints().colorSchemeChanged.connect(lambda: theme.choose(window.session.settings.appearance))
        window.show()
        window.files.open_bundle(settings.folder)
        if pictures:
            window.files.open(*pictures)
        if error:
            window.notice.complain(error)
        if interrupted:
            window.close()
        else:
            app.exec()
    finally:
        signal.signal(signal.SIGINT, before)
    return _INTERRUPTED if interrupted else 0


def _settings(bundle: Path | None, threads: int | None, memory: MemoryMode) -> tuple[Settings, str]:
    """Remembered settings, overridden by the command line, and an error message if they could not be read."""
    try:
        settings, error = read_settings(), ""
    except TinyGPTVError as refusal:
        settings, error = Settings(), str(refusal)
    return replace(
        settings,
        bundle=str(bundle) if bundle else settings.bundle,
        threads=threads or settings.threads,
        low_memory=memory == "low" or settings.low_memory,
    ), error


def _forget_folders() -> None:
    """Keep Qt's file dialogs from writing visited folders to the user's ``QtProject.conf``.

    Native dialogs (Windows, macOS, many Linux desktops) keep their own history, which this does not change.
    """
    QSettings.setPath(QSettings.Format.NativeFormat, QSettings.Scope.UserScope, os.devnull)
