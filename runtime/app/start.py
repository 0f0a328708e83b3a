"""The application: a window, and what ends it."""

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
"""How often Python gets to see a Ctrl-C that was pressed while Qt waited."""
_INTERRUPTED = 130


def start(load: Load, bundle: Path | None, threads: int | None, memory: MemoryMode, pictures: Sequence[str]) -> int:
    """Show the window, and load the model while it is there.

    Args:
        load: Loads a bundle.
        bundle: The one to begin with; if None, that of the settings that were remembered, or the built-in demo.
        threads: Likewise.
        memory: Likewise, unless it is ``low``.
        pictures: Those to begin with.

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
    """What was remembered, if anything, with what the command line says in its place, and what is wrong with it."""
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
    """Keep Qt's file dialogs from noting the folders that were visited in the user's ``QtProject.conf``.

    Where the system brings its own dialogs (Windows, macOS, many Linux desktops), what those remember is the system's.
    """
    QSettings.setPath(QSettings.Format.NativeFormat, QSettings.Scope.UserScope, os.devnull)
