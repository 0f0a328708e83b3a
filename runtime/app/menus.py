"""The menus: every action besides asking, with its shortcut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from PySide6.QtGui import QAction, QActionGroup, QKeySequence
from PySide6.QtWidgets import QMainWindow, QMenu, QWidget

from . import choosers
from .dialogs import about_dialog, help_dialog
from .files import Files
from .session import Session
from .settings import Settings
from .settings_dialog import SettingsDialog
from .talk import Talk

Key = QKeySequence.StandardKey


class Entry(NamedTuple):
    """An entry of a menu."""

    text: str
    """The label, with ``&`` before its mnemonic; empty for a separator."""
    keys: QKeySequence.StandardKey | str = ""
    do: Callable[[], object] = lambda: None
    when: Callable[[], object] = lambda: True
    """Whether the entry is enabled."""


class MainMenu:
    """The menu bar, with every action of the window."""

    def __init__(self, window: QMainWindow, session: Session, talk: Talk, files: Files, question: QWidget) -> None:
        """
        Args:
            window: The window that gets the menus.
            session: The loaded model and the open pictures.
            talk: The questions and answers.
            files: Opens and saves files.
            question: The field where the next question is typed.
        """
        self._window, self._session, self._files = window, session, files
        self._conditions: list[tuple[QAction, Callable[[], object]]] = []
        has_picture, are_several = lambda: session.sheet, lambda: len(session.sheets) > 1

        def has_turns() -> bool:
            return session.sheet is not None and bool(session.sheet.said)

        file = self._add_menu(
            "&File",
            Entry("&Open pictures …", Key.Open, files.choose_pictures),
            Entry("&Paste picture", "Ctrl+Shift+V", files.paste),
            Entry("&Close picture", "Ctrl+W", session.close_shown, has_picture),
            Entry("&Reopen what was closed", "Ctrl+Shift+T", session.reopen, lambda: session.reopens),
            Entry("Ne&xt picture", "Ctrl+PgDown", partial(session.step, 1), are_several),
            Entry("Pre&vious picture", "Ctrl+PgUp", partial(session.step, -1), are_several),
            Entry(""),
            Entry("Open con&versation …", "Ctrl+Shift+O", files.choose_conversation),
            Entry("&Save conversation …", Key.Save, files.choose_conversation_file, has_turns),
            Entry("Save picture with &boxes …", "Ctrl+Shift+S", files.choose_picture_file, has_picture),
            Entry(""),
            Entry("Choose &model …", "Ctrl+B", files.choose_bundle),
            Entry("S&ettings …", "Ctrl+,", self.show_settings),
            Entry("&Quit", "Ctrl+Q", window.close),
        )
        self._recent = file.addMenu("Recent pic&tures")
        file.insertMenu(file.actions()[1], self._recent)
        self._add_menu(
            "&Conversation",
            Entry("&Copy answer", "Ctrl+Shift+C", talk.copy_answer, has_turns),
            Entry("&Regenerate answer", "Ctrl+R", talk.ask_again, lambda: has_turns() and not talk.answering),
            Entry("Start &over", Key.New, talk.start_over, has_turns),
            Entry("Go to the &question", "Ctrl+L", question.setFocus, has_picture),
        )
        names = {"system": "As the &system", "light": "&Light", "dark": "&Dark"}
        choose = {name: Entry(text, "", partial(self.choose_appearance, name)) for name, text in names.items()}
        self._appearance = _Choice(self._add_menu("&View"), choose)
        about = lambda: choosers.show(about_dialog(window, session.bundle_name, session.manifest))  # noqa: E731
        self._add_menu(
            "&Help",
            Entry("&Help", Key.HelpContents, lambda: choosers.show(help_dialog(window))),
            Entry("&About tinygptv", "", about),
        )

    def choose_appearance(self, name: str) -> None:
        """Apply a colour scheme of :data:`.theme.SCHEMES`."""
        self._session.take(replace(self._session.settings, appearance=name))

    def show_settings(self) -> None:
        """Open the settings dialog."""
        dialog = SettingsDialog(self._window, self._session.settings)
        dialog.chosen.connect(self._session.use)
        dialog.forgotten.connect(self._session.forget)
        choosers.show(dialog)

    def show_state(self) -> None:
        """Enable the entries that can be used at present, and disable the others."""
        for action, condition in self._conditions:
            action.setEnabled(bool(condition()))

    def update(self, settings: Settings) -> None:
        """Check the entries that match the settings, and list recent pictures."""
        self._appearance.check(settings.appearance)
        self._recent.clear()
        for path in settings.recent:
            do = partial(self._files.open, path)
            _add_entry(self._recent, Entry(path.replace("&", "&&"), do=do))
        self._recent.setEnabled(bool(settings.recent))

    def _add_menu(self, title: str, *entries: Entry) -> QMenu:
        menu = self._window.menuBar().addMenu(title)
        for entry in entries:
            if entry.text:
                self._conditions.append((_add_entry(menu, entry), entry.when))
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
    """Menu entries of which exactly one is checked."""

    def __init__(self, menu: QMenu, entries: dict[str, Entry]) -> None:
        self._actions = {name: _add_entry(menu, entry) for name, entry in entries.items()}
        group = QActionGroup(menu)
        for action in self._actions.values():
            action.setCheckable(True)
            group.addAction(action)

    def check(self, name: str) -> None:
        """Check the entry of this name."""
        self._actions[name].setChecked(True)
