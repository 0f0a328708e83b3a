"""A bundle to be tuned, in a home of its own; and what it answers before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import QUESTION
from tinygptv.runtime import TinyGPTV


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, on every system's terms."""
    for variable in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def bundle(golden_bundle: Callable[[int, str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden_bundle(3, "int8"), tmp_path / "ein Bündel"))


@pytest.fixture(scope="module")
def told(golden_bundle: Callable[[int, str], Path], photo: Path) -> str:
    """What the untuned bundle answers."""
    with TinyGPTV.load(golden_bundle(3, "int8")) as model:
        return model.ask(photo, QUESTION, max_new_tokens=12).text
