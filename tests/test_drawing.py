"""Regions drawn on pictures: colours where the boxes are, labels that can be read and do not hide each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.boxes import Box, Region, parse_boxes
from tinygptv.runtime.drawing import PALETTE, draw_regions
from tinygptv.runtime.errors import ArgumentError, ImageError

IMAGES = Path(__file__).parent / "images"
GREY = (128, 128, 128)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
BLUE = (0, 114, 178)


def grey(width: int = 400, height: int = 300) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def where(image: Image.Image, colour: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    """Pixels of exactly a colour, [height, width]."""
    same: npt.NDArray[np.bool_] = (np.asarray(image) == colour).all(axis=2)
    return same


def extent(pixels: npt.NDArray[np.bool_]) -> Box:
    """The box around the pixels that are true."""
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def label_place(picture: Image.Image, phrase: str, box: Box) -> Box:
    """Where the label of a picture's only box is: what is drawn with a phrase and not without."""
    bare, labelled = (draw_regions(picture, [Region(words, (box,))]) for words in (None, phrase))
    return extent((np.asarray(bare) != np.asarray(labelled)).any(axis=2))


def test_the_outline_is_the_box() -> None:
    drawn = draw_regions(grey(), [Region(None, (Box(40, 60, 200, 160),))])
    colour = PALETTE[0]
    assert extent(where(drawn, colour)) == Box(40, 60, 200, 160)
    # Two pixels at a height of 300, and a black one that shows where the picture itself is orange.
    for column, expected in ((39, GREY), (40, colour), (41, colour), (42, BLACK), (43, GREY), (197, BLACK)):
        assert drawn.getpixel((column, 100)) == expected
    for corner in ((40, 60), (199, 60), (40, 159), (199, 159)):
        assert drawn.getpixel(corner) == colour


@pytest.mark.parametrize("line", [1, 3])
def test_small_boxes_are_drawn_to_the_pixel(line: int) -> None:
    for width in range(1, 8):
        for height in range(1, 8):
            box = Box(50, 40, 50 + width, 40 + height)
            drawn = where(draw_regions(grey(200 * line, 200 * line), [Region(None, (box,))]), PALETTE[0])
            expected = np.zeros_like(drawn)
            expected[box.top : box.bottom, box.left : box.right] = True
            expected[box.top + line : box.bottom - line, box.left + line : box.right - line] = False
            assert (drawn == expected).all()


