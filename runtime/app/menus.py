"""The menus: what can be done besides asking, with its keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from PySide6.QtGui import QAction, QActionGroup, QKeySequence
from PySide6.QtWidgets import QMenu, QMenuBar

from . import choosers
from .dialogs import about_dialog, help_dialog
from .settings import Settings

if TYPE_CHECKING:
    from .window import Window

Key = QKeySequence.StandardKey


class Entry(NamedTuple):
    """Of a menu."""

    text: str
    """``&`` before its letter; empty for a line between groups."""
    keys: QKeySequence.StandardKey | str = ""
    do: Callable[[], object] = lambda: None


class MainMenu:
    """All that the window can do."""

    def __init__(self, window: Window) -> None:
        self._window = window
        session, talk, bar = window.session, window.talk, window.menuBar()
        file = _add_menu(
            bar,
            "&File",
            Entry("&Open pictures …", Key.Open, window.choose_pictures),
            Entry("&Paste picture", "Ctrl+Shift+V", window.paste_picture),
            Entry("&Close picture", "Ctrl+W", window.close_picture),
            Entry("&Reopen what was closed", "Ctrl+Shift+T", session.reopen),
            Entry("Ne&xt picture", "Ctrl+PgDown", partial(session.step, 1)),
            Entry("Pre&vious picture", "Ctrl+PgUp", partial(session.step, -1)),
            Entry(""),
            Entry(
                "Open con&versation …",
                "Ctrl+Shift+O",
                window.choose_conversation,
            ),
            Entry("&Save conversation …", Key.Save, window.choose_conversation_file),
            Entry("Save picture with &boxes …", "Ctrl+Shift+S", window.choose_picture_file),
            Entry(""),
            Entry("Choose &model …", "Ctrl+B", window.choose_bundle),
            Entry("S&ettings …", "Ctrl+,", window.show_settings),
            Entry("&Quit", "Ctrl+Q", window.close),
        )
        self._recent = file.addMenu("Recent pic&tures")
        file.insertMenu(file.actions()[1], self._recent)
        _add_menu(
            bar,
            "&Conversation",
            Entry("&Copy answer", "Ctrl+Shift+C", window.copy_answer),
            Entry("&Regenerate answer", "Ctrl+R", talk.ask_again),
            Entry("Start &over", Key.New, talk.start_over),
            Entry("Go to the &question", "Ctrl+L", window.panel.composer.question.setFocus),
        )
        names = {"system": "As the &system", "light": "&Light", "dark": "&Dark"}
        choose = {name: Entry(text, "", partial(window.choose_appearance, name)) for name, text in names.items()}
        self._appearance = _Choice(_add_menu(bar, "&View"), choose)
        about = lambda: choosers.show(about_dialog(window, session.bundle_name, session.manifest))  # noqa: E731
        _add_menu(
            bar,
            "&Help",
            Entry("&Help", Key.HelpContents, lambda: choosers.show(help_dialog(window))),
            Entry("&About tinygptv", "", about),
        )

    def show_settings(self, settings: Settings) -> None:
        """Check what is chosen, and list recent pictures."""
        self._appearance.check(settings.appearance)
        self._recent.clear()
        for path in settings.recent:
            do = partial(self._window.open_picture, path)
            _add_entry(self._recent, Entry(path.replace("&", "&&"), do=do))
        self._recent.setEnabled(bool(settings.recent))


def _add_menu(bar: QMenuBar, title: str, *entries: Entry) -> QMenu:
    """Add a menu to a bar."""
    menu = bar.addMenu(title)
    for entry in entries:
        if entry.text:
            _add_entry(menu, entry)
        else:
            menu.addSeparator()
    return menu


def _add_entry(menu: QMenu, entry: Entry) -> QAction:
    """Add an entry to a menu."""
    action = menu.addAction(entry.text)
    action.setShortcut(QKeySequence(entry.keys))
    action.triggered.connect(lambda checked: entry.do())
    return action


class _Choice:
    """Entries of a menu of which one is checked."""

    def __init__(self, menu: QMenu, entries: dict[str, Entry]) -> None:
        self._actions = {name: _add_entry(menu, entry) for name, entry in entries.items()}
        group = QActionGroup(menu)
        for action in self._actions.values():
            action.setCheckable(True)
            group.addAction(action)

    def check(self, name: str) -> None:
        """Check one of them."""
        self._actions[name].setChecked(True)
