"""What the tests of tuning do with a bundle."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import QUESTION
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.bundle.manifest import read_manifest
from tinygptv.runtime.tuning.find import Tuned, find_tuned

COMMAND = [sys.executable, "-m", "tinygptv.runtime.cli"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="uses signals, limits and users as POSIX has them")


def answer(folder: Path, photo: Path, **options: object) -> str:
    with TinyGPTV.load(folder, **options) as model:
        return model.ask(photo, QUESTION, max_new_tokens=12).text


def tuned(folder: Path) -> Tuned | None:
    return find_tuned(folder, read_manifest(folder))
