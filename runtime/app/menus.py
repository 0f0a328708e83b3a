"""Menus: what can be done besides asking, with its keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from PySide6.QtGui import QAction, QActionGroup, QKeySequence
from PySide6.QtWidgets import QMenu, QMenuBar

from . import appearance


class Entry(NamedTuple):
    """Of a menu."""

    text: str
    """``&`` before its letter."""
    keys: QKeySequence.StandardKey | str
    do: Callable[[], object]


def add_menu(bar: QMenuBar, title: str, *entries: Entry) -> None:
    """Add a menu to a bar."""
    menu = bar.addMenu(title)
    for entry in entries:
        _add(menu, entry)


def add_view_menu(bar: QMenuBar) -> None:
    """Add the menu that chooses between light and dark."""
    menu = bar.addMenu("&View")
    group = QActionGroup(menu)
    for name, scheme in appearance.SCHEMES.items():
        action = _add(menu, Entry(name, "", partial(appearance.choose, scheme)))
        action.setCheckable(True)
        action.setChecked(not group.actions())
        group.addAction(action)


def _add(menu: QMenu, entry: Entry) -> QAction:
    action = menu.addAction(entry.text)
    action.setShortcut(QKeySequence(entry.keys))
    action.triggered.connect(lambda checked: entry.do())
    return action
