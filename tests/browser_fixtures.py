"""The server's page in a real browser: Chromium, without a window."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import NARROW, WIDE, OpenPage
from playwright.sync_api import sync_playwright
from served import Served, serving

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
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


@pytest.fixture(scope="module")
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
