"""``tinygptv app``: the real window, offscreen, asks real models; answers and boxes come back."""

from __future__ import annotations

from collections.abc import Callable
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
    SHAPE,
    TEAL,
    answers,
    ask,
    boxes_of,
    drag,
    drag_over,
    gate_before_looking,
    has_colour,
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

Bundle = Callable[[int, str], Path]


def test_a_conversation(window: Window) -> None:
    assert window.windowTitle() == "red_triangle.png - built-in demo - tinygptv"
    said = [ask(window, question).answer for question in (SHAPE, "[caption]", "is it red?")]
    with TinyGPTV.load() as model:
        assert said == answers(model, RED, SHAPE, "[caption]", "is it red?")
    assert said[:2] == ["triangle", "a red triangle"]
    shown = window.panel.conversation.text.splitlines()
    assert shown == [SHAPE, "triangle", "Caption", "a red triangle", "is it red?", said[2]]
    assert window.panel.composer.question.toPlainText() == ""


def test_it_goes_on_where_it_was(window: Window) -> None:
    """Only what is new is fed."""
    whole = []
    window.model.worker.answered.connect(lambda request, answer, regions: whole.append(answer))
    ask(window, SHAPE)
    ask(window, "is it red?")
    assert whole[1].cached_tokens > whole[0].prompt_tokens


def test_the_answer_comes_in_pieces(speaking: Window, golden_bundle: Bundle, photo: Path) -> None:
    states: list[str] = []
    conversation = speaking.panel.conversation
    type_question(speaking, QUESTION)
    answer = conversation.views[-1].answer_text
    assert answer.toPlainText() == "Thinking …"
    answer.textChanged.connect(lambda: states.append(answer.toPlainText()))
    idle(speaking)
    said = said_of(speaking)[-1]
    shown = [state for state in dict.fromkeys(states) if state]
    assert len(shown) > 10 and shown[-1] == said.answer
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
    speaking.model.worker.wrote.connect(lambda request, text: pieces.append(beats))
    timer.start()
    type_question(speaking, QUESTION)
    wait_until(lambda: len(pieces) >= 4)
    assert pieces[0] < pieces[1] < pieces[2] < pieces[3]


