"""Takes the pictures of the server's page in docs/images, in Chromium: ``python docs/make_page_screenshots.py``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).resolve().parent / "images"
PICTURE = IMAGES / "red_triangle.png"
SERVE = "import sys; from tinygptv.runtime.cli import main; sys.exit(main(['serve', '--port', '0']))"
WIDE, NARROW = (1280, 800), (390, 844)


def main() -> None:
    """Use the page as a person would, and look at it now and then."""
    server = subprocess.Popen([sys.executable, "-c", SERVE], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        found = None
        while found is None:
            found = re.search(r"http://\S+", server.stderr.readline())
        with sync_playwright() as playwright:
            program = shutil.which("chromium") or playwright.chromium.executable_path
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            page = open_page(browser, found[0], WIDE, "light")
            take(page, "server_empty")
            talk(page)
            take(page, "server")
            page = open_page(browser, found[0], WIDE, "dark")
            talk(page)
            page.route("**/v1/chat/completions", lambda route: route.abort())
            ask(page, "is it blue?")
            take(page, "server_dark")
            page = open_page(browser, found[0], NARROW, "light")
            talk(page)
            take(page, "server_narrow")
            browser.close()
    finally:
        server.terminate()
        server.wait()


def open_page(browser: Browser, url: str, size: tuple[int, int], scheme: str) -> Page:
    """The page in a window of that size, ready to be asked."""
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(url)
    page.locator("#model").wait_for()
    return page


def talk(page: Page) -> None:
    """Open the picture, ask about it, and about a box in it."""
    page.locator("#file").set_input_files(PICTURE)
    page.locator("#stage").wait_for()
    ask(page, "what shape is in the image?")
    area = page.locator("#picture").bounding_box()
    assert area is not None
    x, y, width, height = area["x"], area["y"], area["width"], area["height"]
    page.mouse.move(x + 0.22 * width, y + 0.05 * height)
    page.mouse.down()
    page.mouse.move(x + 0.64 * width, y + 0.42 * height, steps=3)
    page.mouse.up()
    answered(page)
    page.get_by_role("button", name="Find").click()
    ask(page, "triangle")
    page.mouse.move(0, 0)


def ask(page: Page, question: str) -> None:
    """Type a question and wait for its answer."""
    page.locator("#question").fill(question)
    page.keyboard.press("Enter")
    answered(page)


def answered(page: Page) -> None:
    """Wait until the last answer is complete."""
    page.locator("#talk .answer").last.and_(page.locator('[aria-busy="false"]')).wait_for()


def take(page: Page, name: str) -> None:
    """Look at the page."""
    page.screenshot(path=IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
