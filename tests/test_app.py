"""``tinygptv app``: the real window, offscreen, with real models behind it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import QUESTION, spoil

pytest.importorskip("PySide6.QtWidgets", reason="Qt's libraries are not on this system", exc_type=ImportError)

from PIL import Image
from PySide6.QtCore import QMimeData, QPoint, Qt, QTimer
from PySide6.QtGui import QColor, QGuiApplication, QKeySequence, QPalette
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QDialogButtonBox, QFileDialog, QLineEdit, QPushButton
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.app import appearance
from tinygptv.runtime.app.window import DEMO_HINT, Window
from tinygptv.runtime.boxes import format_box, plain_text
from tinygptv.runtime.decoder import DecoderState
from tinygptv.runtime.vision import Vision
from windows import (
    ORANGE,
    RED,
    TEAL,
    ask,
    drag,
    drop,
    file_data,
    has_colour,
    idle,
    image_data,
    open_and_wait,
    type_question,
    wait_until,
)

SHAPE = "what shape is in the image?"
Bundle = Callable[[int, str], Path]


@pytest.fixture(scope="module", autouse=True)
def application() -> Iterator[QApplication]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QT_QPA_PLATFORM", "offscreen")
        app = QApplication.instance() or QApplication([])
    QApplication.setAttribute(Qt.ApplicationAttribute.AA_DontUseNativeDialogs)
    yield app
    app.clipboard().clear()


@pytest.fixture
def make_window() -> Iterator[Callable[[], Window]]:
    made: list[Window] = []

    def make() -> Window:
        made.append(Window(TinyGPTV.load))
        made[-1].show()
        made[-1].activateWindow()
        QTest.qWaitForWindowActive(made[-1])
        return made[-1]

    yield make
    for window in made:
        window.close()


@pytest.fixture
def window(make_window: Callable[[], Window]) -> Window:
    """With the demo model and a red triangle."""
    window = make_window()
    window.open_bundle(None)
    return open_and_wait(window, RED)


@pytest.fixture
def speaking(make_window: Callable[[], Window], golden_bundle: Bundle, photo: Path) -> Window:
    """With a model whose answers are long, and go on for ten seconds with :func:`slowly`."""
    window = make_window()
    window.open_bundle(golden_bundle(3, "fp32"))
    return open_and_wait(window, str(photo))


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    run = DecoderState.run

    def slow(*arguments: Any, **named: Any) -> Any:
        threading.Event().wait(0.05)
        return run(*arguments, **named)

    monkeypatch.setattr(DecoderState, "run", slow)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The model does not look at a picture before it is set."""
    opened, look = threading.Event(), Vision.image_features

    def waiting(*arguments: Any) -> Any:
        assert opened.wait(60)
        return look(*arguments)

    monkeypatch.setattr(Vision, "image_features", waiting)
    return opened


def answers(model: TinyGPTV, image: str, *questions: str) -> list[str]:
    chat = model.chat(image)
    return [plain_text(chat.ask(question).text) for question in questions]


# Asking


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


def test_the_window_lives_meanwhile(speaking: Window, slowly: None) -> None:
    """Its own timer goes off between two tokens; it would not if the model ran in its thread."""
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
def test_stopping_an_answer(speaking: Window, slowly: None, way: str) -> None:
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


def test_stopping_while_the_model_looks(window: Window, gate: threading.Event) -> None:
    window.open_picture(TEAL)
    wait_until(lambda: "teal" in window.windowTitle())
    assert "Looking at teal_circle.png" in window.status.text
    QTest.mouseClick(window.panel.stop_button, Qt.MouseButton.LeftButton)
    gate.set()
    idle(window)
    assert ask(window, SHAPE).answer == "circle"  # it looks now


def test_stopping_a_question_for_which_the_model_looks_first(window: Window, gate: threading.Event) -> None:
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


def test_another_picture_in_the_middle_of_an_answer(speaking: Window, slowly: None) -> None:
    type_question(speaking, QUESTION)
    wait_until(lambda: speaking.panel.conversation.said[-1].answer)
    open_and_wait(speaking, TEAL)
    assert speaking.panel.conversation.said == []
    assert speaking.windowTitle().startswith("teal_circle.png")


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


def test_without_a_picture(make_window: Callable[[], Window]) -> None:
    window = make_window()
    window.open_bundle(None)
    idle(window)
    said = ask(window, SHAPE)
    with TinyGPTV.load() as model:
        assert said.answer == model.ask(None, SHAPE).text


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
    said = ask(window, "[detection] triangle")
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


