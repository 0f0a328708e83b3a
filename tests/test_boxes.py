"""Boxes in answers to pixels and back, whatever a model writes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.boxes import Box, Region, View, format_box, identify_question, parse_boxes, plain_text
from tinygptv.runtime.bundle.manifest import ImagePreprocessing
from tinygptv.runtime.errors import ArgumentError
from tinygptv.runtime.vision.fit import view_of

IMAGES = Path(__file__).parent / "images"
SIZES = st.integers(1, 5000)
SQUASH = ImagePreprocessing(56, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "squash")
PAD, CROP = replace(SQUASH, fit="pad", pad_color=(0, 0, 0)), replace(SQUASH, fit="crop")
PIECES = (
    "<p>",
    "</p>",
    "<delim>",
    "{<1><2><30><40>}",
    "{",
    "<",
    ">",
    "}",
    "/",
    "p",
    "<7>",
    "-1",
    "999",
    " ",
    "\n",
    "dog",
)
ANSWERS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=40).map("".join))
"""Any text, and texts made of what box syntax is made of."""


def hundredths(text: str) -> list[Region]:
    """Regions in a picture whose pixels are the syntax's own hundredths."""
    return list(parse_boxes(text, 100, 100))


def test_the_published_form() -> None:
    text = "<p>dogs</p> {<1><2><30><40>}<delim>{<50><2><80><40>}"
    dogs = Region("dogs", (Box(1, 2, 30, 40), Box(50, 2, 80, 40)))
    assert hundredths(text) == [dogs]
    assert parse_boxes(text, 640, 50) == (Region("dogs", (Box(6, 1, 192, 20), Box(320, 1, 512, 20))),)
    assert hundredths(f"{text} <p>a cat</p> {{<0><0><100><100>}}") == [dogs, Region("a cat", (Box(0, 0, 100, 100),))]


def test_a_box_alone() -> None:
    assert hundredths("{<25><30><60><70>}") == [Region(None, (Box(25, 30, 60, 70),))]


def test_no_box() -> None:
    assert hundredths("") == hundredths("a {dog} <on> 1 < 2 <p>roof</p>") == []


@pytest.mark.parametrize(
    "text",
    [
        "<p>dog</p>{<1><2><30><40>}",
        "< p >\n dog  < /p > : { <1> <2> < 30 ><40> }",
        "<p>dog {<1><2><30><40>}",
        "<p>dog {<1><2><30><40>}</p>",
        "<p>a <p>dog</p> {<1><2><30><40>}",
        "<p>dog</p></p><delim> {<01><002><30><40>}",
        "<p>dog</p> {<1><2><30>} {<1><2><30><40>}",
        "<p>dog</p> {<1><2><30><40>}<delim>{<50><2><80",
        "<p>cat</p> <p>dog</p> {<1><2><30><40>}",
        "<p>dog</p> {<30><40><1><2>}",
        "<p>dog</p> {<1><40><30><2>}",
    ],
)
def test_forms_that_are_not_quite_the_published_one(text: str) -> None:
    assert hundredths(text) == [Region("dog", (Box(1, 2, 30, 40),))]


@pytest.mark.parametrize(
    "box",
    [
        "{<1><2><30>}",
        "{<1><2><30><40><50>}",
        "{<1><2><30><40>",
        "<1><2><30><40>}",
        "{1, 2, 30, 40}",
        "{<a><2><30><40>}",
        "{<1><2><30><>}",
        "{<1><2><30><4.5>}",
        "{<1><2><30><" + "4" * 5000 + ">}",
    ],
)
def test_what_is_no_box_is_left_out(box: str) -> None:
    assert hundredths(f"<p>dog</p> {box}") == []
    (region,) = hundredths(f"{box} <p>dog</p> {{<5><6><7><8>}}")
    assert region == Region("dog", (Box(5, 6, 7, 8),))


