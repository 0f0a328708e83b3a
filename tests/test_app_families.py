"""``tinygptv app`` offers the tasks and boxes that the model knows, and no others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import bundle_with

pytest.importorskip("PySide6.QtWidgets", reason="Qt's libraries are not on this system", exc_type=ImportError)

from PIL import Image
from PySide6.QtCore import Qt
from siblings import FAMILIES, SIBLINGS
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.app.window import Window
from tinygptv.runtime.bundle.manifest import read_manifest
from tinygptv.runtime.loading import DEMO_BUNDLE
from windows import ORANGE, RED, ask, boxes_of, drag_over, has_colour, idle, said_of, shown_window

DETECT = "[detection] triangle"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """The demo, said to be of a family without tags and boxes."""
    return bundle_with(DEMO_BUNDLE, tmp_path / "plain", family="bunny", stage=None, tasks=(), boxes=False)


def tasks_of(window: Window) -> list[str]:
    return [task.tag for task in window.panel.composer._tasks]


def test_a_family_without_tasks_and_boxes(plain: Path) -> None:
    with TinyGPTV.load() as model:
        text = model.ask(RED, DETECT).text
    with shown_window(plain) as window:
        assert tasks_of(window) == [] and window.panel.composer.chips == []
        assert window.picture.cursor().shape() == Qt.CursorShape.ArrowCursor
        said = ask(window, DETECT)
        assert (said.answer, said.note) == (text, "")
        assert "{<" in text  # what would be boxes elsewhere is shown as it is
        assert boxes_of(window) == []
        assert said.words == DETECT  # nor is there a task
        drag_over(window, 0.2, 0.1, 0.7, 0.5)
        assert len(said_of(window)) == 1 and boxes_of(window) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_siblings(family: str, sibling_bundle: Callable[..., Path]) -> None:
    bundle, picture = sibling_bundle(family), str(SIBLINGS / family / "picture.png")
    questions = (DETECT, "And how many?")
    with TinyGPTV.load(bundle) as model:
        chat = model.chat(picture)
        expected = [chat.ask(question).text for question in questions]
    with shown_window(bundle, picture) as window:
        assert tasks_of(window) == []
        assert [ask(window, question).answer for question in questions] == expected
        drag_over(window, 0.2, 0.1, 0.7, 0.5)
        assert len(said_of(window)) == len(questions)
        assert not has_colour(window.picture.grab().toImage(), ORANGE)


def test_what_is_offered_changes_with_the_bundle(plain: Path) -> None:
    with shown_window(None) as window:
        assert sorted(tasks_of(window)) == sorted(read_manifest(DEMO_BUNDLE).tasks)
        assert tasks_of(window)[0] == "[caption]"  # whatever the manifest's order
        window.panel.composer.choose("[vqa]")
        window.files.open_bundle(plain)
        idle(window)
        assert tasks_of(window) == [] and window.panel.composer.task is None
        window.files.open_bundle(None)
        idle(window)
        assert "[vqa]" in tasks_of(window)
        ask(window, DETECT)
        assert len(boxes_of(window)) == 1
        drag_over(window, 0.2, 0.1, 0.7, 0.5)
        assert said_of(window)[-1].question.startswith("[identify] ")


def test_a_tag_without_a_name_is_offered_as_it_is(tmp_path: Path) -> None:
    with shown_window(bundle_with(DEMO_BUNDLE, tmp_path / "other", tasks=("[ocr]", "[vqa]"))) as window:
        assert [chip.text() for chip in window.panel.composer.chips] == ["Short answer", "[ocr]"]
        assert tasks_of(window) == ["[vqa]", "[ocr]"]


def test_boxes_of_a_model_that_is_shown_a_padded_picture(tmp_path: Path) -> None:
    """The upper two thirds of the usual picture, padded in its own background's colour."""
    image = replace(read_manifest(DEMO_BUNDLE).image, fit="pad", pad_color=(244, 248, 250))
    padded = bundle_with(DEMO_BUNDLE, tmp_path / "padded", image=image)
    low = tmp_path / "low.png"
    with Image.open(RED) as picture:
        picture.convert("RGB").crop((0, 0, 64, 44)).save(low)
    with shown_window(padded, str(low)) as window:
        ask(window, "[refer] triangle")
        (box,) = boxes_of(window)
        assert abs(box.top - 5) <= 1 and abs(box.bottom - 26) <= 1
        drag_over(window, 0, 0, 1, 1)
        assert said_of(window)[-1].question == "[identify] what is this {<0><16><100><84>}"


def test_a_box_where_the_model_sees_nothing(tmp_path: Path) -> None:
    cropped = bundle_with(
        DEMO_BUNDLE, tmp_path / "cropped", image=replace(read_manifest(DEMO_BUNDLE).image, fit="crop")
    )
    wide = tmp_path / "wide.png"
    Image.new("RGB", (128, 64), "white").save(wide)
    with shown_window(cropped, str(wide)) as window:
        drag_over(window, 0, 0, 0.2, 1)
        assert said_of(window) == []
        assert "this model is shown 32 to 96" in window.notice.text
        drag_over(window, 0.5, 0, 0.75, 1)
        assert said_of(window)[-1].question.startswith("[identify] what is this {<50><")
