"""The page at ``/`` in a real browser: Chromium, without a window."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import bundle_with
from served import IMAGES, Served, serving
from tinygptv.runtime.boxes import plain_text
from tinygptv.runtime.loading import DEMO_BUNDLE

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
TOKEN = "a-word-that-nobody-guesses"

DROP = """
async ([name, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, { type: "image/png" }));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}
"""
COUNT = """
(wanted) => {
  const canvas = document.getElementById("picture");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let count = 0;
  for (let at = 0; at < data.length; at += 4) {
    count += wanted.every((value, channel) => Math.abs(data[at + channel] - value) < 8);
  }
  return count;
}
"""
VERMILLION = [0xD5, 0x5E, 0x00]
"""Of the first box that is drawn."""

OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = own if own.is_file() else next(filter(None, map(shutil.which, PROGRAMS)), None)
        if found is None:
            pytest.skip("no Chromium here: install one (apt install chromium, or playwright install chromium)")
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # whom Chromium's sandbox does not serve
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] * root)
        yield running
        running.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("page")) as running:
        yield running


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Opens the page; afterwards nothing may have gone wrong in it, and nothing have been asked of other servers."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def open_it(served: Served, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        own = (f"{served.url}/", "data:")
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        page.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
        page.goto(served.url)
        return page

    yield open_it
    for context in contexts:
        context.close()
    # Browsers themselves remark on the answer that asks for a token.
    assert [line for line in wrong if "401" not in line] == []


def drop(page: Any, image: str) -> None:
    page.evaluate(DROP, [image, base64.b64encode((IMAGES / image).read_bytes()).decode()])
    page.get_by_text(image, exact=True).wait_for()


def ask(page: Any, question: str) -> str:
    """By the keyboard alone; returns the answer once it is whole."""
    page.get_by_label("Question").fill(question)
    page.keyboard.press("Enter")
    page.locator("#send:enabled").wait_for()
    return page.locator("#talk .answer").last.inner_text()


def test_a_picture_is_dropped_and_asked_about(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    page.get_by_text("demo", exact=True).wait_for()
    drop(page, "red_triangle.png")
    assert ask(page, "[caption]") == "a red triangle"
    assert ask(page, "[vqa] is a triangle present?") == "yes"
    assert page.evaluate(COUNT, VERMILLION) == 0
    assert ask(page, "[detection] triangle") == "red triangle"
    assert page.evaluate(COUNT, VERMILLION) > 500
    label = page.locator("#picture").get_attribute("aria-label")
    assert label.startswith("red_triangle.png; red triangle at ")
    left, top, right, bottom = map(int, label.rpartition(" ")[2].split(","))
    assert [left, top, right, bottom] == pytest.approx([16, 5, 39, 25], abs=2)
    page.get_by_role("button", name="Start over").click()
    assert page.locator("#talk li").count() == 0
    assert page.evaluate(COUNT, VERMILLION) == 0


def test_a_file_is_chosen_and_another_after_it(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    for image, expected in (("teal_circle.png", "a teal circle"), ("red_triangle.png", "a red triangle")):
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Choose a picture").press("Enter")
        chooser.value.set_files(IMAGES / image)
        page.get_by_text(image, exact=True).wait_for()
        assert ask(page, "[caption]") == expected
        assert page.locator("#talk li").count() == 2
    page.get_by_role("button", name="Remove it").click()
    assert page.locator("#picture").is_hidden()
    assert ask(page, "hi")


def test_what_is_no_picture(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    page.evaluate(DROP, ["notes.txt", base64.b64encode(b"hello").decode()])
    page.get_by_text("notes.txt is no picture that this browser can show").wait_for()


def test_it_is_all_reached_by_tab(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    drop(page, "red_triangle.png")
    reached = []
    page.locator("#choose").focus()
    for _ in range(4):
        reached.append(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    assert reached == ["choose", "remove", "question", "send"]


def test_stopping(tmp_path: Path, open_page: OpenPage) -> None:
    with serving(tmp_path, slowly=0.4) as slow:
        page = open_page(slow)
        drop(page, "red_triangle.png")
        page.get_by_label("Question").fill("[detection] triangle")
        page.keyboard.press("Enter")
        page.locator("#talk .answer", has_text="red").wait_for()  # the first words of it
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped").wait_for()
        assert page.locator("#stop").is_hidden()
        assert ask(page, "[caption]") == "a red triangle"
        assert slow.health()["cancelled"] == 1


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


def test_a_model_without_boxes(tmp_path: Path, open_page: OpenPage) -> None:
    """What would be boxes elsewhere is text: the demo's answers, under a manifest that knows no boxes."""
    plain = bundle_with(DEMO_BUNDLE, tmp_path / "plain", name="plain", family="bunny", tasks=(), boxes=False)
    with serving(tmp_path, "--bundle", str(plain)) as running:
        page = open_page(running)
        page.get_by_text("plain", exact=True).wait_for()
        drop(page, "red_triangle.png")
        assert ask(page, "[detection] triangle") == "<p>red triangle</p> {<25><8><61><39>}"
        assert page.evaluate(COUNT, VERMILLION) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(scheme: str, served: Served, open_page: OpenPage) -> None:
    page = open_page(served, color_scheme=scheme)
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = min(int(part) for part in colour.strip("rgb()").split(",")) > 128
    assert bright == (scheme == "light")


def test_it_fits_a_phone(served: Served, open_page: OpenPage) -> None:
    page = open_page(served, viewport={"width": 360, "height": 640})
    drop(page, "red_triangle.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
