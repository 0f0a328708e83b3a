"""The window itself: what it tells, how it is reached and how it looks, and its end."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("PySide6.QtWidgets", reason="Qt's libraries are not on this system", exc_type=ImportError)

from PySide6.QtCore import QPoint, Qt
from PySide6.QtGui import QColor, QGuiApplication, QImage, QKeySequence, QPalette
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QFileDialog, QMenu, QPushButton, QWidget
from tinygptv.runtime import app
from tinygptv.runtime.app import theme
from tinygptv.runtime.app.window import Window
from windows import (
    RED,
    SHAPE,
    TEAL,
    ask,
    drag,
    gate_before_looking,
    idle,
    open_and_wait,
    said_of,
    shown_window,
    told,
    type_question,
    wait_until,
)

pytest_plugins = "app_fixtures"


def test_status(window: Window) -> None:
    assert "looked at the picture for" in window.status.text
    ask(window, "[caption]")
    assert "tokens/s" in window.status.text and "first token after" in window.status.text
    assert re.fullmatch(r"memory \d+\.\d\d GB", window.status.text.rpartition("  ")[2])


def test_loading_is_shown(window: Window) -> None:
    window.panel.composer.put(SHAPE)
    window.files.open_bundle(None)
    assert "Loading built-in demo" in window.status.text
    assert window.status._busy.isVisible()
    assert window.picture.doing == "Loading built-in demo …"
    QTest.keyClick(window.panel.composer.question, Qt.Key.Key_Return)
    assert window.panel.composer.question.toPlainText() == SHAPE  # which is kept until it can be asked
    idle(window)
    assert not window.status._busy.isVisible()
    assert "Loading" not in window.status.text and window.picture.doing == ""


def menus_of(window: Window) -> list[QMenu]:
    found = {menu.title(): menu for menu in window.menuBar().findChildren(QMenu)}
    return [found[name] for name in ("&File", "&Conversation", "&View", "&Help")]


def tabbed_through(window: Window, first: QWidget) -> list[QWidget]:
    """What has the focus after each Tab, until it is where it was."""
    first.setFocus()
    reached = [first]
    while len(reached) < 60:
        QTest.keyClick(QApplication.focusWidget(), Qt.Key.Key_Tab)
        if QApplication.focusWidget() is first:
            return reached
        reached.append(QApplication.focusWidget())
    raise AssertionError(f"Tab never comes back: {reached}")


def test_everything_is_reached_with_the_keyboard(window: Window) -> None:
    ask(window, "[detection] triangle")
    open_and_wait(window, TEAL)
    ask(window, "[detection] circle")
    composer = window.panel.composer
    composer.question.put("is it red?")
    reached = tabbed_through(window, composer.question)
    names = {widget.accessibleName() or widget.text() for widget in reached}
    assert {composer.question, composer.button, *composer.chips, window.picture} <= set(reached)
    assert {"Copy the answer", "Answer", "Question", "1 box on the picture", "Settings"} <= names
    assert {"red_triangle.png", "teal_circle.png", "Open another picture"} <= names  # the thumbnails
    assert any(name.startswith("Regenerate") for name in names) and "" not in names
    file, conversation, *rest = menus_of(window)
    keys = [action.shortcut().toString() for menu in (file, conversation) for action in menu.actions() if action.text()]
    keys.remove("")  # the menu of recent pictures
    assert len(keys) == 16 and all(keys) and len(set(keys)) == len(keys)
    actions = [action for menu in (file, conversation, *rest) for action in (menu.menuAction(), *menu.actions())]
    assert all("&" in action.text() for action in actions if not action.isSeparator())


def test_the_start_page_is_reached_with_the_keyboard() -> None:
    with shown_window(None, None) as window:
        page = window.start_page
        reached = tabbed_through(window, page.open_button)
        assert set(page.samples) <= set(reached)
        assert all(widget.accessibleName() or widget.text() for widget in reached)
        page.samples[1].setFocus()
        QTest.keyClick(page.samples[1], Qt.Key.Key_Space)
        wait_until(lambda: said_of(window))
        assert said_of(idle(window))[0].answer == "blue"


def test_menus_offer_what_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def disabled() -> set[str]:
        actions = [action for menu in menus_of(window) for action in menu.actions()]
        off = [action.text() for action in actions if not (action.isEnabled() or action.isSeparator() or action.menu())]
        return {text.replace("&", "").removesuffix(" …") for text in off}

    several = {"Next picture", "Previous picture"}
    talk = {"Save conversation", "Copy answer", "Regenerate answer", "Start over"}
    picture = {"Close picture", "Save picture with boxes", "Go to the question"}
    with shown_window(None, None) as window:
        assert disabled() == several | talk | picture | {"Reopen what was closed"}
        open_and_wait(window, RED)
        assert disabled() == several | talk | {"Reopen what was closed"}
        ask(window, SHAPE)
        assert disabled() == several | {"Reopen what was closed"}
        gate = gate_before_looking(monkeypatch)
        window.files.open(TEAL)
        wait_until(lambda: window.session.looking)
        window.talk.ask(SHAPE)
        assert disabled() == {"Regenerate answer", "Reopen what was closed"}
        gate.set()
        idle(window)
        window.session.close(window.strip.numbers[0])
        assert disabled() == several


def test_the_model_is_chosen_in_the_header(golden_bundle: Callable[[int, str], Path]) -> None:
    with shown_window(golden_bundle(3, "fp32"), None) as window:
        button = window.header.findChild(QPushButton)
        assert button.menu().title() == "" and not button.text().startswith("built-in")
        demo, other = button.menu().actions()
        demo.trigger()
        assert idle(window).session.bundle_name == "built-in demo" and "built-in demo" in button.text()
        other.trigger()
        dialog = window.findChild(QFileDialog)
        dialog.fileSelected.emit(str(golden_bundle(3, "fp32")))
        dialog.reject()
        assert idle(window).session.bundle_name == golden_bundle(3, "fp32").name


def test_copying_the_answer(window: Window) -> None:
    ask(window, "[detection] triangle")
    QTest.keySequence(window, QKeySequence("Ctrl+Shift+C"))
    assert QGuiApplication.clipboard().text() == "red triangle"
    window.talk.start_over()
    idle(window)
    QGuiApplication.clipboard().setText("precious")
    window.talk.copy_answer()  # there is none
    assert QGuiApplication.clipboard().text() == "precious"


def contrast(one: str, other: str) -> float:
    """Between two colours, as WCAG 2.1 defines it."""

    def luminance(colour: QColor) -> float:
        channels = (level / 255 for level in (colour.red(), colour.green(), colour.blue()))
        linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(luminance(QColor(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_text_can_be_read(colours: theme.Tokens) -> None:
    for ground in (colours.background, colours.card, colours.question, colours.over):
        assert contrast(colours.ink, ground) >= 7
    for text in (colours.dim, colours.accent, colours.error):
        for ground in (colours.background, colours.card):
            assert contrast(text, ground) >= 4.5
    assert contrast(colours.dim, colours.over) >= 4.5  # a button that cannot be pressed
    assert contrast(colours.on_accent, colours.accent) >= 4.5


def test_the_page_of_the_server_has_the_same_colours() -> None:
    page = (Path(app.__file__).parents[1] / "server" / "web" / "page.css").read_text(encoding="utf-8")
    names = {"background": "back", "on_accent": "on", "question": "asked", "error": "bad"}
    for colours, part in zip((theme.LIGHT, theme.DARK), page.split(":root {")[1:], strict=True):
        found = dict(re.findall(r"--(\w+): (#\w+);", part.partition("}")[0]))
        for name in ("background", "card", "ink", "dim", "line", "accent", "on_accent", "question", "error"):
            assert QColor(found[names.get(name, name)]) == QColor(getattr(colours, name)), name


def test_light_and_dark(window: Window) -> None:
    ask(window, SHAPE)
    view = menus_of(window)[2]
    looks = {}
    for action in (*view.actions()[1:], view.actions()[0]):
        action.trigger()
        QTest.qWait(20)
        name = action.text().replace("&", "")
        picture = window.grab().toImage()
        corner, answer = picture.pixelColor(3, window.height() // 2), window.panel.conversation.views[0].answer_text
        looks[name] = corner.lightness()
        assert answer.palette().color(QPalette.ColorRole.Text).name() == theme.tokens().ink
        assert corner.name() == theme.tokens().background
        assert action.isChecked()
    assert looks["Dark"] < 50 and looks["Light"] > 200
    assert window.panel.conversation.text == f"{SHAPE}\ntriangle"


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_done_in_whatever_order(
    window: Window, seed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is waited for; in the end it is as usable as in the beginning."""
    chance = random.Random(seed)
    pictures = [RED, TEAL, QImage(TEAL), "nowhere.png", __file__]
    questions = ["[detection] triangle", SHAPE, "word " * 500, " "]
    actions = [
        lambda: window.files.open(chance.choice(pictures)),
        lambda: window.files.open_bundle(chance.choice([None, tmp_path])),
        lambda: type_question(window, chance.choice(questions)),
        lambda: QTest.keyClick(window, Qt.Key.Key_Escape),
        lambda: drag(window.picture, *(QPoint(chance.randrange(500), chance.randrange(500)) for _ in range(2))),
        lambda: window.resize(chance.randrange(400, 1400), chance.randrange(300, 900)),
        lambda: QTest.mouseClick(chance.choice(window.start_page.samples), Qt.MouseButton.LeftButton),
        lambda: window.session.step(chance.choice([1, -1])),
        lambda: window.session.use(replace(window.session.settings, low_memory=chance.random() < 0.5)),
        window.session.close_shown,
        window.session.reopen,
        window.talk.ask_again,
        window.model.cancel,
        window.talk.start_over,
        window.talk.copy_answer,
    ]
    for _ in range(160):
        chance.choice(actions)()
        QTest.qWait(chance.choice([0, 1, 5]))
    idle(window)
    window.panel.composer.put("")
    open_and_wait(window, RED)
    assert ask(window, SHAPE).answer == "triangle"
    assert len(said_of(window)) == 1
    assert len(window.strip.numbers) == len(window.session.sheets)
    assert "Traceback" not in capfd.readouterr().err


def test_closing_while_it_loads(window: Window) -> None:
    """What has not begun to load is not loaded."""
    loaded = told(window.model.worker.loaded)
    for _ in range(4):
        window.files.open_bundle(None)
    window.files.open(RED)
    window.close()
    assert window.model.isFinished()
    assert len(loaded) <= 1