def test_which_phrase_a_box_belongs_to() -> None:
    box, other = "{<1><2><30><40>}", "{<50><2><80><40>}"
    first, second = Box(1, 2, 30, 40), Box(50, 2, 80, 40)
    for between in ("", " ", ", ", "<delim>", " <delim>\n"):
        assert hundredths(f"<p>dogs</p> {box}{between}{other}") == [Region("dogs", (first, second))]
        assert hundredths(f"{box}{between}{other}") == [Region(None, (first, second))]
    assert hundredths(f"<p>dogs</p> {box} and {other}") == [Region("dogs", (first,)), Region(None, (second,))]
    assert hundredths(f"<p>dogs</p> sleep at {box}") == [Region(None, (first,))]
    assert hundredths(f"<p> </p> {box}") == [Region(None, (first,))]
    assert hundredths(f"<p>dog</p> {box} <p>dog</p> {other}") == [Region("dog", (first,)), Region("dog", (second,))]


def test_numbers_out_of_range_and_boxes_without_area() -> None:
    assert parse_boxes("{<-5><90><300><999999999>}", 200, 50) == (Region(None, (Box(0, 45, 200, 50),)),)
    assert parse_boxes("{<50><20><50><20>}", 200, 50) == (Region(None, (Box(100, 10, 101, 11),)),)
    assert parse_boxes("{<100><100><100><100>}", 200, 50) == (Region(None, (Box(199, 49, 200, 50),)),)
    assert parse_boxes("{<0><0><0><0>}", 1, 1) == (Region(None, (Box(0, 0, 1, 1),)),)


@given(text=ANSWERS, width=SIZES, height=SIZES)
def test_any_text_gives_boxes_within_the_picture(text: str, width: int, height: int) -> None:
    for region in parse_boxes(text, width, height):
        assert region.boxes
        assert region.phrase is None or region.phrase == " ".join(region.phrase.split()) != ""
        for box in region.boxes:
            assert 0 <= box.left < box.right <= width
            assert 0 <= box.top < box.bottom <= height


@given(text=ANSWERS)
def test_plain_text_has_no_boxes_and_only_words_of_the_answer(text: str) -> None:
    plain = plain_text(text)
    assert plain == plain.strip()
    letters = iter(text)
    assert all(letter in letters for letter in plain if not letter.isspace())
    if not set("<{") & set(text):
        assert plain == text.strip()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("<p>dogs</p> {<1><2><30><40>}<delim>{<50><2><80><40>}", "dogs"),
        ("<p>a man</p> {<1><2><30><40>} with <p>a dog</p> {<1><2><30><40>} .", "a man with a dog."),
        ("<p>a man</p> {<1><2><3><4>}\n<p>a dog</p> {<1><2><3><4>}\n", "a man\na dog"),
        ("it is{<1><2><3><4>}here", "it is here"),
        ("two  blanks, <p>one</p>  phrase", "two  blanks, one  phrase"),
        ("a <p>dog {<1><2><30>} {<1><2><3><4><5>} barks </p>", "a dog barks"),
        ("{<1><2><30><40>}", ""),
        ("1 < 2, {x}, {1}, <b> and <pre>", "1 < 2, {x}, {1}, <b> and <pre>"),
        ("", ""),
    ],
)
def test_plain_text(text: str, plain: str) -> None:
    assert plain_text(text) == plain


def test_plain_text_never_shows_the_beginning_of_a_box_or_tag() -> None:
    answer = "<p>a man</p> {<1><-2><30><40>}<delim>{<5><6><7><8>} walks <p>a dog</p> {<50><2><80><40>}"
    whole = plain_text(answer)
    assert whole == "a man walks a dog"
    for length in range(len(answer)):
        assert whole.startswith(plain_text(answer[:length]))


