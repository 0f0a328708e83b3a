"""Generated pictures like the package's: palette, sizes and backgrounds are those of its training part.

In the training pictures circles are 8 to 33 pixels wide, rectangles 8 to 33 on each side, triangles are equilateral,
upright and 7 to 32 wide; shapes lie fully inside; background channels are 230 to 255.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pictures import COLOURS, LIGHTEST_SHADE, PALETTE, SHAPES, SIZE, Scene

SMALLEST, LARGEST = 7.5, 33.0
"""Bounds of a shape's width, in pixels."""


def generate(count: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], list[Scene]]:
    """Draws random pictures, with smooth edges.

    Returns:
        Pixels, [count, height, width, 3], and what each picture shows. As in ``read_scene``, a box holds the pixels
        that the shape covers by half or more.
    """
    shapes = rng.integers(len(SHAPES), size=count)
    colours = rng.integers(len(COLOURS), size=count)
    width = rng.uniform(SMALLEST, LARGEST, size=count)
    height = np.select(
        [shapes == SHAPES.index("rectangle"), shapes == SHAPES.index("triangle")],
        [rng.uniform(SMALLEST, LARGEST, size=count), width * np.sqrt(3) / 2],
        default=width,
    )
    left = rng.uniform(0, SIZE - width)
    top = rng.uniform(0, SIZE - height)

    coverage = np.empty((count, SIZE, SIZE), dtype=np.float32)
    for index, shape in enumerate(SHAPES):
        chosen = shapes == index
        coverage[chosen] = _COVERAGE[shape](left[chosen], top[chosen], width[chosen], height[chosen])
    shade = np.array([PALETTE[COLOURS[colour]] for colour in colours], dtype=np.float32)[:, None, None, :]
    background = rng.integers(LIGHTEST_SHADE, 256, size=(count, 1, 1, 3)).astype(np.float32)
    pixels = np.rint(background + coverage[..., None] * (shade - background)).astype(np.uint8)

    inside = coverage > 0.5
    scenes = [
        Scene(SHAPES[shape], COLOURS[colour], _bounds(mask))
        for shape, colour, mask in zip(shapes, colours, inside, strict=True)
    ]
    return pixels, scenes


def mirror(pixels: NDArray[np.uint8], scene: Scene) -> tuple[NDArray[np.uint8], Scene]:
    """Mirrors one picture, [height, width, 3], left to right; its box follows."""
    left, top, right, bottom = scene.box
    return pixels[:, ::-1], Scene(scene.shape, scene.colour, (SIZE - right, top, SIZE - left, bottom))


_Edges = NDArray[np.float64]
_CENTRES = np.arange(SIZE) + 0.5


def _bounds(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _grid(left: _Edges, top: _Edges) -> tuple[_Edges, _Edges]:
    """Distances of the pixels' centres from a shape's left and top edge: [count, 1, width] and [count, height, 1]."""
    return (_CENTRES - left[:, None])[:, None, :], (_CENTRES - top[:, None])[:, :, None]


def _rectangle(left: _Edges, top: _Edges, width: _Edges, height: _Edges) -> _Edges:
    x, y = _grid(left, top)
    columns = np.clip(np.minimum(x, width[:, None, None] - x) + 0.5, 0, 1)
    rows = np.clip(np.minimum(y, height[:, None, None] - y) + 0.5, 0, 1)
    return columns * rows


def _circle(left: _Edges, top: _Edges, width: _Edges, height: _Edges) -> _Edges:
    x, y = _grid(left, top)
    radius = width[:, None, None] / 2
    return np.clip(radius - np.hypot(x - radius, y - radius) + 0.5, 0, 1)


def _triangle(left: _Edges, top: _Edges, width: _Edges, height: _Edges) -> _Edges:
    x, y = _grid(left, top)
    from_base = height[:, None, None] - y
    # Each slanted side leaves the base at 60 degrees: its distance is along the normal (sin 60, -cos 60).
    from_left = np.sqrt(3) / 2 * x - from_base / 2
    from_right = np.sqrt(3) / 2 * (width[:, None, None] - x) - from_base / 2
    return np.clip(np.minimum(from_base, np.minimum(from_left, from_right)) + 0.5, 0, 1)


_COVERAGE = {"circle": _circle, "rectangle": _rectangle, "triangle": _triangle}
