"""Draws the pictures that are part of the app: its icon, from the SVG, the samples, and what style sheets need."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["QT_QPA_PLATFORM"] = "offscreen"

from PIL import Image, ImageDraw
from PySide6.QtGui import QGuiApplication, QImage, QPainter
from PySide6.QtSvg import QSvgRenderer
from tinygptv.runtime.app import theme
from tinygptv.runtime.app.assets import ASSETS

ICON, SAMPLE, MARK = 256, 384, 32
"""Sides in pixels."""
FINER = 4
"""Shapes are drawn so many times larger, for smooth edges."""
RGB = tuple[int, int, int]
Points = tuple[tuple[int, int], ...]


def main() -> int:
    """Write them beside the SVG."""
    _ = QGuiApplication([])
    draw_icon(ASSETS / "tinygptv.svg", ASSETS / "tinygptv.png")
    # Corners in 64ths of the side, as the demo's training pictures have their shapes.
    sample("red_triangle", (244, 22, 22), (246, 248, 250), [(32, 12), (48, 42), (16, 42)])
    sample("blue_circle", (32, 74, 235), (238, 243, 248), [(20, 16), (48, 44)])
    sample("teal_rectangle", (0, 128, 128), (246, 240, 244), [(10, 20), (52, 20), (52, 46), (10, 46)])
    check = ((14, 34), (27, 47), (51, 19))
    mark("check_light", theme.LIGHT.on_accent, check)
    mark("check_dark", theme.DARK.on_accent, check)
    mark("down", "#7d8590", ((16, 26), (32, 41), (48, 26)))
    return 0


def draw_icon(source: Path, target: Path) -> None:
    """Draw the icon, for systems that take no SVG."""
    image = QImage(ICON, ICON, QImage.Format.Format_ARGB32)
    image.fill(0)
    painter = QPainter(image)
    QSvgRenderer(str(source)).render(painter)
    painter.end()
    image.save(str(target))


def sample(
    name: str, colour: tuple[int, int, int], ground: tuple[int, int, int], points: list[tuple[int, int]]
) -> None:
    """Draw a shape: two points are a circle's corners, more are a polygon."""
    side = FINER * SAMPLE
    image = Image.new("RGB", (side, side), ground)
    scaled = [(x * side / 64, y * side / 64) for x, y in points]
    if len(points) == 2:
        ImageDraw.Draw(image).ellipse(scaled, fill=colour)
    else:
        ImageDraw.Draw(image).polygon(scaled, fill=colour)
    small = image.resize((SAMPLE, SAMPLE), Image.Resampling.LANCZOS)
    small.quantize(64).save(ASSETS / f"{name}.png", optimize=True)


def mark(name: str, colour: str, points: Points) -> None:
    """Draw a line with round ends on nothing."""
    side, width = 8 * MARK, MARK
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    scaled = [(x * side / 64, y * side / 64) for x, y in points]
    draw.line(scaled, fill=colour, width=width, joint="curve")
    for x, y in scaled:
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=colour)
    image.resize((MARK, MARK), Image.Resampling.LANCZOS).save(ASSETS / f"{name}.png", optimize=True)


if __name__ == "__main__":
    sys.exit(main())
