"""The page at ``/`` in a real browser: nothing of a conversation is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import (
    COMPLETIONS,
    OpenPage,
    answered,
    ask,
    asked,
    colour_count,
    drag,
    drop,
    give,
    ramble,
    sent,
    type_question,
)
from PIL import Image
from served import IMAGES, Served, wait_until

pytest_plugins = "browser_fixtures"


def choose(page: Any, name: str, picture: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name=name).press("Enter")
    chooser.value.set_files(picture)


def test_a_question_survives_a_failed_request(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    drop(page, "red_triangle.png")
    ask(page, "is it red?")
    page.route(COMPLETIONS, lambda route: route.abort())
    type_question(page, "what shape is it?")
    answered(page, 2)
    page.locator(".foot .bad", has_text="The server does not answer. Is it still running?").wait_for()
    page.unroute(COMPLETIONS)
    page.reload()
    page.get_by_text("demo", exact=True).wait_for()
    with page.expect_request(COMPLETIONS) as request:
        page.get_by_role("button", name="Try again").click()
    assert sent(request.value) == [
        ("user", "[picture] is it red?"),
        ("assistant", "yes"),
        ("user", "what shape is it?"),
    ]
    assert answered(page, 2) == "triangle"
    assert asked(page) == ["is it red?", "what shape is it?"]


def test_what_the_server_refuses(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    drop(page, "red_triangle.png")
    ask(page, "shape " * 600)
    assert "512" in page.locator("#talk .foot .bad").inner_text(), "the size of the context"
    assert ask(page, "[caption]") == "a red triangle"


def test_a_reload_keeps_the_conversation(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    drop(page, "red_triangle.png")
    ask(page, "is it red?")
    drag(page, 0.25, 0.08, 0.61, 0.39)
    answered(page, 2)
    page.get_by_role("button", name="Where is").click()
    page.get_by_label("Question", exact=True).fill("trian")
    page.reload()
    page.get_by_text("demo", exact=True).wait_for()
    assert page.locator("#name").inner_text() == "red_triangle.png"
    assert asked(page) == ["is it red?", "What is in this box"]
    assert page.locator("#talk .question canvas").count() == 1
    wait_until(lambda: page.get_by_label("Question", exact=True).input_value() == "trian")
    assert page.get_by_role("button", name="Where is").get_attribute("aria-pressed") == "true"
    assert colour_count(page) > 500
    with page.expect_request(COMPLETIONS) as request:
        assert ask(page, "gle"), "what was typed before is replaced"
    said = sent(request.value)
    assert [role for role, _ in said] == ["user", "assistant"] * 2 + ["user"]
    assert said[0] == ("user", "[picture] is it red?")
    assert said[-1] == ("user", "[refer] gle")
    page.get_by_label("Question", exact=True).fill("")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.get_by_label("Question", exact=True).input_value() == "is it red?"


def test_a_reload_while_an_answer_is_written(slow: Served, open_page: OpenPage) -> None:
    page = open_page(slow)
    drop(page, "red_triangle.png")
    page.route(COMPLETIONS, ramble)
    type_question(page, "[detection] triangle")
    page.locator("#talk .answer .text").wait_for()
    page.unroute(COMPLETIONS)
    page.reload()
    page.locator(".foot .bad", has_text="The page was left before this answer was complete").wait_for()
    page.get_by_role("button", name="Try again").click()
    assert answered(page, 1) == "red triangle"
    assert asked(page) == ["Find triangle"]


def test_a_user_faster_than_the_server(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    page.get_by_label("Question", exact=True).fill("a draft")
    held: list[Any] = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.reload()
    wait_until(lambda: page.title() and len(held) == 1)
    give(page, "red_triangle.png")
    type_question(page, "is it red?")
    page.keyboard.press("Enter")
    assert page.locator("#talk .answer").count() == 0
    held[0].continue_()
    assert answered(page, 1) == "yes"
    assert asked(page) == ["is it red?"]
    assert page.locator("#name").inner_text() == "red_triangle.png"
    assert page.get_by_label("Question", exact=True).input_value() == ""


def test_a_picture_too_large_to_keep(served: Served, open_page: OpenPage, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    large = tmp_path / "large.png"
    Image.fromarray(noise).save(large, compress_level=0)
    page = open_page(served)
    choose(page, "Choose a picture", large)
    page.get_by_text("large.png is too large for the browser to keep").wait_for()
    ask(page, "is it red?")
    page.reload()
    page.get_by_text("large.png was too large for the browser to keep").wait_for()
    assert asked(page) == ["is it red?"]
    type_question(page, "is it blue?")
    page.get_by_text("Open large.png again to go on").last.wait_for()
    choose(page, "Choose a picture", large)
    page.locator("#stage").wait_for()
    with page.expect_request(COMPLETIONS) as request:
        page.keyboard.press("Enter")
    assert [text for role, text in sent(request.value) if role == "user"] == ["[picture] is it red?", "is it blue?"]
    answered(page, 2)


@pytest.mark.parametrize("action", ["start over", "remove", "another picture"])
def test_nothing_is_cleared_without_asking(action: str, served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    drop(page, "red_triangle.png")
    ask(page, "[detection] triangle")

    def act() -> None:
        if action == "another picture":
            choose(page, "Replace", IMAGES / "teal_circle.png")
        else:
            page.get_by_role("button", name={"start over": "Start over", "remove": "Remove"}[action]).click()
        page.get_by_role("dialog").get_by_text("red_triangle.png (1 question) will be cleared").wait_for()

    act()
    assert page.evaluate("document.activeElement.textContent") == "Keep it"
    page.keyboard.press("Enter")
    act()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    assert asked(page) == ["Find triangle"]
    assert page.locator("#name").inner_text() == "red_triangle.png"
    assert colour_count(page) > 500
    act()
    page.get_by_role("dialog").get_by_role("button").last.click()
    wait_until(lambda: asked(page) == [])
    page.reload()
    page.get_by_text("demo", exact=True).wait_for()
    assert asked(page) == []
    if action == "remove":
        assert page.locator("#stage").is_hidden()
    else:
        assert colour_count(page) == 0
        assert ask(page, "[caption]") == ("a red triangle" if action == "start over" else "a teal circle")
