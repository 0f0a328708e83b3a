"""The app's window, as most of its tests want it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tinygptv.runtime.app.window import Window
from windows import shown_window


@pytest.fixture
def window() -> Iterator[Window]:
    """With the demo model and a red triangle."""
    with shown_window(None) as window:
        yield window


@pytest.fixture
def speaking(golden_bundle: Callable[[int, str], Path], photo: Path) -> Iterator[Window]:
    """With a model whose answers are long."""
    with shown_window(golden_bundle(3, "fp32"), str(photo)) as window:
        yield window
