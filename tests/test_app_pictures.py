"""Several pictures in the window, each with its own conversation; samples, and pictures that were opened before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import QUESTION, bundle_with

pytest.importorskip("PySide6.QtWidgets", reason="Qt's libraries are not on this system", exc_type=ImportError)

from PySide6.QtCore import QMimeData, QPoint, Qt, QUrl
from PySide6.QtGui import QImage, QKeySequence
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QLabel, QMenu, QPushButton
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.app.samples import SAMPLES
from tinygptv.runtime.app.window import Window
from tinygptv.runtime.loading import DEMO_BUNDLE
from windows import (
    RED,
    SHAPE,
    TEAL,
    answers,
    ask,
    boxes_of,
    drop,
    gate_before_looking,
    idle,
    open_and_wait,
    said_of,
    shown_window,
    slow_down,
    told,
    type_question,
    wait_until,
)

pytest_plugins = "app_fixtures"


def click_thumbnail(window: Window, index: int) -> None:
    thumbnail = list(window.strip._thumbnails.values())[index]
    QTest.mouseClick(thumbnail, Qt.MouseButton.LeftButton, pos=QPoint(12, 40))
    idle(window)


def test_each_picture_has_its_own_conversation(window: Window) -> None:
    assert not window.strip.isVisible()
    ask(window, "[detection] triangle")
    open_and_wait(window, TEAL)
    assert window.strip.isVisible() and said_of(window) == [] and boxes_of(window) == []
    assert ask(window, SHAPE).answer == "circle"
    click_thumbnail(window, 0)
    assert window.windowTitle().startswith("red_triangle.png")
    assert [turn.answer for turn in said_of(window)] == ["red triangle"] and len(boxes_of(window)) == 1
    said = ask(window, "is it red?")
    with TinyGPTV.load() as model:
        assert said.answer == answers(model, RED, "[detection] triangle", "is it red?")[-1]
        chat = model.chat(RED)
        chat.ask("[detection] triangle")
    assert window.session.sheet.known(said) == list(chat.turns)
    QTest.keySequence(window, QKeySequence("Ctrl+PgDown"))
    idle(window)
    assert [turn.answer for turn in said_of(window)] == ["circle"]


def test_an_answer_goes_on_while_another_picture_is_shown(
    golden_bundle: Callable[[int, str], Path], photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shown_window(golden_bundle(3, "fp32"), str(photo)) as window:
        open_and_wait(window, RED)
        slow_down(monkeypatch)
        type_question(window, QUESTION)
        said = said_of(window)[0]
        wait_until(lambda: said.answer)
        click = next(iter(window.strip._thumbnails.values()))
        QTest.mouseClick(click, Qt.MouseButton.LeftButton, pos=QPoint(12, 40))
        so_far = len(said.answer)
        assert window.panel.composer.button.text() == "Stop"  # there is nothing typed to ask
        wait_until(lambda: len(said.answer) > so_far)
        assert said_of(window) == [] and window.panel.conversation.text == ""
        type_question(window, "and this?")  # which ends it
        wait_until(lambda: said.note == "stopped")
        wait_until(lambda: said_of(window)[0].answer)


def test_closing_and_reopening(window: Window) -> None:
    ask(window, "[detection] triangle")
    open_and_wait(window, TEAL)
    ask(window, SHAPE)
    red, _ = list(window.strip._thumbnails.values())
    QTest.keyClick(red, Qt.Key.Key_Delete)
    assert window.windowTitle().startswith("teal") and not window.strip.isVisible()
    QTest.keySequence(window, QKeySequence("Ctrl+W"))
    assert window.session.sheet is None and window.start_page.isVisible()
    assert window.windowTitle() == "built-in demo - tinygptv"
    for expected in ("circle", "red triangle"):
        QTest.keySequence(window, QKeySequence("Ctrl+Shift+T"))
        idle(window)
        assert said_of(window)[0].answer == expected
    assert len(boxes_of(window)) == 1
    assert ask(window, "is it red?").answer == "yes"
    window.session.reopen()  # nothing more


def test_what_was_said_before_starting_over_can_be_reopened(window: Window) -> None:
    ask(window, SHAPE)
    window.talk.start_over()
    ask(idle(window), "is it red?")
    window.session.reopen()
    idle(window)
    assert [turn.answer for turn in said_of(window)] == ["triangle"]
    assert len(window.session.sheets) == 2


def test_closing_a_picture_in_the_middle_of_an_answer(
    golden_bundle: Callable[[int, str], Path], photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shown_window(golden_bundle(3, "fp32"), str(photo)) as window:
        slow_down(monkeypatch)
        type_question(window, QUESTION)
        said = said_of(window)[0]
        wait_until(lambda: said.answer)
        window.session.close_shown()
        idle(window)
        assert said.note == "stopped" and window.start_page.isVisible()


def test_dropping_several_files(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(path) for path in ("/a.json", "/b.json", TEAL, RED, "/nowhere.png", TEAL)])
    looked = told(window.model.worker.seen)
    gate = gate_before_looking(monkeypatch)  # a look at the first could end before the second is opened
    assert drop(window, data)
    gate.set()
    idle(window)
    assert [sheet.picture.name[:3] for sheet in window.session.sheets.values()] == ["red", "tea", "red", "tea"]
    assert all(name in window.notice.text for name in ("/a.json", "/b.json", "/nowhere.png"))
    assert len(looked) == 1
    assert ask(window, SHAPE).answer == "circle"


# The start page


@pytest.mark.parametrize(
    ("index", "answer", "boxes"), [(0, "red triangle", 1), (1, "blue", 0), (2, "a teal rectangle", 1)]
)
def test_one_click_on_a_sample_opens_it_and_asks(index: int, answer: str, boxes: int) -> None:
    with shown_window(None, None) as window:
        QTest.mouseClick(window.start_page.samples[index], Qt.MouseButton.LeftButton)
        idle(window)
        (said,) = said_of(window)
        assert said.answer == answer and len(boxes_of(window)) == boxes
        assert "[" not in window.panel.conversation.text
        assert window.session.settings.recent == ()


def test_a_sample_while_the_model_is_being_loaded() -> None:
    with shown_window(None, None) as window:
        window.files.open_bundle(None)
        QTest.mouseClick(window.start_page.samples[1], Qt.MouseButton.LeftButton)
        assert said_of(idle(window))[0].answer == "blue"


def test_samples_for_a_model_without_tasks(tmp_path: Path) -> None:
    plain = bundle_with(DEMO_BUNDLE, tmp_path / "plain", family="bunny", stage=None, tasks=(), boxes=False)
    with shown_window(plain, None) as window:
        for card in window.start_page.samples:
            QTest.mouseClick(card, Qt.MouseButton.LeftButton)
            idle(window)
            assert said_of(window)[0].question == card.sample.plain
            window.session.close_shown()
        assert not window.start_page.note.isVisible()  # this is not the demo


def test_a_sample_without_a_model(tmp_path: Path) -> None:
    with shown_window(tmp_path, None) as window:
        assert str(tmp_path) in window.notice.text
        QTest.mouseClick(window.start_page.samples[0], Qt.MouseButton.LeftButton)
        idle(window)
        assert window.windowTitle() == "red_triangle.png - tinygptv" and said_of(window) == []


def test_samples_are_small() -> None:
    assert sum(sample.path.stat().st_size for sample in SAMPLES) < 20_000


def test_the_whole_note_on_the_demo_is_there() -> None:
    with shown_window(None, None) as window:
        window.resize(1080, 680)
        QTest.qWait(20)
        note, area = window.start_page.note, window.start_page
        bottom = note.mapTo(area, QPoint(0, note.height())).y()
        assert note.isVisible() and bottom <= area.height()
        label, button = note.findChild(QLabel), note.findChild(QPushButton)
        assert "simple shapes and colours" in label.text() and label.height() >= label.heightForWidth(label.width())
        assert button.text() == "Choose a model …" and button.isVisible()


# Pictures that were opened before


def recent_menu(window: Window) -> QMenu:
    return next(menu for menu in window.menuBar().findChildren(QMenu) if menu.title() == "Recent pic&tures")


def test_recent_pictures(window: Window, tmp_path: Path) -> None:
    open_and_wait(window, TEAL)
    open_and_wait(window, QImage(RED))  # pasted
    open_and_wait(window, str(tmp_path / "nothing.png"))
    assert window.session.settings.recent == (TEAL, RED)
    assert [action.text() for action in recent_menu(window).actions()] == [TEAL, RED]
    open_and_wait(window, RED)
    assert window.session.settings.recent == (RED, TEAL)
    for number in window.strip.numbers:
        window.session.close(number)
    layout = window.start_page._recent.layout()
    first, second = (layout.itemAt(index).widget() for index in range(layout.count()))
    assert (first.text(), second.accessibleName()) == ("red_triangle.png", "teal_circle.png")
    QTest.mouseClick(second, Qt.MouseButton.LeftButton)
    assert ask(idle(window), SHAPE).answer == "circle"
    recent_menu(window).actions()[1].trigger()
    assert ask(idle(window), SHAPE).answer == "triangle"