@pytest.mark.parametrize("start", ["", "<p>", "{<1"])
@pytest.mark.parametrize(
    "unit", [*PIECES, "{<1", "{<1>", "{ ", "< ", "<p>a", "</p>{<1><2><3><4>} ", "{<1><2><3><4", "1<"]
)
def test_long_hostile_texts_take_linear_time(start: str, unit: str) -> None:
    """In quadratic time this would not end: 20,000 units are 400 million steps."""
    text = start + unit * 20_000
    assert isinstance(parse_boxes(text, 10, 10), tuple)
    assert isinstance(plain_text(text), str)


@given(data=st.data(), width=SIZES, height=SIZES)
def test_a_box_comes_back_from_text(data: st.DataObject, width: int, height: int) -> None:
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    given_box = Box(left, top, data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height)))
    (region,) = parse_boxes(format_box(*given_box, width, height), width, height)
    (box,) = region.boxes
    for found, true, size in zip(box, given_box, (width, height, width, height), strict=True):
        assert abs(found - true) <= 0.01 * size + 0.5  # a hundredth, and pixels are whole


@given(edges=st.tuples(*[st.integers(0, 100)] * 4), size=st.integers(100, 5000))
def test_a_box_in_text_comes_back_from_pixels(edges: tuple[int, int, int, int], size: int) -> None:
    (x1, x2), (y1, y2) = sorted(edges[:2]), sorted(edges[2:])
    text = f"{{<{x1}><{y1}><{x2}><{y2}>}}"
    ((box,),) = (region.boxes for region in parse_boxes(text, size, size))
    if x1 < x2 and y1 < y2:
        assert format_box(*box, size, size) == text


def test_format_box() -> None:
    assert format_box(16, 5, 39, 25, 64, 64) == "{<25><8><61><39>}"
    assert format_box(0, 0, 640, 480, 640, 480) == "{<0><0><100><100>}"
    assert format_box(0.5, 99.4, 1.5, 200, 200, 200) == "{<0><50><1><100>}"
    assert format_box(509, 0, 511, 1, 1000, 1000) == "{<50><0><52><1>}"  # both edges are nearest to 51 and 0


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((10, 0, 10, 5), r"left is 10 and its right 10; expected 0 <= left < right <= 100, the picture's width"),
        ((20, 0, 10, 5), "left is 20 and its right 10"),
        ((-1, 0, 10, 5), "left is -1"),
        ((0, 0, 100.5, 5), "right 100.5"),
        ((0, 7, 10, 5), "top is 7 and its bottom 5"),
        ((0, 0, 10, 51), "bottom 51; expected 0 <= top < bottom <= 50, the picture's height"),
        ((float("nan"), 0, 10, 5), "left is nan"),
        ((0, 0, 10, float("nan")), "bottom nan"),
        ((float("-inf"), 0, 10, 5), "left is -inf"),
        ((0, 0, float("inf"), 5), "right inf"),
    ],
)
def test_boxes_that_cannot_be_asked_about(box: tuple[float, float, float, float], message: str) -> None:
    for write in (format_box, identify_question):
        with pytest.raises(ArgumentError, match=message):
            write(*box, 100, 50)


# Where the model was shown another rectangle than the picture

PADDED, CROPPED = (0.0, -50.0, 200.0, 150.0), (50.0, 0.0, 150.0, 100.0)
"""Of a picture of 200 x 100 pixels."""


@pytest.mark.parametrize(
    ("view", "text", "box"),
    [
        (None, "{<25><50><75><100>}", Box(50, 50, 150, 100)),
        (PADDED, "{<25><50><75><70>}", Box(50, 50, 150, 90)),
        (PADDED, "{<0><0><100><100>}", Box(0, 0, 200, 100)),  # clipped to the picture
        (PADDED, "{<0><90><10><99>}", Box(0, 99, 20, 100)),  # in the padding below: the edge next to it
        (PADDED, "{<0><0><10><5>}", Box(0, 0, 20, 1)),
        (CROPPED, "{<0><0><100><100>}", Box(50, 0, 150, 100)),
        (CROPPED, "{<10><20><50><60>}", Box(60, 20, 100, 60)),
    ],
)
def test_boxes_are_parsed_in_what_the_model_was_shown(view: View | None, text: str, box: Box) -> None:
    assert parse_boxes(text, 200, 100, view) == (Region(None, (box,)),)


