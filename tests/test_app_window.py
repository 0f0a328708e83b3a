"""The window itself: what it tells, how it is reached and how it looks, and its end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("PySide6.QtWidgets", reason="Qt's libraries are not on this system", exc_type=ImportError)

from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QColor, QGuiApplication, QImage, QKeySequence, QPalette
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QMenu, QPushButton
from tinygptv.runtime.app import appearance
from tinygptv.runtime.app.window import Window
from windows import RED, TEAL, ask, drag, idle, open_and_wait, shown_window, told, type_question

SHAPE = "what shape is in the image?"


@pytest.fixture
def window() -> Iterator[Window]:
    """With the demo model and a red triangle."""
    with shown_window(None) as window:
        yield window


def test_status(window: Window) -> None:
    assert "looked at the picture for" in window.status.text
    ask(window, "[caption]")
    assert "tokens/s" in window.status.text and "first token after" in window.status.text
    assert window.status.text.endswith(" GB")


def test_loading_is_shown(window: Window) -> None:
    window.open_bundle(None)
    assert "Loading built-in demo" in window.status.text
    assert window.status._busy.isVisible()
    assert not window.panel.ask_button.isEnabled()
    idle(window)
    assert not window.status._busy.isVisible()
    assert "Loading" not in window.status.text


def menus_of(window: Window) -> list[QMenu]:
    found = {menu.title(): menu for menu in window.menuBar().findChildren(QMenu)}
    return [found[name] for name in ("&File", "&Conversation", "&View")]


def test_everything_is_reached_with_the_keyboard(window: Window) -> None:
    window.panel.question.put("is it red?")
    reached = []
    for _ in range(8):
        reached.append(QApplication.focusWidget())
        QTest.keyClick(reached[-1], Qt.Key.Key_Tab)
    panel = window.panel
    assert {panel.question, panel.task, panel.ask_button, panel.conversation, window.picture} <= set(reached)
    assert all(widget.accessibleName() or isinstance(widget, QPushButton) for widget in reached)
    *menus, view = menus_of(window)
    keys = [action.shortcut().toString() for menu in menus for action in menu.actions()]
    assert len(keys) == 7 and all(keys) and len(set(keys)) == len(keys)
    assert all("&" in action.text() for menu in (*menus, view) for action in (menu.menuAction(), *menu.actions()))


def test_copying_the_answer(window: Window) -> None:
    ask(window, "[detection] triangle")
    QTest.keySequence(window, QKeySequence("Ctrl+Shift+C"))
    assert QGuiApplication.clipboard().text() == "red triangle"
    window.start_over()
    idle(window)
    QGuiApplication.clipboard().setText("precious")
    window.copy_answer()  # there is none
    assert QGuiApplication.clipboard().text() == "precious"


def contrast(window: Window) -> float:
    """Between the text and what is behind it, as WCAG 2.1 defines it."""
    palette = window.panel.conversation.palette()

    def luminance(colour: QColor) -> float:
        channels = (level / 255 for level in (colour.red(), colour.green(), colour.blue()))
        linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pair = (luminance(palette.color(role)) for role in (QPalette.ColorRole.Text, QPalette.ColorRole.Base))
    low, high = sorted(pair)
    return (high + 0.05) / (low + 0.05)


def test_light_and_dark(window: Window) -> None:
    ask(window, SHAPE)
    *_, view = menus_of(window)
    lightness = {}
    for action in (*view.actions()[1:], view.actions()[0]):
        action.trigger()
        QTest.qWait(20)
        name = action.text().replace("&", "")
        lightness[name] = window.palette().color(QPalette.ColorRole.Window).lightness()
        assert contrast(window) > 7
        written = window.panel.conversation.document().begin().begin().fragment().charFormat().foreground().color()
        assert written == window.panel.conversation.palette().color(QPalette.ColorRole.Text)
        assert action.isChecked()
    assert lightness["Dark"] < 100 < lightness["Light"]
    assert window.panel.conversation.toPlainText() == f"{SHAPE}\ntriangle"
    appearance.choose(Qt.ColorScheme.Unknown)


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_done_in_whatever_order(
    window: Window, seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is waited for; in the end it is as usable as in the beginning."""
    chance = random.Random(seed)
    pictures = [RED, TEAL, QImage(TEAL), "nowhere.png", __file__]
    questions = ["[detection] triangle", SHAPE, "word " * 500, " "]
    actions = [
        lambda: window.open_picture(chance.choice(pictures)),
        lambda: window.open_bundle(chance.choice([None, tmp_path])),
        lambda: type_question(window, chance.choice(questions)),
        lambda: QTest.keyClick(window, Qt.Key.Key_Escape),
        lambda: drag(window.picture, *(QPoint(chance.randrange(500), chance.randrange(500)) for _ in range(2))),
        lambda: window.resize(chance.randrange(400, 1400), chance.randrange(300, 900)),
        window.model.cancel,
        window.start_over,
        window.copy_answer,
    ]
    for _ in range(120):
        chance.choice(actions)()
        QTest.qWait(chance.choice([0, 1, 5]))
    idle(window)
    window.panel.put("")
    open_and_wait(window, RED)
    assert ask(window, SHAPE).answer == "triangle"
    assert len(window.panel.conversation.said) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_closing_while_it_loads(window: Window) -> None:
    """What has not begun to load is not loaded."""
    loaded = told(window.model.worker.loaded)
    for _ in range(4):
        window.open_bundle(None)
    window.open_picture(RED)
    window.close()
    assert window.model.isFinished()
    assert len(loaded) <= 1