@pytest.mark.parametrize("way", ["button", "escape"])
def test_stopping_an_answer(speaking: Window, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    slow_down(monkeypatch)
    button = speaking.panel.composer.button
    said = said_of(speaking)
    assert button.text() == "Ask"
    type_question(speaking, QUESTION)
    wait_until(lambda: said[-1].answer)
    assert button.text() == "Stop"
    if way == "button":
        QTest.mouseClick(button, Qt.MouseButton.LeftButton)
    else:
        QTest.keyClick(speaking.panel.composer.question, Qt.Key.Key_Escape)
    idle(speaking)
    assert said[-1].note == "stopped"
    assert said[-1].answer
    assert button.text() == "Ask"
    speaking.talk.start_over()
    idle(speaking)
    type_question(speaking, QUESTION)  # and it goes on as if nothing had been
    wait_until(lambda: len(said_of(speaking)[-1].answer) > 8)


def test_stopping_while_the_model_looks(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = gate_before_looking(monkeypatch)
    window.files.open(TEAL)
    wait_until(lambda: "teal" in window.windowTitle() and window.picture.doing)
    assert window.picture.doing == "Looking at the picture …"
    looked = told(window.model.worker.seen)
    QTest.mouseClick(window.panel.composer.button, Qt.MouseButton.LeftButton)
    gate.set()
    idle(window)
    assert looked == [] and window.picture.doing == ""
    assert ask(window, SHAPE).answer == "circle"
    assert len(looked) == 1


def test_stopping_a_question_for_which_the_model_looks_first(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = gate_before_looking(monkeypatch)
    window.files.open(TEAL)
    wait_until(lambda: "teal" in window.windowTitle())
    window.model.cancel()
    gate.set()
    idle(window)
    gate.clear()
    type_question(window, SHAPE)
    window.model.cancel()
    gate.set()
    idle(window)
    assert said_of(window)[-1].note == "stopped"
    assert ask(window, SHAPE).answer == "circle"


def test_another_picture_in_the_middle_of_an_answer(speaking: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch)
    answered = told(speaking.model.worker.answered)
    type_question(speaking, QUESTION)
    wait_until(lambda: said_of(speaking)[-1].answer)
    open_and_wait(speaking, TEAL)
    assert [answer.finish_reason for _, answer, _ in answered] == ["cancelled"]
    assert said_of(speaking) == []
    assert speaking.windowTitle().startswith("teal_circle.png")
    first = next(iter(speaking.session.sheets.values()))
    assert (first.said[0].note, first.said[0].answer) == ("stopped", answered[0][1].text)


def test_of_several_pictures_the_last_one_is_looked_at(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = gate_before_looking(monkeypatch)
    opened, looked = told(window.model.worker.opened), told(window.model.worker.seen)
    window.files.open(TEAL)
    wait_until(lambda: opened)
    for path in (RED, TEAL, RED):
        window.files.open(path)
    gate.set()
    idle(window)
    assert [picture.name[:3] for _, picture, _ in opened] == ["tea", "red", "tea", "red"]
    assert len(looked) == 1  # at the last one
    assert ask(window, SHAPE).answer == "triangle"


def test_closing_in_the_middle_of_an_answer(speaking: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch)
    answered = told(speaking.model.worker.answered)
    type_question(speaking, QUESTION)
    wait_until(lambda: said_of(speaking)[-1].answer)
    speaking.close()
    assert speaking.model.isFinished()
    assert not speaking.isVisible()
    assert [answer.finish_reason for _, answer, _ in answered] == ["cancelled"]


def test_starting_over(window: Window) -> None:
    ask(window, "[refer] triangle")
    assert boxes_of(window)
    QTest.keySequence(window, QKeySequence(QKeySequence.StandardKey.New))
    idle(window)
    assert window.panel.conversation.text == ""
    assert not boxes_of(window)
    whole = []
    window.model.worker.answered.connect(lambda request, answer, regions: whole.append(answer))
    assert ask(window, SHAPE).answer == "triangle"
    with TinyGPTV.load() as model:
        assert whole[0].prompt_tokens == model.ask(RED, SHAPE).prompt_tokens


def test_nothing_is_asked_without_a_picture() -> None:
    with shown_window(None, None) as window:
        assert not window.panel.composer.isVisible()
        window.talk.ask(SHAPE)
        assert "no picture to ask about; open one" in window.notice.text
        assert not window.model.busy


def test_the_next_question_can_be_typed_meanwhile(speaking: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch)
    QTest.keyClicks(speaking.panel.composer.question, QUESTION)
    speaking.panel.composer.button.setFocus()
    QTest.keyClick(speaking.panel.composer.button, Qt.Key.Key_Space)
    assert speaking.panel.composer.button.text() == "Stop"
    assert speaking.panel.composer.question.hasFocus()
    QTest.keyClicks(speaking.panel.composer.question, "and why?")
    QTest.keyClick(speaking.panel.composer.question, Qt.Key.Key_Return)  # it is not asked in between
    speaking.model.cancel()
    idle(speaking)
    assert speaking.panel.composer.question.toPlainText() == "and why?"
    assert len(said_of(speaking)) == 1


def test_what_is_selected_stays_selected(speaking: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(monkeypatch)
    type_question(speaking, QUESTION)
    said = said_of(speaking)[-1]
    wait_until(lambda: len(said.answer) > 6)
    shown = speaking.panel.conversation.views[-1].answer_text
    cursor = shown.textCursor()
    cursor.setPosition(1)
    cursor.setPosition(4, cursor.MoveMode.KeepAnchor)
    shown.setTextCursor(cursor)
    selected, so_far = cursor.selectedText(), len(said.answer)
    wait_until(lambda: len(said.answer) > so_far + 6)
    assert shown.textCursor().selectedText() == selected == said.answer[1:4]
    assert speaking.panel.conversation.text == f"{QUESTION}\n{said.answer}"


def test_tasks_put_a_tag_before_the_question(window: Window) -> None:
    composer = window.panel.composer
    caption, _, _, find, _, _ = composer.chips
    QTest.mouseClick(caption, Qt.MouseButton.LeftButton)  # which can stand alone
    assert composer.question.hasFocus()
    assert idle(window).panel.conversation.text == "Caption\na red triangle"
    QTest.mouseClick(find, Qt.MouseButton.LeftButton)
    assert composer.question.placeholderText() == composer.task.hint
    assert not composer.button.isEnabled()  # what is to be found?
    said = ask(window, "triangle")
    assert composer.task is None  # the next question is asked freely
    assert [turn.question for turn in said_of(window)] == ["[caption]", "[detection] triangle"]
    assert said.answer == "red triangle"
    assert window.panel.conversation.text.splitlines()[2:4] == ["Find", "triangle"]
    assert "[" not in window.panel.conversation.text


def test_a_task_that_can_stand_alone_takes_words_that_were_typed(window: Window) -> None:
    composer = window.panel.composer
    QTest.keyClicks(composer.question, "what do you see?")
    QTest.mouseClick(composer.chips[2], Qt.MouseButton.LeftButton)
    assert said_of(window) == [] and composer.task.tag == "[grounding]"
    QTest.keyClick(composer.question, Qt.Key.Key_Return)
    assert [turn.question for turn in said_of(idle(window))] == ["[grounding] what do you see?"]


def test_a_tag_that_was_typed_has_its_name_in_the_history(window: Window) -> None:
    said = ask(window, "[refer] triangle")
    assert (said.task, said.words) == ("Where is", "triangle")


def test_one_task_at_a_time(window: Window) -> None:
    composer = window.panel.composer
    for chip in (composer.chips[3], composer.chips[4]):
        QTest.mouseClick(chip, Qt.MouseButton.LeftButton)
    assert [chip.isChecked() for chip in composer.chips] == [False] * 4 + [True, False]
    QTest.mouseClick(composer.chips[4], Qt.MouseButton.LeftButton)
    assert composer.task is None


def test_what_is_in_this_box_without_a_box(window: Window) -> None:
    said = said_of(window)
    QTest.mouseClick(window.panel.composer.chips[5], Qt.MouseButton.LeftButton)
    type_question(window, "this")
    assert "draw one on the picture" in window.notice.text
    assert said == [] and not window.model.busy
    assert window.panel.composer.question.toPlainText() == "[identify] this"
    window.panel.composer.put("")
    said = ask(window, "[identify] {<22><8><72><62>}")
    assert said.answer == "a red triangle" and len(boxes_of(window)) == 1


def test_a_question_while_the_model_looks_is_answered_after_that(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = gate_before_looking(monkeypatch)
    window.files.open(TEAL)
    wait_until(lambda: window.session.looking)
    looked = told(window.model.worker.seen)
    type_question(window, SHAPE)
    assert window.panel.conversation.views[-1].answer_text.toPlainText() == "Looking at the picture …"
    gate.set()
    idle(window)
    assert said_of(window)[-1].answer == "circle"
    assert len(looked) == 1


def test_another_answer(speaking: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn at random, in the place of the last one; the model then knows that one."""
    first = ask(speaking, QUESTION).answer
    requests = told(speaking.model.worker.answered)
    for _ in range(3):
        QTest.keySequence(speaking, QKeySequence("Ctrl+R"))
        idle(speaking)
    assert len(said_of(speaking)) == 1
    assert {answer.text for _, answer, _ in requests} != {first}
    assert said_of(speaking)[0].text == requests[-1][1].text
    assert speaking.session.sheet.known() == [(QUESTION, requests[-1][1].text)]


def test_another_answer_that_is_stopped_at_once_costs_nothing(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ask(window, "[refer] triangle")
    boxes = boxes_of(window)
    gate = gate_before_looking(monkeypatch)
    window.files.open_bundle(None)
    wait_until(lambda: window.session.looking)
    window.talk.ask_again()
    assert boxes_of(window) == []
    window.model.cancel()
    gate.set()
    idle(window)
    assert boxes_of(window) == boxes and said.answered and said.note == ""


def test_nothing_is_asked_with_an_empty_question(window: Window) -> None:
    type_question(window, "   ")
    assert not window.panel.composer.button.isEnabled()
    assert said_of(window) == []


def test_a_line_break_in_a_question(window: Window) -> None:
    QTest.keyClicks(window.panel.composer.question, "one")
    QTest.keyClick(window.panel.composer.question, Qt.Key.Key_Return, Qt.KeyboardModifier.ShiftModifier)
    QTest.keyClicks(window.panel.composer.question, "two")
    assert window.panel.composer.question.toPlainText() == "one\ntwo"


# Boxes


def test_boxes_are_drawn_over_the_picture(window: Window) -> None:
    plain = window.picture.image.copy()
    written = told(window.model.worker.wrote)
    said = ask(window, "[detection] triangle")
    assert written and not any(set(text) & set("{<>}") for _, text in written)
    assert (said.answer, said.note) == ("red triangle", "")
    assert window.panel.conversation.text.endswith("red triangle\n1 box on the picture")
    assert [region.phrase for region in window.picture.regions] == ["red triangle"]
    assert "red triangle" in window.picture.accessibleDescription()
    assert has_colour(window.picture.grab().toImage(), ORANGE)  # and can be seen
    ask(window, SHAPE)
    assert boxes_of(window) == []
    assert not has_colour(window.picture.grab().toImage(), ORANGE)
    assert window.picture.image == plain  # all the time
    first, _ = window.panel.conversation.views
    first.boxes.emit()
    assert len(boxes_of(window)) == 1


def test_boxes_alone(window: Window) -> None:
    said = ask(window, "[refer] triangle")
    assert (said.answer, said.note) == ("", "")
    assert window.panel.conversation.text.endswith("1 box on the picture")
    window.talk.copy_answer()
    with TinyGPTV.load() as model:
        assert QGuiApplication.clipboard().text() == model.ask(RED, "[refer] triangle").text


def test_a_box_drawn_with_the_mouse_is_asked_about_at_once_and_stays(window: Window) -> None:
    QTest.keyClicks(window.panel.composer.question, "half typed")
    drag_over(window, 0.7, 0.5, 0.2, 0.05)  # in any direction
    (box,) = boxes_of(window)
    assert box == pytest.approx((0.2 * 64, 0.05 * 64, 0.7 * 64, 0.5 * 64), abs=1)
    idle(window)
    (said,) = said_of(window)
    wanted = format_box(0.2 * 64, 0.05 * 64, 0.7 * 64, 0.5 * 64, 64, 64)
    assert said.question == f"[identify] what is this {wanted}"
    assert said.answer == "a red triangle"
    assert boxes_of(window) == [box] and window.picture.regions[0].phrase == "a red triangle"
    assert window.panel.conversation.text == "What is in this box\na red triangle"
    assert window.panel.composer.question.toPlainText() == "half typed"


def test_a_click_is_no_box_and_none_leaves_the_picture(window: Window) -> None:
    place = window.picture._place()
    drag(window.picture, place.center(), place.center() + QPoint(2, 2))
    assert said_of(window) == []
    drag(window.picture, place.center(), place.bottomRight() + QPoint(500, 500))
    assert said_of(window)[-1].question.endswith("<100><100>}")
    idle(window)
    # Of 64 pixels shown on 308, those from 285 on end at 64.00000000000001.
    window.picture.resize(328, 328)
    place = window.picture._place()
    assert place.width() == 308
    drag(window.picture, place.topLeft() + QPoint(285, 2), place.bottomRight() + QPoint(9, 9))
    assert said_of(window)[-1].question.endswith("{<93><1><100><100>}")
    assert boxes_of(window)[0].right == boxes_of(window)[0].bottom == 64


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
    assert boxes_of(window)[0].right > 2048  # in the picture's own pixels
    assert has_colour(window.picture.grab().toImage(), ORANGE)
