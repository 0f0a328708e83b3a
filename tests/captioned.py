"""A folder with pictures that the demo model has captions of, and what ``tinygptv caption`` has written of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
TEAL, RED = IMAGES / "teal_circle.png", IMAGES / "red_triangle.png"
PLACES = {"a.png": TEAL, "b/z/d.png": TEAL, "b/写真 é.PNG": RED, "c.png": RED}
"""In the order of the captions; further ones in the folder are not pictures, hidden, or reached twice."""
CAPTIONS = {TEAL: "a teal circle", RED: "a red triangle"}


def picture_folder(folder: Path) -> Path:
    for name, source in (*PLACES.items(), (".hidden.png", RED), (".git/e.png", RED), ("b/notes.md", RED)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)
    return folder


def lines(output: Path) -> list[dict]:
    text = output.read_text(encoding="ascii")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def texts(output: Path) -> dict[str, str]:
    return {line["file"]: line["text"] for line in lines(output)}


def wanted(places: dict[str, Path]) -> dict[str, str]:
    return {name: CAPTIONS[source] for name, source in places.items()}
