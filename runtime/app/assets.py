"""Pictures that are included in the program."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent / "artwork"
