"""The server's page in a real browser, and a user's hands for it: Chromium, without a window."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import IMAGES, RAMBLING, Served, serving
from tinygptv.runtime.drawing import PALETTE

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
COMPLETIONS = "**/v1/chat/completions"

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

OpenPage = Callable[..., Any]


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("page")) as running:
        yield running


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Each token takes a while, so that one sees an answer being written."""
    with serving(tmp_path_factory.mktemp("slow page"), slowly=0.1) as running:
        yield running


@pytest.fixture(params=[WIDE, NARROW], ids=["wide", "narrow"])
def viewport(request: pytest.FixtureRequest) -> dict[str, int]:
    return request.param


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Opens the page; afterwards nothing may have gone wrong in it, and nothing have been asked of other servers."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def open_it(served: Served, **options: Any) -> Any:
        contexts.append(browser.new_context(**({"viewport": WIDE} | options)))
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
    # Browsers themselves remark on requests that fail, as some do here on purpose.
    assert [line for line in wrong if "Failed to load resource" not in line] == []


def drop(page: Any, image: str) -> None:
    page.evaluate(DROP, [image, base64.b64encode((IMAGES / image).read_bytes()).decode()])
    page.locator("#name", has_text=image).wait_for(state="attached")
    page.locator("#stage").wait_for()


def type_question(page: Any, question: str) -> None:
    page.get_by_label("Question", exact=True).fill(question)
    page.keyboard.press("Enter")


def answered(page: Any, count: int) -> str:
    """Waits until so many questions have their complete answers; returns the last one."""
    page.locator('#talk .answer[aria-busy="false"]').nth(count - 1).wait_for()
    return page.locator("#talk .answer .text").nth(count - 1).inner_text()


def ask(page: Any, question: str) -> str:
    """By the keyboard alone; returns the answer once it is complete."""
    before = page.locator("#talk .answer").count()
    type_question(page, question)
    return answered(page, before + 1)


def asked(page: Any) -> list[str]:
    """Questions as they are shown, with the names of their tasks."""
    return [" ".join(text.split()) for text in page.locator("#talk .question").all_inner_texts()]


def sent(request: Any) -> list[tuple[str, str]]:
    """Roles and texts of a request to the server; ``[picture]`` stands for a picture."""
    said = []
    for message in json.loads(request.post_data)["messages"]:
        content = message["content"]
        if not isinstance(content, str):
            assert [part["type"] for part in content] == ["image_url", "text"]
            content = f"[picture] {content[1]['text']}"
        said.append((message["role"], content))
    return said


def ramble(route: Any) -> None:
    """What is asked is answered at great length."""
    route.continue_(post_data=json.dumps(json.loads(route.request.post_data) | RAMBLING | {"max_tokens": 80}))


def colour_count(page: Any, region: int = 0) -> int:
    """Pixels of the picture on the page that have the colour of a region."""
    return page.evaluate(COUNT, list(PALETTE[region]))


def drag(page: Any, left: float, top: float, right: float, bottom: float) -> None:
    """Draws a box on the picture, in fractions of it."""
    area = page.locator("#picture").bounding_box()
    page.mouse.move(area["x"] + left * area["width"], area["y"] + top * area["height"])
    page.mouse.down()
    page.mouse.move(area["x"] + right * area["width"], area["y"] + bottom * area["height"], steps=3)
    page.mouse.up()
