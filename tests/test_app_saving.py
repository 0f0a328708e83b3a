"""Conversations and pictures that the window saves, and conversations that it opens again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PySide6.QtWidgets", reason="Qt's libraries are not on this system", exc_type=ImportError)

from PIL import Image, ImageChops
from PySide6.QtCore import Qt
from PySide6.QtGui import QImage, QKeySequence
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QDialogButtonBox, QFileDialog, QLineEdit
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.app.saving import FORMAT
from tinygptv.runtime.app.window import Window
from tinygptv.runtime.drawing import draw_regions
from windows import (
    RED,
    SHAPE,
    TEAL,
    ask,
    boxes_of,
    drag_over,
    drop,
    file_data,
    idle,
    open_and_wait,
    said_of,
    shown_window,
    wait_until,
)


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Window]:
    """With the demo model and a conversation about a red triangle, whose file is in ``tmp_path``."""
    picture = shutil.copy(RED, tmp_path / "dreieck ü.png")
    with shown_window(None, str(picture)) as window:
        ask(window, SHAPE)
        ask(window, "[detection] triangle")
        yield window


def enter(window: Window, path: Path) -> None:
    """Type a path into the dialog that is open."""
    wait_until(lambda: any(dialog.isVisible() for dialog in window.findChildren(QFileDialog)))
    dialog = next(dialog for dialog in window.findChildren(QFileDialog) if dialog.isVisible())
    dialog.findChild(QLineEdit).setText(str(path))
    buttons = dialog.findChild(QDialogButtonBox)
    accept = next(b for b in buttons.buttons() if buttons.buttonRole(b) == QDialogButtonBox.ButtonRole.AcceptRole)
    QTest.mouseClick(accept, Qt.MouseButton.LeftButton)
    wait_until(lambda: not dialog.isVisible())
    idle(window)


def test_a_conversation_is_saved_and_opened_again(window: Window, tmp_path: Path) -> None:
    said, boxes, text = said_of(window), boxes_of(window), window.panel.conversation.text
    QTest.keySequence(window, QKeySequence(QKeySequence.StandardKey.Save))
    enter(window, tmp_path / "talk ü")
    assert f"saved {tmp_path / 'talk ü.json'}" in window.status.text
    (tmp_path / "dreieck ü.png").unlink()  # the picture is in the file
    with shown_window(None, None) as other:
        QTest.keySequence(other, QKeySequence("Ctrl+Shift+O"))
        enter(other, tmp_path / "talk ü.json")
        assert other.windowTitle() == "dreieck ü.png - built-in demo - tinygptv"
        assert other.panel.conversation.text == text
        assert [vars(turn) for turn in said_of(other)] == [vars(turn) for turn in said]
        other.talk.show_boxes(said_of(other)[1])
        assert boxes_of(other) == boxes
        turns = other.session.sheet.known()
        assert ask(other, "is it red?").divider == ""
        with TinyGPTV.load() as model:
            assert turns == [(turn.question, turn.text) for turn in said]
            assert said_of(other)[-1].answer == model.chat(RED, turns=turns).ask("is it red?").text


def test_a_conversation_is_dropped_on_the_window(window: Window, tmp_path: Path) -> None:
    window.files.save_conversation(tmp_path / "talk.json")
    with shown_window(None) as other:
        assert drop(other, file_data(str(tmp_path / "talk.json")))
        idle(other)
        assert len(said_of(other)) == 2 and len(other.session.sheets) == 2


def test_another_model_goes_on_with_it(
    window: Window, tmp_path: Path, golden_bundle: Callable[[int, str], Path]
) -> None:
    window.files.save_conversation(tmp_path / "talk.json")
    with shown_window(golden_bundle(4, "int8"), None) as other:
        other.files.open(str(tmp_path / "talk.json"))
        idle(other)
        assert len(said_of(other)) == 2 and other.session.sheet.known() == []
        assert "does not know what was said above" in ask(other, SHAPE).divider


def test_a_box_of_the_users_own_is_saved(window: Window, tmp_path: Path) -> None:
    drag_over(window, 0.2, 0.1, 0.7, 0.5)
    idle(window)
    window.files.save_conversation(tmp_path / "talk.json")
    with shown_window(None, None) as other:
        other.files.open(str(tmp_path / "talk.json"))
        idle(other)
        other.talk.show_boxes(said_of(other)[-1])
        assert boxes_of(other) == boxes_of(window)


def test_markdown(window: Window, tmp_path: Path) -> None:
    drag_over(window, 0.2, 0.1, 0.7, 0.5)
    idle(window)
    path = tmp_path / "talk.md"
    window.files.save_conversation(path)
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    assert lines[:3] == ["# dreieck ü.png", "64 by 64 pixels. Answers of tinygptv.", "Model: built-in demo"]
    assert lines[3] == f"> {SHAPE}"
    assert lines[4:7] == ["triangle", "> **Find** triangle", "red triangle"]
    box = boxes_of(window)[0]
    assert lines[8:] == [
        "> **What is in this box**",
        "a red triangle",
        f"- a red triangle: {box.left}, {box.top} to {box.right}, {box.bottom} (pixels)",
    ]


def test_the_picture_is_saved_with_its_boxes(window: Window, tmp_path: Path) -> None:
    QTest.keySequence(window, QKeySequence("Ctrl+Shift+S"))
    enter(window, tmp_path / "boxes")
    assert f"saved {tmp_path / 'boxes.png'}" in window.status.text
    with Image.open(tmp_path / "boxes.png") as saved:
        expected = draw_regions(RED, said_of(window)[1].regions)
        assert saved.size == (64, 64) and ImageChops.difference(saved.convert("RGB"), expected).getbbox() is None
    window.session.save_picture(str(tmp_path / "boxes.xyz"))
    idle(window)
    assert "boxes.xyz is not a name for a picture" in window.notice.text
    window.session.save_picture(str(tmp_path / "nowhere" / "boxes.png"))
    idle(window)
    assert f"the picture cannot be saved: {tmp_path / 'nowhere' / 'boxes.png'}: No such file" in window.notice.text
    assert {path.name for path in tmp_path.iterdir()} == {"dreieck ü.png", "boxes.png"}


def test_a_large_picture_is_saved_in_its_own_size(tmp_path: Path) -> None:
    with shown_window(None, None) as window:
        open_and_wait(window, QImage(RED).scaled(2500, 2500))
        ask(window, "[detection] triangle")
        window.session.save_picture(str(tmp_path / "large.jpg"))
        idle(window)
        with Image.open(tmp_path / "large.jpg") as saved:
            assert (saved.size, saved.format) == ((2500, 2500), "JPEG")


def test_nothing_is_saved_where_there_is_nothing(tmp_path: Path) -> None:
    with shown_window(None, None) as window:
        for keys in ("Ctrl+S", "Ctrl+Shift+S"):
            QTest.keySequence(window, QKeySequence(keys))
        assert window.findChildren(QFileDialog) == []


def test_a_conversation_that_cannot_be_saved(window: Window, tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text("precious")
    window.files.save_conversation(tmp_path / "talk.json" / "below a file.json")
    assert "the conversation cannot be saved" in window.notice.text and "Errno" not in window.notice.text
    assert (tmp_path / "talk.json").read_text() == "precious"


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update({name: value})


def put_box(box: list[Any]) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["turns"][1]["regions"][0].update({"boxes": [box]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", "another"), f"has format 'another'; expected {FORMAT!r}"),
        (put("version", 2), "update tinygptv"),
        (put("turns", 3), "turns: found 3"),
        (put("picture", "@@@"), "is damaged"),
        (put("picture", "AAAA"), "is not a picture"),
        (put("known_from", 9), "known_from is 9"),
        (put_box([0, 0, 65, 10]), "is not within 64 x 64 pixels"),
        (put_box([0, 0, 10]), "boxes"),
        (lambda document: document.pop("name"), "no field name"),
        (lambda document: document["turns"][0].pop("answer"), "turns[0]: no field answer"),
    ],
)
def test_a_damaged_conversation_is_refused(
    window: Window, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = tmp_path / "talk.json"
    window.files.save_conversation(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document))
    window.files.open(str(path))
    idle(window)
    assert message in window.notice.text
    assert len(window.session.sheets) == 1 and len(said_of(window)) == 2


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe", b"{" * 5000, b'{"format": {}}'])
def test_another_file_is_no_conversation(window: Window, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    window.files.open(str(path))
    assert str(path) in window.notice.text and "expected" in window.notice.text
    assert not re.search("codec|recursion", window.notice.text)
    window.files.open(str(tmp_path / "nowhere.json"))
    assert "nowhere.json cannot be read" in window.notice.text


def test_a_conversation_with_another_picture_in_it(window: Window, tmp_path: Path) -> None:
    """Whose boxes would be somewhere else."""
    path = tmp_path / "talk.json"
    window.files.save_conversation(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    open_and_wait(window, QImage(TEAL).scaled(32, 32))
    ask(window, SHAPE)
    window.files.save_conversation(tmp_path / "other.json")
    document["picture"] = json.loads((tmp_path / "other.json").read_text(encoding="utf-8"))["picture"]
    path.write_text(json.dumps(document))
    window.files.open(str(path))
    idle(window)
    assert "32 by 32" in window.notice.text and len(window.session.sheets) == 2