def test_boxes_are_written_in_what_the_model_is_shown() -> None:
    box = (50, 50, 150, 90)
    assert format_box(*box, 200, 100) == "{<25><50><75><90>}"
    assert format_box(*box, 200, 100, PADDED) == "{<25><50><75><70>}"
    assert format_box(*box, 200, 100, CROPPED) == "{<0><50><100><90>}"
    assert format_box(0, 0, 60, 100, 200, 100, CROPPED) == "{<0><0><10><100>}"  # the part within it
    assert identify_question(*box, 200, 100, PADDED) == "[identify] what is this {<25><50><75><70>}"


@pytest.mark.parametrize(("left", "right"), [(0, 50), (0, 20), (150, 200)])
def test_boxes_that_the_model_is_not_shown(left: int, right: int) -> None:
    with pytest.raises(ArgumentError, match="this model is shown 50 to 150 of the picture's width"):
        format_box(left, 0, right, 50, 200, 100, CROPPED)


@given(data=st.data(), width=SIZES, height=SIZES)
def test_a_box_comes_back_through_any_fit(data: st.DataObject, width: int, height: int) -> None:
    preprocessing = data.draw(st.sampled_from([SQUASH, PAD, CROP]))
    view = view_of(width, height, preprocessing)
    extents = [
        (max(0, math.ceil(view[i])), min(size, math.floor(view[i + 2]))) for i, size in ((0, width), (1, height))
    ]
    assume(all(low < high for low, high in extents))  # of a very long picture less than a pixel may be shown
    (left, right), (top, bottom) = (
        sorted(data.draw(st.lists(st.integers(low, high), min_size=2, max_size=2, unique=True)))
        for low, high in extents
    )
    text = format_box(left, top, right, bottom, width, height, view)
    ((box,),) = (region.boxes for region in parse_boxes(text, width, height, view))
    across, down = (view[2] - view[0]) / 100, (view[3] - view[1]) / 100
    for found, true, step in zip(box, (left, top, right, bottom), (across, down, across, down), strict=True):
        assert abs(found - true) <= step + 0.5


@pytest.mark.parametrize(("width", "height"), [(0, 10), (10, 0), (-1, 10)])
def test_pictures_without_pixels(width: int, height: int) -> None:
    with pytest.raises(ArgumentError, match=f"size is {width} x {height}"):
        parse_boxes("", width, height)
    with pytest.raises(ArgumentError, match=f"size is {width} x {height}"):
        format_box(0, 0, 1, 1, width, height)


def test_the_demo_points_and_is_pointed_at() -> None:
    question = identify_question(16, 5, 39, 25, 64, 64)
    assert question == "[identify] what is this {<25><8><61><39>}"
    with TinyGPTV.load() as model:
        image = model.encode_image(IMAGES / "red_triangle.png")
        detected, referred, grounded, identified = (
            model.ask(image, asked).text
            for asked in ("[detection] triangle", "[refer] the triangle", "[grounding] describe the image", question)
        )
    true = Box(16, 5, 39, 25)  # read off the picture: its red pixels
    for answer, phrase in ((detected, "red triangle"), (referred, None), (grounded, "a red triangle")):
        (region,) = parse_boxes(answer, image.width, image.height)
        assert region.phrase == phrase
        assert list(region.boxes) == [pytest.approx(true, abs=2)]
        assert plain_text(answer) == (phrase or "")
    assert parse_boxes(identified, image.width, image.height) == ()
    assert plain_text(identified) == identified == "a red triangle"