# Pictures and bundles


def test_dropping_a_file(window: Window) -> None:
    assert drop(window, file_data(TEAL))
    idle(window)
    assert ask(window, SHAPE).answer == "circle"
    assert drop(window.panel.question.viewport(), file_data(RED))  # over what takes text otherwise
    idle(window)
    assert window.panel.question.toPlainText() == ""
    assert ask(window, SHAPE).answer == "triangle"


def test_dropping_something_else(window: Window) -> None:
    data = QMimeData()
    data.setText("some text")
    assert not drop(window, data)
    address = QMimeData()
    address.setText("https://example.org/photo.jpg")
    assert not drop(window, address)


@pytest.mark.parametrize("where", ["question", "picture", "menu"])
def test_pasting_a_picture(window: Window, where: str) -> None:
    QGuiApplication.clipboard().setMimeData(image_data(TEAL))
    if where == "menu":
        QTest.keySequence(window, QKeySequence("Ctrl+Shift+V"))
    else:
        target = getattr(window, where, None) or window.panel.question
        target.setFocus()
        QTest.keySequence(target, QKeySequence(QKeySequence.StandardKey.Paste))
    idle(window)
    assert window.windowTitle().startswith("pasted picture")
    assert ask(window, SHAPE).answer == "circle"


def test_pasting_a_copied_file_and_text(window: Window) -> None:
    QGuiApplication.clipboard().setMimeData(file_data(TEAL))
    QTest.keySequence(window.panel.question, QKeySequence(QKeySequence.StandardKey.Paste))
    idle(window)
    assert window.windowTitle().startswith("teal_circle.png")
    QGuiApplication.clipboard().setText("is it red?")
    QTest.keySequence(window.panel.question, QKeySequence(QKeySequence.StandardKey.Paste))
    assert window.panel.question.toPlainText() == "is it red?"
    window.paste_picture()
    assert "no picture" in window.panel.error.text()
    assert window.windowTitle().startswith("teal_circle.png")


def choose(window: Window, path: str) -> None:
    """Type a path into the dialog that is open."""
    wait_until(lambda: window.findChild(QFileDialog) and window.findChild(QFileDialog).isVisible())
    dialog = window.findChild(QFileDialog)
    field = dialog.findChild(QLineEdit)
    field.setText(path)
    buttons = dialog.findChild(QDialogButtonBox)
    accept = next(b for b in buttons.buttons() if buttons.buttonRole(b) == QDialogButtonBox.ButtonRole.AcceptRole)
    QTest.mouseClick(accept, Qt.MouseButton.LeftButton)
    wait_until(lambda: not dialog.isVisible())
    idle(window)


def test_choosing_a_picture(window: Window) -> None:
    QTest.keySequence(window, QKeySequence(QKeySequence.StandardKey.Open))
    choose(window, TEAL)
    assert ask(window, SHAPE).answer == "circle"


def test_choosing_a_bundle(window: Window, golden_bundle: Bundle) -> None:
    ask(window, SHAPE)
    bundle = golden_bundle(3, "fp32")
    assert window.panel.conversation.placeholderText() == DEMO_HINT
    QTest.keySequence(window, QKeySequence("Ctrl+B"))
    choose(window, str(bundle))
    assert window.windowTitle() == f"red_triangle.png - {bundle.name} - tinygptv"
    assert window.panel.conversation.said == []  # the other model had said it
    assert window.panel.conversation.placeholderText() == ""
    said = ask(window, QUESTION)
    with TinyGPTV.load(bundle) as model:
        assert [said.answer] == answers(model, RED, QUESTION)


# What goes wrong


def test_a_wrong_bundle_costs_nothing(window: Window, golden_bundle: Bundle, tmp_path: Path) -> None:
    ask(window, SHAPE)
    incomplete = shutil.copytree(golden_bundle(4, "int8"), tmp_path / "incomplete")
    (incomplete / "decoder.onnx").unlink()
    for wrong in (tmp_path, tmp_path / "nowhere", incomplete):
        window.open_bundle(wrong)
        idle(window)
        assert str(wrong) in window.panel.error.text()
    assert ask(window, "is it red?").answer == "yes"
    assert not window.panel.error.isVisible()
    assert len(window.panel.conversation.said) == 2


