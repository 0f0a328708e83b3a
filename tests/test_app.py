"""``tinygptv app``: the real window, offscreen, asks real models; answers and boxes come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import QUESTION

pytest.importorskip("PySide6.QtWidgets", reason="Qt's libraries are not on this system", exc_type=ImportError)

from PIL import Image
from PySide6.QtCore import QPoint, Qt, QTimer
from PySide6.QtGui import QColor, QGuiApplication, QImage, QKeySequence
from PySide6.QtTest import QTest
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.app.window import Window
from tinygptv.runtime.boxes import format_box
from windows import (
    ORANGE,
    RED,
    TEAL,
    answers,
    ask,
    drag,
    gate_before_looking,
    has_colour,
    idle,
    open_and_wait,
    shown_window,
    slow_down,
    told,
    type_question,
    wait_until,
)

SHAPE = "what shape is in the image?"
Bundle = Callable[[int, str], Path]


@pytest.fixture
def window() -> Iterator[Window]:
    """With the demo model and a red triangle."""
    with shown_window(None) as window:
        yield window


@pytest.fixture
def speaking(golden_bundle: Bundle, photo: Path) -> Iterator[Window]:
    """With a model whose answers are long."""
    with shown_window(golden_bundle(3, "fp32"), str(photo)) as window:
        yield window


def test_a_conversation(window: Window) -> None:
    assert window.windowTitle() == "red_triangle.png - built-in demo - tinygptv"
    said = [ask(window, question).answer for question in (SHAPE, "[caption]", "is it red?")]
    with TinyGPTV.load() as model:
        assert said == answers(model, RED, SHAPE, "[caption]", "is it red?")
    assert said[:2] == ["triangle", "a red triangle"]
    shown = window.panel.conversation.toPlainText().splitlines()
    assert shown == [SHAPE, "triangle", "[caption]", "a red triangle", "is it red?", said[2]]
    assert window.panel.question.toPlainText() == ""


def test_it_goes_on_where_it_was(window: Window) -> None:
    """Only what is new is fed."""
    whole = []
    window.model.worker.answered.connect(lambda answer, boxes: whole.append(answer))
    ask(window, SHAPE)
    ask(window, "is it red?")
    assert whole[1].cached_tokens > whole[0].prompt_tokens


def test_the_answer_comes_in_pieces(speaking: Window, golden_bundle: Bundle, photo: Path) -> None:
    states: list[str] = []
    conversation = speaking.panel.conversation
    conversation.textChanged.connect(lambda: states.append(conversation.toPlainText()))
    said = ask(speaking, QUESTION)
    shown = list(dict.fromkeys(states))
    assert len(shown) > 10
    assert all(later.startswith(sooner) for sooner, later in pairwise(shown))
    with TinyGPTV.load(golden_bundle(3, "fp32")) as model:
        assert [said.answer] == answers(model, str(photo), QUESTION)


def test_the_window_lives_meanwhile(speaking: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own timer goes off between two tokens; it would not if the model ran in its thread."""
    slow_down(monkeypatch)
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1

    timer = QTimer(interval=1)
    timer.timeout.connect(beat)
    pieces: list[int] = []
    speaking.model.worker.wrote.connect(lambda text: pieces.append(beats))
    timer.start()
    type_question(speaking, QUESTION)
    wait_until(lambda: len(pieces) >= 4)
    assert pieces[0] < pieces[1] < pieces[2] < pieces[3]


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stopping_an_answer(speaking: Window, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    slow_down(monkeypatch)
    said = speaking.panel.conversation.said
    type_question(speaking, QUESTION)
    wait_until(lambda: said[-1].answer)
    assert not speaking.panel.ask_button.isEnabled()
    if way == "button":
        QTest.mouseClick(speaking.panel.stop_button, Qt.MouseButton.LeftButton)
    else:
        QTest.keyClick(speaking.panel.question, Qt.Key.Key_Escape)
    idle(speaking)
    assert said[-1].note == "stopped"
    assert said[-1].answer
    assert not speaking.panel.stop_button.isEnabled()
    speaking.start_over()
    idle(speaking)
    type_question(speaking, QUESTION)  # and it goes on as if nothing had been
    wait_until(lambda: len(said[-1].answer) > 8 if said else False)


def test_stopping_while_the_model_looks(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = gate_before_looking(monkeypatch)
    window.open_picture(TEAL)
    wait_until(lambda: "teal" in window.windowTitle())
    assert "Looking at teal_circle.png" in window.status.text
    looked = told(window.model.worker.seen)
    QTest.mouseClick(window.panel.stop_button, Qt.MouseButton.LeftButton)
    gate.set()
    idle(window)
    assert looked == []
    assert ask(window, SHAPE).answer == "circle"
    assert len(looked) == 1


def test_stopping_a_question_for_which_the_model_looks_first(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = gate_before_looking(monkeypatch)
    window.open_picture(TEAL)
    wait_until(lambda: "teal" in window.windowTitle())
    window.model.cancel()
    gate.set()
    idle(window)
    gate.clear()
    type_question(window, SHAPE)
    window.model.cancel()
    gate.set()
    idle(window)
    assert window.panel.conversation.said[-1].note == "stopped"
    assert ask(window, SHAPE).answer == "circle"


def test_another_picture_in_the_middle_of_an_answer(speaking: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch)
    answered = told(speaking.model.worker.answered)
    type_question(speaking, QUESTION)
    wait_until(lambda: speaking.panel.conversation.said[-1].answer)
    open_and_wait(speaking, TEAL)
    assert [answer.finish_reason for answer, _ in answered] == ["cancelled"]
    assert speaking.panel.conversation.said == []
    assert speaking.windowTitle().startswith("teal_circle.png")


def test_of_several_pictures_the_last_one_is_opened(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = gate_before_looking(monkeypatch)
    opened = told(window.model.worker.opened)
    window.open_picture(TEAL)
    wait_until(lambda: opened)
    for path in (RED, TEAL, RED):
        window.open_picture(path)
    gate.set()
    idle(window)
    assert [name for _, name in opened] == ["teal_circle.png", "red_triangle.png"]
    assert ask(window, SHAPE).answer == "triangle"


def test_closing_in_the_middle_of_an_answer(speaking: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch)
    answered = told(speaking.model.worker.answered)
    type_question(speaking, QUESTION)
    wait_until(lambda: speaking.panel.conversation.said[-1].answer)
    speaking.close()
    assert speaking.model.isFinished()
    assert not speaking.isVisible()
    assert [answer.finish_reason for answer, _ in answered] == ["cancelled"]


def test_starting_over(window: Window) -> None:
    ask(window, "[refer] triangle")
    assert has_colour(window.picture.image, ORANGE)
    QTest.keySequence(window, QKeySequence(QKeySequence.StandardKey.New))
    idle(window)
    assert window.panel.conversation.toPlainText() == ""
    assert not has_colour(window.picture.image, ORANGE)
    whole = []
    window.model.worker.answered.connect(lambda answer, boxes: whole.append(answer))
    assert ask(window, SHAPE).answer == "triangle"
    with TinyGPTV.load() as model:
        assert whole[0].prompt_tokens == model.ask(RED, SHAPE).prompt_tokens


def test_without_a_picture() -> None:
    with shown_window(None, None) as window:
        said = ask(window, SHAPE)
    with TinyGPTV.load() as model:
        assert said.answer == model.ask(None, SHAPE).text


def test_the_next_question_can_be_typed_meanwhile(speaking: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch)
    QTest.keyClicks(speaking.panel.question, QUESTION)
    speaking.panel.ask_button.setFocus()
    QTest.keyClick(speaking.panel.ask_button, Qt.Key.Key_Space)
    assert speaking.panel.question.hasFocus()
    QTest.keyClicks(speaking.panel.question, "and why?")
    QTest.keyClick(speaking.panel.question, Qt.Key.Key_Return)  # it is not asked in between
    speaking.model.cancel()
    idle(speaking)
    assert speaking.panel.question.toPlainText() == "and why?"
    assert len(speaking.panel.conversation.said) == 1


def test_what_is_selected_stays_selected(speaking: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch)
    conversation = speaking.panel.conversation
    type_question(speaking, QUESTION)
    wait_until(lambda: len(conversation.said[-1].answer) > 6)
    cursor = conversation.textCursor()
    cursor.setPosition(0)
    cursor.setPosition(len(QUESTION) + 4, cursor.MoveMode.KeepAnchor)
    conversation.setTextCursor(cursor)
    selected, so_far = cursor.selectedText(), len(conversation.said[-1].answer)
    wait_until(lambda: len(conversation.said[-1].answer) > so_far + 6)
    assert conversation.textCursor().selectedText() == selected
    assert conversation.toPlainText() == f"{QUESTION}\n{conversation.said[-1].answer}"


def test_tasks_put_a_tag_before_the_question(window: Window) -> None:
    window.panel.task.setCurrentIndex(window.panel.task.findData("[caption]"))
    QTest.keyClick(window.panel.question, Qt.Key.Key_Return)  # which can stand alone
    idle(window)
    window.panel.task.setCurrentIndex(window.panel.task.findData("[detection]"))
    said = ask(window, "triangle")
    assert [turn.question for turn in window.panel.conversation.said] == ["[caption]", "[detection] triangle"]
    assert said.answer == "red triangle"


def test_nothing_is_asked_with_an_empty_question(window: Window) -> None:
    type_question(window, "   ")
    assert not window.panel.ask_button.isEnabled()
    assert window.panel.conversation.said == []


def test_a_line_break_in_a_question(window: Window) -> None:
    QTest.keyClicks(window.panel.question, "one")
    QTest.keyClick(window.panel.question, Qt.Key.Key_Return, Qt.KeyboardModifier.ShiftModifier)
    QTest.keyClicks(window.panel.question, "two")
    assert window.panel.question.toPlainText() == "one\ntwo"


# Boxes


def test_boxes_are_drawn_on_the_picture(window: Window) -> None:
    plain = window.picture.image.copy()
    written = told(window.model.worker.wrote)
    said = ask(window, "[detection] triangle")
    assert written and not any(set(text) & set("{<>}") for (text,) in written)
    assert (said.answer, said.note) == ("red triangle", "1 box on the picture")
    assert has_colour(window.picture.image, ORANGE)
    assert has_colour(window.grab().toImage(), ORANGE)  # and can be seen
    ask(window, SHAPE)
    assert window.picture.image == plain


def test_boxes_alone(window: Window) -> None:
    said = ask(window, "[refer] triangle")
    assert (said.answer, said.note) == ("", "1 box on the picture")
    window.copy_answer()
    with TinyGPTV.load() as model:
        assert QGuiApplication.clipboard().text() == model.ask(RED, "[refer] triangle").text


def test_a_box_drawn_with_the_mouse_becomes_a_question(window: Window) -> None:
    view, place = window.picture, window.picture._place()

    def at(x: float, y: float) -> QPoint:
        return place.topLeft() + QPoint(round(place.width() * x), round(place.height() * y))

    drag(view, at(0.7, 0.5), at(0.2, 0.05))  # in any direction
    size = window.picture.image.size()
    text = window.panel.question.toPlainText()
    wanted = format_box(0.2 * size.width(), 0.05 * size.height(), 0.7 * size.width(), 0.5 * size.height(), 64, 64)
    assert text == f"[identify] what is this {wanted}"
    assert window.panel.question.hasFocus()
    QTest.keyClick(window.panel.question, Qt.Key.Key_Return)
    idle(window)
    assert window.panel.conversation.said[-1].answer == "a red triangle"


def test_a_click_is_no_box_and_none_leaves_the_picture(window: Window) -> None:
    place = window.picture._place()
    drag(window.picture, place.center(), place.center() + QPoint(2, 2))
    assert window.panel.question.toPlainText() == ""
    drag(window.picture, place.center(), place.bottomRight() + QPoint(500, 500))
    assert window.panel.question.toPlainText().endswith("<100><100>}")
    # Of 64 pixels shown on 308, those from 285 on end at 64.00000000000001.
    window.picture.resize(328, 328)
    place = window.picture._place()
    assert place.width() == 308
    drag(window.picture, place.topLeft() + QPoint(285, 2), place.bottomRight() + QPoint(9, 9))
    assert window.panel.question.toPlainText().endswith("{<93><1><100><100>}")


@pytest.mark.parametrize("size", [(20_000, 2), (2, 20_000)])
def test_long_pictures_can_be_seen(window: Window, size: tuple[int, int]) -> None:
    image = QImage(*size, QImage.Format.Format_RGB32)
    image.fill(QColor("red"))
    open_and_wait(window, image)
    assert has_colour(window.picture.grab().toImage(), QColor("red"))


def test_large_pictures(window: Window, tmp_path: Path) -> None:
    """Shown smaller, looked at whole."""
    path = tmp_path / "groß und breit.png"
    Image.open(RED).convert("RGB").resize((4096, 4096)).save(path)
    open_and_wait(window, str(path))
    assert window.windowTitle().startswith("groß und breit.png")
    assert (window.picture.image.width(), window.picture.image.height()) == (2048, 2048)
    said = ask(window, "[detection] triangle")
    with TinyGPTV.load() as model:
        assert [said.answer] == answers(model, str(path), "[detection] triangle")
    assert has_colour(window.picture.image.scaled(256, 256), ORANGE)
