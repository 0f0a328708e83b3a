"""How the window looks: bubbles, boxes over the picture, and what happens to them when it is small."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path

import pytest
from numpy.lib.stride_tricks import sliding_window_view

pytest.importorskip("PySide6.QtWidgets", reason="Qt's libraries are not on this system", exc_type=ImportError)

from PySide6.QtCore import QEvent, QPoint, QPointF, QRect, Qt
from PySide6.QtGui import QColor, QEnterEvent, QGuiApplication, QImage
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QMenu, QWidget
from tinygptv.runtime.app.assets import ASSETS
from tinygptv.runtime.app.dialogs import about_dialog, help_dialog
from tinygptv.runtime.app.turns import Said
from tinygptv.runtime.app.window import Window
from tinygptv.runtime.boxes import Box, Region
from windows import ORANGE, RED, SHAPE, TEAL, ask, has_colour, idle, is_colour, menu_action, open_and_wait

pytest_plugins = "app_fixtures"


def in_sight(window: Window, widget: QWidget) -> bool:
    """Whether all of it can be seen in the conversation."""
    port = window.panel.conversation.viewport()
    top = widget.mapTo(port, QPoint(0, 0)).y()
    return top >= 0 and top + widget.height() <= port.height()


def test_the_newest_answer_stays_in_sight(window: Window) -> None:
    for number in range(8):
        ask(window, f"is it red? {number}")
    QTest.qWait(20)
    newest = window.panel.conversation.views[-1].answer_text
    for size in ((1080, 700), (900, 500), (700, 560), (400, 600), (1080, 700)):
        window.resize(*size)
        QTest.qWait(20)
        assert in_sight(window, newest), size
    window.files.open("nowhere.png")  # an error takes room
    idle(window)
    QTest.qWait(20)
    assert in_sight(window, newest)


def test_somebody_who_reads_further_up_is_left_there(window: Window) -> None:
    for number in range(12):
        ask(window, f"is it red? {number}")
    QTest.qWait(20)
    conversation = window.panel.conversation
    bar = conversation.verticalScrollBar()
    over = conversation.views[-1].answer_text.viewport()
    at = over.mapTo(window, over.rect().center())
    QTest.wheelEvent(window.windowHandle(), at, QPoint(0, 1200))
    QTest.qWait(10)
    place = bar.value()
    assert place < bar.maximum()  # although the mouse was over a bubble
    conversation.update_of(conversation.views[-1].said)
    conversation.views[-1].said.answer += "\nmore" * 4
    conversation.update_of(conversation.views[-1].said)
    QTest.qWait(20)
    assert bar.value() == place
    ask(window, SHAPE)  # asking goes to the end
    QTest.qWait(20)
    assert bar.value() == bar.maximum()


def test_it_stacks_where_it_is_narrow(window: Window) -> None:
    for width, orientation in ((1080, Qt.Orientation.Horizontal), (799, Qt.Orientation.Vertical)):
        window.resize(width, 800)
        QTest.qWait(10)
        assert window.work.orientation() == orientation
    window.resize(window.minimumSize())
    QTest.qWait(10)
    assert window.width() <= 400 and window.height() <= 560
    composer = window.panel.composer
    for widget in (composer.button, composer.question, window.picture):
        corner = widget.mapTo(window, QPoint(widget.width(), widget.height()))
        assert widget.isVisible() and corner.x() <= window.width() and corner.y() <= window.height()
        assert not widget.visibleRegion().isEmpty()


def test_nothing_is_cut_off_in_the_smallest_window(window: Window) -> None:
    open_and_wait(window, TEAL)
    ask(window, "[detection] circle")
    window.resize(window.minimumSize())
    composer = window.panel.composer
    parts = [*composer.chips, composer.question, composer.button, window.status._memory]
    for error in (False, True):  # which takes room
        if error:
            window.files.open("nowhere.png")
        idle(window)
        QTest.qWait(50)
        places = [QRect(part.mapTo(window, QPoint()), part.size()) for part in parts]
        for part, place in zip(parts, places, strict=True):
            assert window.rect().contains(place), part
            assert part.height() >= part.minimumSizeHint().height(), part
        assert not any(one.intersects(other) for one, other in combinations(places, 2))
    assert window.notice.isVisible()


def test_long_words_wrap(window: Window) -> None:
    conversation = window.panel.conversation
    said = ask(window, "what is this " + "x" * 400)
    said.answer = "y" * 900
    conversation.update_of(said)
    QTest.qWait(20)
    view = conversation.views[-1]
    assert view.width() <= conversation.viewport().width()
    assert view.answer_text.width() < view.width()
    assert view.answer_text.height() > 3 * view.answer_text.fontMetrics().height()
    assert window.minimumSizeHint().width() < 420


def test_names_are_elided(window: Window, tmp_path: Path) -> None:
    path = shutil.copy(RED, tmp_path / f"{'long ' * 40}.png")
    size = window.size()
    open_and_wait(window, path)
    window.status.tell("word " * 200)
    window.header.show_model("bundle" * 40, loading=True)
    QTest.qWait(10)
    assert window.size() == size and window.minimumSizeHint().width() < 420
    assert "word " * 20 in window.status._doing.toolTip()


def test_text_is_large_enough(window: Window) -> None:
    said = ask(window, SHAPE)
    view = window.panel.conversation.views[-1]
    assert view.said is said and view.answer_text.font().pixelSize() == 15
    assert window.panel.composer.question.font().pixelSize() == 15


def test_a_short_bubble_is_narrow_and_the_question_is_on_the_right(window: Window) -> None:
    ask(window, SHAPE)
    QTest.qWait(10)
    view = window.panel.conversation.views[-1]
    question, answer = view._question, view._answer
    assert question.x() + question.width() == view.width() and answer.x() == 0
    assert answer.width() < 0.5 * view.width()


def test_copying_with_the_mouse(window: Window) -> None:
    ask(window, SHAPE)
    ask(window, "is it red?")
    first, last = window.panel.conversation.views
    QTest.qWait(10)
    assert first._copy_answer._quiet and not last._copy_answer._quiet
    first.setAttribute(Qt.WidgetAttribute.WA_UnderMouse)
    QApplication.sendEvent(first, QEnterEvent(QPointF(5, 5), QPointF(5, 5), QPointF(5, 5)))
    assert not first._copy_answer._quiet and not first._copy_question._quiet
    QTest.mouseClick(first._copy_answer, Qt.MouseButton.LeftButton)
    assert QGuiApplication.clipboard().text() == "triangle"
    assert first._copy_answer._icon == "check"
    QTest.mouseClick(first._copy_question, Qt.MouseButton.LeftButton)
    assert QGuiApplication.clipboard().text() == SHAPE
    assert last._again.isVisible() and not first._again.isVisible()


def test_regenerating_with_the_mouse(window: Window) -> None:
    ask(window, SHAPE)
    QTest.qWait(10)
    QTest.mouseClick(window.panel.conversation.views[-1]._again, Qt.MouseButton.LeftButton)
    assert window.model.answering
    idle(window)
    assert len(window.panel.conversation.views) == 1


def test_nothing_else_appears_on_the_screen(window: Window) -> None:
    """A widget that is shown before it has its place is a window for a moment, and takes the focus with it."""
    shown: list[QWidget] = []

    class Watch(QWidget):
        def eventFilter(self, watched: QWidget, event: QEvent) -> bool:
            if event.type() == QEvent.Type.Show and isinstance(watched, QWidget) and watched.isWindow():
                shown.append(watched)
            return False

    watch = Watch()
    QApplication.instance().installEventFilter(watch)
    ask(window, "[detection] triangle")
    open_and_wait(window, TEAL)
    window.files.open("nowhere.png")
    ask(idle(window), SHAPE)
    QApplication.instance().removeEventFilter(watch)
    assert shown == []
    assert window.isActiveWindow()


# Boxes


def painted(window: Window, scale: int = 1) -> QImage:
    """The picture as a screen of so many pixels to the point would show it."""
    view = window.picture
    image = QImage(view.size() * scale, QImage.Format.Format_RGB32)
    image.setDevicePixelRatio(scale)
    view.render(image)
    return image


def thickness(image: QImage, column: int, middle: int) -> int:
    """Of the upper edge of a box, in pixels."""
    return int(is_colour(image, ORANGE)[:middle, column].sum())


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("side", [16, 64, 3000])
def test_boxes_are_as_sharp_on_small_pictures_as_on_large_ones(window: Window, side: int, scale: int) -> None:
    image = QImage(side, side, QImage.Format.Format_RGB32)
    image.fill(QColor("gray"))
    open_and_wait(window, image)
    quarter = side // 4
    box = Box(quarter, quarter, 3 * quarter, 3 * quarter)
    window.picture.show_regions((Region(None, (box,)),))
    middle = window.picture._place().center() * scale
    assert thickness(painted(window, scale), middle.x(), middle.y()) == 3 * scale


@pytest.mark.parametrize("size", [(64, 64), (4000, 20), (20, 4000)])
def test_labels_can_be_read_on_any_picture(window: Window, size: tuple[int, int]) -> None:
    image = QImage(*size, QImage.Format.Format_RGB32)
    image.fill(QColor("gray"))
    open_and_wait(window, image)
    half = (size[0] // 2, size[1] // 2)
    for box in (Box(0, 0, *half), Box(*half, *size), Box(0, 0, *size)):
        window.picture.show_regions((Region("a dog", (box,)),))
        blocks = sliding_window_view(is_colour(painted(window), ORANGE), (14, 4)).all(axis=(2, 3))
        assert blocks.any(), box  # the margin beside a label's letters; no line is as wide


def test_one_pixel_can_be_seen(window: Window) -> None:
    open_and_wait(window, QImage(RED).scaled(3000, 3000))
    window.picture.show_regions((Region(None, (Box(1500, 1500, 1501, 1501),)),))
    assert has_colour(painted(window), ORANGE)


def test_boxes_of_a_long_label_and_of_many(window: Window) -> None:
    """Labels that do not fit are elided or left out, and none raises an error."""
    boxes = tuple(Box(x, y, x + 6, y + 6) for x in range(0, 60, 6) for y in range(0, 60, 6))
    window.picture.show_regions((Region("word " * 100, boxes), Region("b\n<b>c</b>", boxes[:3])))
    for width in (1200, 500):
        window.resize(width, 600)
        QTest.qWait(10)
        painted(window)


def test_the_boxes_of_an_earlier_answer(window: Window) -> None:
    said = ask(window, "[detection] triangle")
    ask(window, SHAPE)
    assert window.picture.regions == ()
    button = window.panel.conversation.views[0]._boxes
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)
    assert window.picture.regions == said.regions


# What is around it


def test_help_and_about(window: Window) -> None:
    for dialog in (help_dialog(window), about_dialog(window, "a <b>name</b>", window.session.manifest)):
        dialog.open()
        QTest.qWait(10)
        QTest.keyClick(dialog, Qt.Key.Key_Escape)
        assert not dialog.isVisible()
    keys = [action.shortcut().toString() for menu in window.menuBar().findChildren(QMenu) for action in menu.actions()]
    from tinygptv.runtime.app.dialogs import HELP

    missing = [key for key in keys if key and key not in HELP and key not in ("F1", "Ctrl+Q", "Ctrl+Shift+V")]
    assert missing == []
    menu_action(window, "Help").trigger()
    menu_action(window, "About tinygptv").trigger()
    QTest.qWait(10)


def test_it_has_an_icon(window: Window) -> None:
    icon = window.windowIcon().pixmap(64, 64).toImage()
    assert icon.pixelColor(2, 32).name() == "#2f5bd3"
    assert (ASSETS / "tinygptv.svg").read_text(encoding="utf-8").startswith("<svg")


def test_a_launcher_starts_the_app() -> None:
    lines = (ASSETS / "tinygptv.desktop").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "[Desktop Entry]"
    entries = dict(line.split("=", 1) for line in lines[1:])
    assert entries["Exec"].split() == ["tinygptv", "app", "%F"]
    assert entries["Icon"] == "tinygptv" and entries["Type"] == "Application"


def test_the_answer_of_a_turn_that_is_not_shown(window: Window) -> None:
    """What comes for a conversation that was left changes nothing that is shown."""
    ask(window, SHAPE)
    text = window.panel.conversation.text
    window.panel.conversation.update_of(Said("another", answer="answer"))
    assert window.panel.conversation.text == text