def test_a_bundle_that_cannot_be_loaded_after_all(window: Window, golden_bundle: Bundle, tmp_path: Path) -> None:
    """Its files have the right size: it is noticed when the one before is gone already."""
    broken = shutil.copytree(golden_bundle(4, "int8"), tmp_path / "broken")
    spoil(broken, "decoder.onnx", lambda data: bytes(len(data)))
    window.open_bundle(broken)
    idle(window)
    assert "decoder.onnx" in window.panel.error.text()
    type_question(window, SHAPE)
    idle(window)
    assert "no model is loaded" in window.panel.error.text()
    assert window.panel.question.toPlainText() == SHAPE  # to be asked again
    window.open_bundle(None)
    idle(window)
    QTest.keyClick(window.panel.question, Qt.Key.Key_Return)
    idle(window)
    assert window.panel.conversation.said[-1].answer == "triangle"


def test_a_picture_that_is_none_costs_nothing(window: Window, tmp_path: Path) -> None:
    ask(window, SHAPE)
    (tmp_path / "text.png").write_text("text")
    for wrong in (str(tmp_path / "text.png"), str(tmp_path / "nowhere.png"), b"bytes"):
        open_and_wait(window, wrong)
        assert window.panel.error.isVisible()
    assert ask(window, "is it red?").answer == "yes"
    assert len(window.panel.conversation.said) == 2


def test_a_question_that_is_too_long_is_given_back(speaking: Window) -> None:
    long = "word " * 400
    speaking.panel.question.put(long)
    QTest.mouseClick(speaking.panel.ask_button, Qt.MouseButton.LeftButton)
    idle(speaking)
    assert "context" in speaking.panel.error.text()
    assert speaking.panel.question.toPlainText() == long.strip()
    assert speaking.panel.conversation.said == []


def test_turns_that_no_longer_fit_are_told_of(speaking: Window) -> None:
    notes = [ask(speaking, QUESTION).note for _ in range(3)]
    assert any("no longer fit" in note for note in notes)


def test_what_nobody_expected_is_shown(
    window: Window, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("Failed to allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(DecoderState, "run", fail)
        type_question(window, SHAPE)
        idle(window)
    assert "RuntimeError: Failed to allocate memory" in window.panel.error.text()
    assert "Traceback" in capfd.readouterr().err
    QTest.keyClick(window.panel.question, Qt.Key.Key_Return)
    idle(window)
    assert window.panel.conversation.said[-1].answer == "triangle"


# The window itself


def test_status(window: Window) -> None:
    assert "looked at the picture for" in window.status.text
    ask(window, "[caption]")
    assert "tokens/s" in window.status.text and "first token after" in window.status.text
    assert window.status.text.endswith(" GB")


def test_loading_is_shown(make_window: Callable[[], Window]) -> None:
    window = make_window()
    window.open_bundle(None)
    assert "Loading built-in demo" in window.status.text
    assert window.status._busy.isVisible()
    assert not window.panel.ask_button.isEnabled()
    idle(window)
    assert not window.status._busy.isVisible()
    assert "Loading" not in window.status.text


def test_everything_is_reached_with_the_keyboard(window: Window) -> None:
    window.panel.question.put("is it red?")
    reached = []
    for _ in range(8):
        reached.append(QApplication.focusWidget())
        QTest.keyClick(reached[-1], Qt.Key.Key_Tab)
    panel = window.panel
    assert {panel.question, panel.task, panel.ask_button, panel.conversation, window.picture} <= set(reached)
    assert all(widget.accessibleName() or isinstance(widget, QPushButton) for widget in reached)
    *menus, view = window.menuBar().actions()
    keys = [action.shortcut().toString() for menu in menus for action in menu.menu().actions()]
    assert len(keys) == 7 and all(keys) and len(set(keys)) == len(keys)
    assert all("&" in action.text() for menu in (*menus, view) for action in (menu, *menu.menu().actions()))


def test_copying_the_answer(window: Window) -> None:
    ask(window, "[detection] triangle")
    QTest.keySequence(window, QKeySequence("Ctrl+Shift+C"))
    assert QGuiApplication.clipboard().text() == "red triangle"


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
    view = window.menuBar().actions()[-1].menu()
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


def test_closing_in_the_middle_of_an_answer(speaking: Window, slowly: None) -> None:
    type_question(speaking, QUESTION)
    wait_until(lambda: speaking.panel.conversation.said[-1].answer)
    speaking.close()
    assert speaking.model.isFinished()
    assert not speaking.isVisible()


def test_closing_while_it_loads(make_window: Callable[[], Window]) -> None:
    window = make_window()
    window.open_bundle(None)
    window.open_picture(RED)
    window.close()
    assert window.model.isFinished()