def test_lines_and_letters_grow_with_the_picture() -> None:
    heights = []
    for size, line in ((64, 1), (600, 3), (2000, 10)):
        box = Box(size // 4, size // 2, size // 2, 3 * size // 4)
        drawn = draw_regions(grey(size, size), [Region(None, (box,))])
        row = where(drawn, PALETTE[0])[5 * size // 8]
        assert row.sum() == 2 * line
        label = label_place(grey(size, size), "dog", box)
        heights.append(label.bottom - label.top)
    assert heights == sorted(heights)
    assert heights[0] >= 10
    assert heights[2] > 3 * heights[1] - 3


@pytest.mark.parametrize("number", range(len(PALETTE) + 1))
def test_each_region_has_its_colour_and_letters_that_stand_out(number: int) -> None:
    others = [Region(None, (Box(10 * n, 280, 10 * n + 9, 300),)) for n in range(number)]
    boxes = (Box(100, 100, 200, 200), Box(300, 100, 350, 200))
    colour = PALETTE[number % len(PALETTE)]
    place = label_place(grey(), "dog", boxes[0])
    drawn = draw_regions(grey(), [*others, Region("dog", boxes)])
    for box in boxes:
        assert drawn.getpixel((box.left, box.bottom - 1)) == colour
    for shift in (0, 200):
        label = drawn.crop((place.left + shift, place.top, place.right + shift, place.bottom))
        background = where(label, colour)
        assert 0.5 < background.mean() < 0.95
        assert background[[0, -1]].all() and background[:, [0, -1]].all()
        ink = WHITE if colour == BLUE else BLACK
        assert np.abs(np.asarray(label, int) - ink).sum(axis=2).min() < 60


def test_the_palette_is_told_apart() -> None:
    assert len(set(PALETTE)) == len(PALETTE) == 7


def test_where_a_label_goes() -> None:
    phrase = "a black dog"
    above = label_place(grey(), phrase, Box(100, 100, 200, 200))
    assert (above.left, above.bottom) == (100, 100)
    below = label_place(grey(), phrase, Box(100, 5, 200, 200))
    assert (below.left, below.top) == (100, 200)
    inside = label_place(grey(), phrase, Box(100, 5, 200, 295))
    assert (inside.left, inside.top) == (102, 7)  # without its outermost pixels, which are those of the outline
    moved = label_place(grey(), phrase, Box(390, 100, 400, 200))
    assert (moved.right, moved.bottom) == (400, 100)


def test_labels_of_boxes_at_one_place_do_not_hide_each_other() -> None:
    box = Box(100, 100, 200, 200)
    drawn = draw_regions(grey(), [Region("black dog", (box,))] * len(PALETTE))
    alone = draw_regions(grey(), [Region("black dog", (box,))])
    whole = int(where(alone.crop((0, 0, 400, 100)), PALETTE[0]).sum())
    for colour in PALETTE[:-1]:  # the last one is the outline's as well
        assert where(drawn, colour).sum() == pytest.approx(whole, rel=0.15)


def test_labels_without_room_are_left_out() -> None:
    box = Box(0, 0, 64, 64)
    many = draw_regions(grey(64, 64), [Region("red triangle", (box,))] * len(PALETTE))
    first = draw_regions(grey(64, 64), [Region("red triangle", (box,))])
    inner = slice(2, 62)
    text = where(first, PALETTE[0])[inner, inner]
    assert text.any()
    assert (where(many, PALETTE[0])[inner, inner] == text).all()
    flat = Region("dog", (Box(0, 0, 30, 5),))
    assert extent(where(draw_regions(grey(30, 5), [flat]), PALETTE[0])) == flat.boxes[0]
    assert (np.asarray(draw_regions(grey(5, 30), [Region("dog", (Box(1, 1, 2, 2),))])) != GREY).any(axis=2).sum() == 1


def test_long_phrases_are_cut_short() -> None:
    box = Box(100, 100, 200, 200)
    words = "a dog that lies on the carpet " * 5
    long = label_place(grey(), words, box)
    assert 300 < long.right - long.left <= 400
    assert label_place(grey(), words * 40_000, box) == long


@pytest.mark.parametrize(
    ("phrase", "drawn_as"),
    [
        ("un café très\nserré", "un cafe tres serre"),
        ("the dog\u2019s \u201cbed\u201d \u2013 blue", 'the dog\'s "bed" - blue'),
        ("\u72ac \x00 \ud83e", "? ? ?"),
        (" \n", ""),
    ],
)
def test_letters_the_font_does_not_have(phrase: str, drawn_as: str) -> None:
    box = Box(100, 100, 200, 200)
    drawn, expected = (draw_regions(grey(), [Region(words, (box,))]) for words in (phrase, drawn_as))
    assert drawn.tobytes() == expected.tobytes()


def test_the_picture_itself_stays() -> None:
    picture = grey()
    before = picture.tobytes()
    drawn = draw_regions(picture, [Region("dog", (Box(100, 100, 200, 200),))])
    assert picture.tobytes() == before != drawn.tobytes()
    assert (drawn.mode, drawn.size) == ("RGB", picture.size)
    assert draw_regions(picture, []).tobytes() == before
    assert draw_regions(picture, ()) is not picture


def test_any_picture_the_model_reads(tmp_path: Path) -> None:
    """Boxes speak of the upright picture, on white where it is transparent."""
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6  # taken sideways
    grey(400, 300).save(tmp_path / "sideways.png", exif=tags)
    drawn = draw_regions(tmp_path / "sideways.png", [Region(None, (Box(0, 350, 300, 400),))])
    assert drawn.size == (300, 400)
    assert extent(where(drawn, PALETTE[0])) == Box(0, 350, 300, 400)
    clear = Image.new("RGBA", (50, 50), (0, 0, 0, 0))
    assert draw_regions(clear, []).getpixel((25, 25)) == WHITE
    with pytest.raises(ImageError, match="does not exist"):
        draw_regions(tmp_path / "none.png", [])


@pytest.mark.parametrize(
    "box", [Box(0, 0, 401, 10), Box(-1, 0, 5, 5), Box(5, 0, 5, 5), Box(0, 9, 5, 5), Box(0, 0, 5, 301)]
)
def test_boxes_of_another_picture(box: Box) -> None:
    with pytest.raises(ArgumentError, match=r"Box\(.*\) is not within the picture of 400 x 300 pixels"):
        draw_regions(grey(), [Region("dog", (box,))])


@settings(max_examples=50, deadline=None)
@given(data=st.data(), width=st.integers(1, 200), height=st.integers(1, 200))
def test_anything_parsed_can_be_drawn(data: st.DataObject, width: int, height: int) -> None:
    edge = st.integers(-20, 120)
    boxes = data.draw(st.lists(st.tuples(edge, edge, edge, edge), min_size=1, max_size=6))
    phrase = data.draw(st.text(max_size=30))
    text = "".join(f"<p>{phrase}</p> {{<{x1}><{y1}><{x2}><{y2}>}}" for x1, y1, x2, y2 in boxes)
    drawn = draw_regions(grey(width, height), parse_boxes(text, width, height))
    assert drawn.size == (width, height)
    assert (np.asarray(drawn) != GREY).any()


def test_the_demos_answer_on_its_picture() -> None:
    path = IMAGES / "red_triangle.png"
    with TinyGPTV.load() as model:
        answer = model.ask(path, "[detection] triangle").text
    regions = parse_boxes(answer, 64, 64)
    drawn = draw_regions(path, regions)
    colour = PALETTE[0]
    ((box,),) = (region.boxes for region in regions)
    for corner in ((box.left, box.top), (box.right - 1, box.top)):
        assert drawn.getpixel(corner) == colour
    red = np.asarray(Image.open(path).convert("RGB"))[box.top + 3 : box.bottom - 3, box.left + 3 : box.right - 3]
    assert (np.asarray(drawn)[box.top + 3 : box.bottom - 3, box.left + 3 : box.right - 3] == red).all()
    assert where(drawn.crop((0, box.bottom, 64, 64)), colour).sum() > 300  # the label, below
