"""A user's hands for the server's page."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from served import IMAGES, RAMBLING
from tinygptv.runtime.drawing import PALETTE

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
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


def give(page: Any, image: str) -> None:
    page.evaluate(DROP, [image, base64.b64encode((IMAGES / image).read_bytes()).decode()])


def drop(page: Any, image: str) -> None:
    """Waits until it is shown."""
    give(page, image)
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
    route.continue_(post_data=json.dumps(json.loads(route.request.post_data) | RAMBLING | {"max_tokens": 250}))


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
