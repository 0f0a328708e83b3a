"""Makes the pictures with boxes of docs/demo.md: the demo's answers about pictures that it was not trained on.

    python docs/make_pictures.py

The pictures are of easy-vqa's test split (pip install easy-vqa), six times as large. Prints the
page's commands and answers.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.boxes import Box, Region, identify_question, parse_boxes
from tinygptv.runtime.drawing import draw_regions

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
SCALE = 6


@dataclass(frozen=True)
class Example:
    """One question about one picture."""

    name: str
    """Of its files: ``name.png``, and ``name_boxes.png`` with the boxes."""
    number: int
    """In the test split."""
    asked: str | Box
    """A question, or a box of which is asked what is in it."""

    @property
    def picture(self) -> Path:
        return IMAGES / f"{self.name}.png"

    @property
    def drawn_picture(self) -> Path:
        return IMAGES / f"{self.name}_boxes.png"

    @property
    def command(self) -> str:
        """That asks the same, from the repository's root."""
        start = f"tinygptv ask {self.picture.relative_to(ROOT).as_posix()}"
        if isinstance(self.asked, Box):
            return f"{start} --box {','.join(map(str, self.asked))}"
        return f'{start} "{self.asked}" --draw boxes.png'


EXAMPLES = (
    Example("red_triangle", 12, "[detection] triangle"),
    Example("blue_circle", 71, "[refer] circle"),
    Example("green_triangle", 77, "[grounding] what do you see?"),
    Example("teal_rectangle", 154, Box(132, 132, 324, 288)),
)


def enlarge(path: str | Path) -> Image.Image:
    """One of the package's pictures, large enough to look at."""
    with Image.open(path) as small:
        size = (SCALE * small.width, SCALE * small.height)
        return small.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def ask(model: TinyGPTV, example: Example) -> str:
    """What the model answers."""
    question = example.asked
    image = model.encode_image(example.picture)
    if isinstance(question, Box):
        question = identify_question(*question, image.width, image.height)
    return model.ask(image, question).text


def draw(example: Example, answer: str) -> Image.Image:
    """The boxes of an answer, or the box that was asked about with the answer as its label."""
    with Image.open(example.picture) as picture:
        if isinstance(example.asked, Box):
            return draw_regions(picture, [Region(answer, (example.asked,))])
        return draw_regions(picture, parse_boxes(answer, *picture.size))


def main() -> int:
    """Write the pictures; print what was asked and answered."""
    import easy_vqa  # not of the runtime; what is above does without it

    paths = easy_vqa.get_test_image_paths()
    with TinyGPTV.load() as model:
        for example in EXAMPLES:
            enlarge(paths[example.number]).save(example.picture, optimize=True)
            answer = ask(model, example)
            draw(example, answer).save(example.drawn_picture, optimize=True)
            print(example.command, f"# {answer}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
