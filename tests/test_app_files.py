"""Pictures and bundles that are dropped on the window, pasted, chosen, and wrong."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import QUESTION, spoil

pytest.importorskip("PySide6.QtWidgets", reason="Qt's libraries are not on this system", exc_type=ImportError)

from PySide6.QtCore import QMimeData, Qt, QUrl
from PySide6.QtGui import QGuiApplication, QKeySequence
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QDialogButtonBox, QFileDialog, QLineEdit
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.app.window import Window
from tinygptv.runtime.language.decoder import DecoderState
from windows import (
    RED,
    SHAPE,
    TEAL,
    answers,
    ask,
    drop,
    file_data,
    idle,
    image_data,
    open_and_wait,
    said_of,
    shown_window,
    type_question,
    wait_until,
)

pytest_plugins = "app_fixtures"

Bundle = Callable[[int, str], Path]


def test_dropping_a_file(window: Window) -> None:
    assert drop(window, file_data(TEAL))
    idle(window)
    assert ask(window, SHAPE).answer == "circle"
    assert drop(window.panel.composer.question.viewport(), file_data(RED))  # over what takes text otherwise
    idle(window)
    assert window.panel.composer.question.toPlainText() == ""
    assert ask(window, SHAPE).answer == "triangle"


def test_dropping_something_else(window: Window) -> None:
    data = QMimeData()
    data.setText("some text")
    assert not drop(window, data)
    address = QMimeData()
    address.setUrls([QUrl("https://example.org/photo.jpg")])
    assert not drop(window, address)
    assert not drop(window, file_data(TEAL), Qt.DropAction.MoveAction)


@pytest.mark.parametrize("where", ["question", "picture", "conversation", "menu"])
def test_pasting_a_picture(window: Window, where: str) -> None:
    QGuiApplication.clipboard().setMimeData(image_data(TEAL))
    if where == "menu":
        QTest.keySequence(window, QKeySequence("Ctrl+Shift+V"))
    else:
        panel = window.panel
        places = {"question": panel.composer.question, "picture": window.picture, "conversation": panel.conversation}
        target = places[where]
        target.setFocus()
        QTest.keySequence(target, QKeySequence(QKeySequence.StandardKey.Paste))
    idle(window)
    assert window.windowTitle().startswith("pasted picture")
    assert ask(window, SHAPE).answer == "circle"


def test_pasting_a_copied_file_and_text(window: Window) -> None:
    QGuiApplication.clipboard().setMimeData(file_data(TEAL))
    QTest.keySequence(window.panel.composer.question, QKeySequence(QKeySequence.StandardKey.Paste))
    idle(window)
    assert window.windowTitle().startswith("teal_circle.png")
    both = image_data(RED)  # as a spreadsheet copies its cells
    both.setText("is it")
    QGuiApplication.clipboard().setMimeData(both)
    QTest.keySequence(window.panel.composer.question, QKeySequence(QKeySequence.StandardKey.Paste))
    assert window.panel.composer.question.toPlainText() == "is it"
    window.panel.composer.question.clear()
    QGuiApplication.clipboard().setText("is it red?")
    QTest.keySequence(window.panel.composer.question, QKeySequence(QKeySequence.StandardKey.Paste))
    assert window.panel.composer.question.toPlainText() == "is it red?"
    window.files.paste()
    assert "no picture" in window.notice.text
    assert window.windowTitle().startswith("teal_circle.png")


def fail_once(monkeypatch: pytest.MonkeyPatch, message: str = "a shape does not fit") -> None:
    """The next answer ends in an error of onnxruntime's."""
    run = DecoderState.run

    def fail(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(DecoderState, "run", run)
        raise RuntimeError(message)

    monkeypatch.setattr(DecoderState, "run", fail)


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


@pytest.mark.parametrize("way", ["click", "key"])
def test_choosing_the_first_picture(way: str) -> None:
    with shown_window(None, None) as window:
        button = window.start_page.open_button
        if way == "click":
            QTest.mouseClick(button, Qt.MouseButton.LeftButton)
        else:
            button.setFocus()
            QTest.keyClick(button, Qt.Key.Key_Space)
        choose(window, RED)
        assert ask(window, SHAPE).answer == "triangle"
        QTest.mouseClick(window.picture, Qt.MouseButton.LeftButton)  # now it is for drawing boxes
        assert window.findChild(QFileDialog) is None


def test_choosing_a_bundle(window: Window, golden_bundle: Bundle) -> None:
    ask(window, SHAPE)
    bundle = golden_bundle(3, "fp32")
    note = window.panel.note
    assert note.isVisibleTo(note.parentWidget())
    QTest.keySequence(window, QKeySequence("Ctrl+B"))
    choose(window, str(bundle))
    assert window.windowTitle() == f"red_triangle.png - {bundle.name} - tinygptv"
    assert not note.isVisibleTo(note.parentWidget())
    assert [turn.answer for turn in said_of(window)] == ["triangle"]  # the other model had said it
    said = ask(window, QUESTION)
    with TinyGPTV.load(bundle) as model:
        assert [said.answer] == answers(model, RED, QUESTION)  # to which that is unknown
    assert f"From here on {bundle.name} answers" in said.divider


# What goes wrong


def test_a_wrong_bundle_costs_nothing(window: Window, golden_bundle: Bundle, tmp_path: Path) -> None:
    ask(window, SHAPE)
    incomplete = shutil.copytree(golden_bundle(4, "int8"), tmp_path / "incomplete")
    (incomplete / "decoder.onnx").unlink()
    for wrong in (tmp_path, tmp_path / "nowhere", incomplete):
        window.files.open_bundle(wrong)
        idle(window)
        assert str(wrong) in window.notice.text
    assert ask(window, "is it red?").answer == "yes"
    assert not window.notice.isVisible()
    assert len(said_of(window)) == 2


def test_a_bundle_that_cannot_be_loaded_after_all(window: Window, golden_bundle: Bundle, tmp_path: Path) -> None:
    """Its files have the right size: it is noticed when the one before is gone already."""
    broken = shutil.copytree(golden_bundle(4, "int8"), tmp_path / "broken")
    spoil(broken, "decoder.onnx", lambda data: bytes(len(data)))
    window.files.open_bundle(broken)
    idle(window)
    assert "decoder.onnx" in window.notice.text
    assert window.windowTitle() == "red_triangle.png - tinygptv"
    type_question(window, SHAPE)
    idle(window)
    assert "no model is loaded" in window.notice.text
    assert window.panel.composer.question.toPlainText() == SHAPE  # to be asked again
    window.files.open_bundle(None)
    idle(window)
    QTest.keyClick(window.panel.composer.question, Qt.Key.Key_Return)
    idle(window)
    assert said_of(window)[-1].answer == "triangle"


def test_a_picture_that_is_none_costs_nothing(window: Window, tmp_path: Path) -> None:
    ask(window, SHAPE)
    (tmp_path / "text.png").write_text("text")
    for wrong in (str(tmp_path / "text.png"), str(tmp_path / "nowhere.png"), str(tmp_path)):
        open_and_wait(window, wrong)
        assert window.notice.isVisible()
    assert ask(window, "is it red?").answer == "yes"
    assert len(said_of(window)) == 2


def test_a_question_that_is_too_long_is_given_back(speaking: Window) -> None:
    long = "word " * 400
    speaking.panel.composer.question.put(long)
    QTest.mouseClick(speaking.panel.composer.button, Qt.MouseButton.LeftButton)
    idle(speaking)
    assert "context" in speaking.notice.text
    assert speaking.panel.composer.question.toPlainText() == long.strip()
    assert said_of(speaking) == []


def test_a_failed_question_does_not_replace_the_next(speaking: Window) -> None:
    speaking.panel.composer.question.put("word " * 400)
    QTest.mouseClick(speaking.panel.composer.button, Qt.MouseButton.LeftButton)
    speaking.panel.composer.question.put("the next one")
    idle(speaking)
    assert "context" in speaking.notice.text
    assert speaking.panel.composer.question.toPlainText() == "the next one"
    assert said_of(speaking)[-1].note == "failed"


def test_names_may_be_long_and_look_like_html(window: Window, tmp_path: Path) -> None:
    size = window.size()
    path = tmp_path / f"{'long' * 50}<b>bold<b>.png"
    shutil.copy(TEAL, path)
    open_and_wait(window, str(path))
    window.files.open(str(path.with_suffix(".jpg")))
    idle(window)
    assert "<b>bold<b>" in window.notice.text
    QTest.qWait(20)
    assert window.size() == size and window.minimumSizeHint().width() < size.width()


def test_the_model_before_is_gone_when_the_next_is_loaded(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it had failed in the middle of an answer."""
    fail_once(monkeypatch)
    alive: list[bool] = []
    sessions = weakref.ref(window.model.worker._model._engine.sessions)
    load = window.model.worker._load

    def looking(bundle: Path | None, **options: Any) -> TinyGPTV:
        alive.append(sessions() is not None)
        return load(bundle, **options)

    monkeypatch.setattr(window.model.worker, "_load", looking)
    type_question(window, SHAPE)
    idle(window)
    assert "RuntimeError" in window.notice.text
    window.files.open_bundle(None)
    idle(window)
    assert alive == [False]


def test_turns_that_no_longer_fit_are_told_of(speaking: Window) -> None:
    notes = [ask(speaking, QUESTION).note for _ in range(3)]
    assert any("no longer fit" in note for note in notes)


def test_a_want_of_memory_is_told(
    window: Window, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fail_once(monkeypatch, "Failed to allocate memory")
    type_question(window, SHAPE)
    idle(window)
    assert "there is not enough memory: demo needs about" in window.notice.text
    assert "Traceback" not in capfd.readouterr().err


def test_what_nobody_expected_is_shown(
    window: Window, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fail_once(monkeypatch)
    type_question(window, SHAPE)
    idle(window)
    assert "RuntimeError: a shape does not fit" in window.notice.text
    assert "Traceback" in capfd.readouterr().err
    QTest.keyClick(window.panel.composer.question, Qt.Key.Key_Return)
    idle(window)
    assert said_of(window)[-1].answer == "triangle"
