"""The pictures of the ``easy-vqa`` package: pixels, and what can be read off them (shape, colour, box).

Each picture shows one shape of one colour on a light, plain background. The package says nothing of boxes and names
a picture's shape and colour only through its questions, so both are derived from the pixels here.
"""

from __future__ import annotations

from dataclasses import dataclass

import easy_vqa
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 64
"""Side of every picture, in pixels."""

SHAPES = ("circle", "rectangle", "triangle")

PALETTE = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
COLOURS = tuple(PALETTE)

LIGHTEST_SHADE = 230
"""No channel of a background is below this in any training picture, and one of every shape's colour is."""

VALIDATION_PICTURES = 400
"""The training split's last pictures, kept out of training to choose by."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    shape: str
    colour: str
    box: tuple[int, int, int, int]
    """Left, top, right and bottom edges, in pixels; right and bottom are exclusive."""

    @property
    def percent_box(self) -> tuple[int, int, int, int]:
        """The box as the model writes it: integers from 0 to 100 of the picture's width and height."""
        left, top, right, bottom = (round(100 * edge / SIZE) for edge in self.box)
        return left, top, right, bottom


@dataclass(frozen=True)
class Question:
    """One of the package's questions."""

    picture: int
    text: str
    answer: str


@dataclass(frozen=True)
class Split:
    """Pictures with their questions."""

    paths: dict[int, str]
    pixels: NDArray[np.uint8]
    """All pictures in the order of ``paths``, [pictures, height, width, 3]."""
    scenes: list[Scene]
    questions: list[Question]


def read_scene(pixels: NDArray[np.uint8]) -> Scene:
    """Derives shape, colour and box from one picture, [height, width, 3].

    A pixel belongs to the shape if it is nearer the shape's colour than the background's. The share of its box that a
    shape fills tells the three apart: in the training split triangles fill 0.50 to 0.63, circles 0.74 to 0.91 and
    rectangles 0.95 to 1, and every answer of the package agrees.
    """
    values, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    light = values.min(axis=1) >= LIGHTEST_SHADE
    background = values[light][counts[light].argmax()].astype(int)
    dominant = values[~light][counts[~light].argmax()].astype(int)
    colour = next(name for name, shade in PALETTE.items() if shade == tuple(dominant))
    inside = np.abs(pixels - dominant).sum(axis=2) < np.abs(pixels - background).sum(axis=2)
    rows, columns = np.nonzero(inside)
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    filled = inside.sum() / ((right - left) * (bottom - top))
    shape = "triangle" if filled < 0.69 else "circle" if filled < 0.93 else "rectangle"
    return Scene(shape, colour, (int(left), int(top), int(right), int(bottom)))


def load_training() -> tuple[Split, Split]:
    """Reads the package's training split: the part to train on, and the part to choose by."""
    paths = easy_vqa.get_train_image_paths()
    questions = [Question(*row) for row in zip(*_picture_first(easy_vqa.get_train_questions()), strict=True)]
    names = sorted(paths)
    return (
        _split({name: paths[name] for name in names[:-VALIDATION_PICTURES]}, questions),
        _split({name: paths[name] for name in names[-VALIDATION_PICTURES:]}, questions),
    )


def load_test() -> Split:
    """Reads the package's test split, which is for the final figures only."""
    questions = [Question(*row) for row in zip(*_picture_first(easy_vqa.get_test_questions()), strict=True)]
    return _split(easy_vqa.get_test_image_paths(), questions)


def _picture_first(columns: tuple[list[str], list[str], list[int]]) -> tuple[list[int], list[str], list[str]]:
    texts, answers, pictures = columns
    return pictures, texts, answers


def _split(paths: dict[int, str], questions: list[Question]) -> Split:
    paths = dict(sorted(paths.items()))
    pixels = np.stack([_read_pixels(path) for path in paths.values()])
    return Split(
        paths=paths,
        pixels=pixels,
        scenes=[read_scene(picture) for picture in pixels],
        questions=[question for question in questions if question.picture in paths],
    )


def _read_pixels(path: str) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
