"""The page at ``/`` in a real browser: asking, and what is seen of pictures and answers."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from browsing import (
    COMPLETIONS,
    DROP,
    NARROW,
    OpenPage,
    answered,
    ask,
    asked,
    colour_count,
    drag,
    drop,
    ramble,
    sent,
    type_question,
)
from conftest import bundle_with
from served import IMAGES, Served, serving, wait_until
from tinygptv.runtime.boxes import plain_text
from tinygptv.runtime.drawing import PALETTE, contrasting
from tinygptv.runtime.loading import DEMO_BUNDLE

pytest_plugins = "browser_fixtures"
TOKEN = "a-word-that-nobody-guesses"
Viewport = dict[str, int]
SCROLLER = "document.getElementById('scroller')"
BELOW = f"{SCROLLER}.scrollHeight - {SCROLLER}.clientHeight - {SCROLLER}.scrollTop"
"""Pixels of the conversation that are below what is in sight."""


def test_a_picture_is_dropped_and_asked_about(served: Served, open_page: OpenPage, viewport: Viewport) -> None:
    page = open_page(served, viewport=viewport)
    page.get_by_text("demo", exact=True).wait_for()
    drop(page, "red_triangle.png")
    assert ask(page, "[caption]") == "a red triangle"
    assert ask(page, "[vqa] is a triangle present?") == "yes"
    assert colour_count(page) == 0
    assert ask(page, "[detection] triangle") == "red triangle"
    assert colour_count(page) > 200
    assert asked(page) == ["Caption", "Short answer is a triangle present?", "Find triangle"]
    label = page.locator("#picture").get_attribute("aria-label")
    assert label.startswith("red_triangle.png; red triangle at ")
    left, top, right, bottom = map(int, label.rpartition(" ")[2].split(","))
    assert [left, top, right, bottom] == pytest.approx([16, 5, 39, 25], abs=2)


def test_boxes_of_an_earlier_answer(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    drop(page, "red_triangle.png")
    assert ask(page, "[refer] triangle") == "Shown on the picture"
    ask(page, "what shape is it?")
    assert colour_count(page) == 0
    page.get_by_role("button", name="1 box").click()
    assert colour_count(page) > 500


def test_the_question_box_stays_in_sight(served: Served, open_page: OpenPage, viewport: Viewport) -> None:
    page = open_page(served, viewport=viewport)
    page.get_by_text("demo", exact=True).wait_for()
    field, picture = page.get_by_label("Question", exact=True), page.locator("#stage")

    def in_sight() -> bool:
        area = field.bounding_box()
        across = page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        return across and area["y"] >= 0 and area["y"] + area["height"] <= viewport["height"]

    assert in_sight()
    drop(page, "red_triangle.png")
    before = picture.bounding_box()["height"]
    assert in_sight()
    for number in range(5):
        ask(page, f"what shape is it? ({number})")
        assert in_sight()
    if viewport["width"] < 800:
        small = picture.bounding_box()["height"]
        assert small < 0.75 * before
        page.get_by_role("button", name="Enlarge").click()
        assert picture.bounding_box()["height"] > 1.5 * small
        assert in_sight()
    page.get_by_label("Question", exact=True).fill("\n".join("abcdefghijklmnop"))
    assert in_sight()


def test_it_follows_an_answer(tmp_path: Path, open_page: OpenPage, viewport: Viewport) -> None:
    with serving(tmp_path, slowly=0.03) as steady:
        page = open_page(steady, viewport=viewport | {"height": 420})
        text = page.locator("#talk .answer .text").last

        def grows_by(count: int) -> None:
            before = len(text.inner_text())
            wait_until(lambda: len(text.inner_text()) > before + count)

        def follows() -> None:
            wait_until(lambda: page.evaluate(BELOW) < 2)  # a new line is followed in the next frame

        drop(page, "red_triangle.png")
        for question in ("is it red?", "what shape is it?", "is it blue?"):
            ask(page, question)
            follows()
        assert page.locator("#newest").is_hidden()
        page.route(COMPLETIONS, ramble)
        type_question(page, "what is this?")
        page.locator('#talk .answer[aria-busy="true"] .text').wait_for()
        grows_by(20)
        follows()
        page.locator("#scroller").hover()
        page.mouse.wheel(0, -150)
        page.locator("#newest").wait_for()
        grows_by(20)
        assert page.evaluate(BELOW) > 30
        page.get_by_role("button", name="Jump to newest").click()
        grows_by(20)
        follows()
        assert page.locator("#newest").is_hidden()
        page.keyboard.press("Escape")
        answered(page, 4)


def test_first_it_looks_and_then_it_writes(slow: Served, open_page: OpenPage) -> None:
    page = open_page(slow)
    drop(page, "red_triangle.png")
    type_question(page, "[grounding] what do you see?")
    foot = page.locator("#talk .answer .foot")
    foot.get_by_text("Looking").wait_for()
    assert page.locator("#badge").is_visible()
    assert page.locator("#status").inner_text() == "Looking …"
    foot.get_by_text("Writing").wait_for()
    assert page.locator("#badge").is_hidden()
    assert "{" not in page.locator("#talk .answer .text").inner_text()
    assert answered(page, 1) == "a red triangle"


def test_stopping(slow: Served, open_page: OpenPage) -> None:
    page = open_page(slow)
    before = slow.health()["cancelled"]
    drop(page, "red_triangle.png")
    for way in ("button", "escape"):
        count = page.locator("#talk .answer").count() + 1
        type_question(page, "[detection] triangle")
        page.locator("#talk .answer .text").nth(count - 1).get_by_text("red").wait_for()  # its first words
        type_question(page, "is it red?")
        page.get_by_text("An answer is being written").wait_for()
        page.get_by_role("button", name="Stop").click() if way == "button" else page.keyboard.press("Escape")
        page.locator("#talk .answer .foot").nth(count - 1).get_by_text("Stopped").wait_for()
        assert page.get_by_label("Question", exact=True).input_value() == "is it red?"
    assert ask(page, "[caption]") == "a red triangle"
    assert slow.health()["cancelled"] == before + 2


def test_several_lines_and_earlier_questions(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    drop(page, "red_triangle.png")
    field = page.get_by_label("Question", exact=True)
    ask(page, "is it red?")
    ask(page, "[detection] triangle")
    low = field.bounding_box()["height"]
    field.fill("what shape")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("is it?")
    assert field.input_value() == "what shape\nis it?"
    assert field.bounding_box()["height"] > low + 15
    page.keyboard.press("ArrowUp")  # to the line above, not to a question before
    assert field.input_value() == "what shape\nis it?"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    assert field.input_value() == "triangle"
    assert page.get_by_role("button", name="Find").get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowUp")
    assert field.input_value() == "is it red?"
    assert page.get_by_role("button", name="Find").get_attribute("aria-pressed") == "false"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert field.input_value() == "what shape\nis it?"


def test_tasks(served: Served, open_page: OpenPage) -> None:
    page = open_page(served, viewport=NARROW)
    page.get_by_text("demo", exact=True).wait_for()
    chips = page.get_by_role("group", name="Kind of question").get_by_role("button")
    names = ["Caption", "Short answer", "Describe with boxes", "Find", "Where is", "What is in this box"]
    assert chips.all_inner_texts() == names
    assert not any(chip.is_enabled() for chip in chips.all()), "there is nothing to ask about yet"
    drop(page, "red_triangle.png")
    page.get_by_label("Question", exact=True).fill("is it blue?")
    with page.expect_request(COMPLETIONS) as request:
        chips.nth(0).click()  # needs no words
    assert sent(request.value) == [("user", "[picture] [caption]")]
    assert answered(page, 1) == "a red triangle"
    assert page.get_by_label("Question", exact=True).input_value() == "is it blue?"
    chips.nth(3).click()
    assert chips.nth(3).get_attribute("aria-pressed") == "true"
    with page.expect_request(COMPLETIONS) as request:
        type_question(page, "shape")
    assert sent(request.value)[-1] == ("user", "[detection] shape")
    assert answered(page, 2) == "red triangle"
    assert chips.nth(3).get_attribute("aria-pressed") == "false", "the next question is free again"
    assert asked(page) == ["Caption", "Find shape"]


def test_a_box_is_drawn_and_asked_about(served: Served, open_page: OpenPage, viewport: Viewport) -> None:
    page = open_page(served, viewport=viewport)
    drop(page, "red_triangle.png")
    ask(page, "is it red?")
    with page.expect_request(COMPLETIONS) as request:
        drag(page, 0.25, 0.08, 0.61, 0.39)
    assert answered(page, 2) == "a red triangle"
    task, _, box = sent(request.value)[-1][1].partition(" {")
    assert task == "[identify] what is this"
    assert [int(edge) for edge in box.strip("<>}").split("><")] == pytest.approx([25, 8, 61, 39], abs=1)
    assert asked(page)[-1] == "What is in this box"
    assert page.locator("#talk .question canvas").count() == 1
    assert colour_count(page) > 200, "it stays"
    assert "a red triangle at" in page.locator("#picture").get_attribute("aria-label")


def test_a_box_is_drawn_by_the_keyboard(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    drop(page, "red_triangle.png")
    page.get_by_role("button", name="What is in this box").press("Enter")
    assert page.evaluate("document.activeElement.id") == "picture"
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft", "Shift+ArrowDown"):
        page.keyboard.press(key)
    assert colour_count(page) > 200
    with page.expect_request(COMPLETIONS) as request:
        page.keyboard.press("Enter")
    assert sent(request.value)[-1][1] == "[picture] [identify] what is this {<28><26><68><68>}"
    assert answered(page, 1) == "a red triangle"


def test_a_task_that_needs_a_box_says_so(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    drop(page, "red_triangle.png")
    type_question(page, "[identify] what color is this")
    page.get_by_text("Draw a box on the picture").wait_for()
    assert page.get_by_label("Question", exact=True).input_value() == "[identify] what color is this"
    assert ask(page, "[identify] what is this {<25><8><61><39>}") == "a red triangle"
    assert asked(page) == ["What is in this box what is this"]


def test_samples(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    page.get_by_text("This is the built-in demo.").wait_for()
    edges = "[96, 72, 288, 252]", "", "[60, 120, 312, 276]"  # of what was drawn, in pixels
    for number, (question, expected) in enumerate(
        (
            ("Find triangle", "red triangle"),
            ("What color is the shape?", "blue"),
            ("Describe with boxes", "a teal rectangle"),
        )
    ):
        page.locator(".sample").nth(number).click()
        assert answered(page, 1) == expected
        assert asked(page) == [question]
        if edges[number]:
            label = page.locator("#picture").get_attribute("aria-label")
            found = [int(edge) for edge in label.rpartition(" ")[2].split(",")]
            assert found == pytest.approx(json.loads(edges[number]), abs=12)
        page.get_by_role("button", name="Remove").click()
        page.get_by_role("button", name="Remove and start over").click()


def test_without_a_picture(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    page.get_by_text("demo", exact=True).wait_for()
    type_question(page, "is a circle round?")
    page.get_by_text("There is no picture yet").wait_for()
    assert page.get_by_label("Question", exact=True).input_value() == "is a circle round?"
    with page.expect_request(COMPLETIONS) as request:
        page.get_by_role("button", name="Ask without a picture").click()
    assert sent(request.value) == [("user", "is a circle round?")]
    assert answered(page, 1)


def test_what_is_no_picture(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    page.evaluate(DROP, ["notes.txt", base64.b64encode(b"hello").decode()])
    page.get_by_text("notes.txt is not a picture that this browser can show").wait_for()


def test_it_is_all_reached_by_tab(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    drop(page, "red_triangle.png")
    ask(page, "[detection] triangle")
    page.get_by_label("Question", exact=True).fill("is it red?")
    reached = []
    page.locator("#fresh").focus()
    for _ in range(15):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        page.keyboard.press("Tab")
    chips = ["Caption", "Short answer", "Describe with boxes", "Find", "Where is", "What is in this box"]
    sides = ["fresh", "picture", "replace", "remove", "scroller", "Copy", "1 box"]
    assert reached == [*sides, *chips, "question", "send"]


def test_copying(served: Served, open_page: OpenPage) -> None:
    page = open_page(served, permissions=["clipboard-read", "clipboard-write"])
    drop(page, "red_triangle.png")
    ask(page, "[detection] triangle")
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "red triangle"


def test_a_token_is_asked_for(tmp_path: Path, open_page: OpenPage) -> None:
    with serving(tmp_path, TINYGPTV_TOKEN=TOKEN) as guarded:
        page = open_page(guarded)
        field = page.get_by_label("This server asks for its token")
        field.fill("another")
        field.press("Enter")
        page.get_by_text("That is not the token").wait_for()
        field.fill(TOKEN)
        field.press("Enter")
        page.get_by_text("demo", exact=True).wait_for()
        assert field.is_hidden()
        drop(page, "teal_circle.png")
        assert ask(page, "[caption]") == "a teal circle"


def test_boxes_are_taken_out_of_the_words(served: Served, open_page: OpenPage) -> None:
    """Also while an answer is being written, so that no part of them is ever shown."""
    page = open_page(served)
    answer = "<p>a man</p> {<1><2><30><40>}<delim>{<50><2><80><40>} with <p>a dog</p> {<5><60><70><80>}."
    for end in range(len(answer) + 1):
        shown = page.evaluate("words", answer[:end])
        assert shown == plain_text(answer[:end]).strip()


def test_colours_are_those_of_drawn_pictures(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    assert page.evaluate("COLOURS") == ["#{:02x}{:02x}{:02x}".format(*colour) for colour in PALETTE]
    assert page.evaluate("INKS") == ["#fff" if contrasting(colour)[0] else "#000" for colour in PALETTE]


def test_a_model_without_boxes(tmp_path: Path, open_page: OpenPage) -> None:
    """What would be boxes elsewhere is text: the demo's answers, under a manifest that knows no boxes."""
    plain = bundle_with(DEMO_BUNDLE, tmp_path / "plain", name="demo", family="bunny", tasks=(), boxes=False)
    with serving(tmp_path, "--bundle", str(plain)) as running:
        page = open_page(running)
        page.get_by_text("demo", exact=True).wait_for()
        assert page.locator(".sample").count() == 0, "it is not the demo, whatever its name"
        drop(page, "red_triangle.png")
        assert page.get_by_role("group", name="Kind of question").is_hidden()
        drag(page, 0.2, 0.2, 0.6, 0.6)
        assert page.locator("#talk li").count() == 0
        assert ask(page, "[detection] triangle") == "<p>red triangle</p> {<25><8><61><39>}"
        assert asked(page) == ["[detection] triangle"]
        assert colour_count(page) == 0


def test_light_and_dark(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        bright = min(int(part) for part in colour.strip("rgb()").split(",")) > 128
        assert bright == (scheme == "light")


def test_a_picture_of_few_pixels_is_shown_at_the_resolution_of_the_screen(served: Served, open_page: OpenPage) -> None:
    page = open_page(served, device_scale_factor=2)
    drop(page, "red_triangle.png")
    width = page.locator("#picture").bounding_box()["width"]
    assert width > 300, f"{IMAGES} has pictures of 64 pixels"
    assert page.evaluate("document.getElementById('picture').width") == pytest.approx(2 * width, abs=2)
