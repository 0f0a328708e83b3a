"""Tasks, boxes and the question for a caption follow the manifest: what a family does not know is not offered.

The bundles are the demo, which does know tags and boxes, under manifests that say otherwise: so its answers hold boxes
that nobody may read as such.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from captioned import lines, picture_folder
from conftest import bundle_with
from PIL import Image
from served import about, serving
from tinygptv.runtime import ArgumentError, TinyGPTV
from tinygptv.runtime.boxes import Box
from tinygptv.runtime.bundle.manifest import read_manifest
from tinygptv.runtime.cli import main
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.pointing import question_about, regions_of, words_of

RED = Path(__file__).parent / "images" / "red_triangle.png"
TRIANGLE = Box(16, 5, 39, 25)
DETECTED = "<p>red triangle</p> {<25><8><61><39>}"
CAPTION_QUESTION = "what color is the shape?"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Of a family without tags and boxes."""
    return bundle_with(
        DEMO_BUNDLE,
        tmp_path / "plain",
        name="plain",
        family="bunny",
        stage=None,
        tasks=(),
        boxes=False,
        caption_question=CAPTION_QUESTION,
    )


@pytest.fixture
def padded(tmp_path: Path) -> Path:
    """Shows the model pictures on a square, in the background's colour of the one that is asked about."""
    image = replace(read_manifest(DEMO_BUNDLE).image, fit="pad", pad_color=(244, 248, 250))
    return bundle_with(DEMO_BUNDLE, tmp_path / "padded", image=image)


@pytest.fixture
def cropped(tmp_path: Path) -> Path:
    """Shows the model the middle of pictures."""
    return bundle_with(DEMO_BUNDLE, tmp_path / "cropped", image=replace(read_manifest(DEMO_BUNDLE).image, fit="crop"))


@pytest.fixture
def low(tmp_path: Path) -> Path:
    """The picture without its lower third, 64 x 44."""
    Image.open(RED).convert("RGB").crop((0, 0, 64, 44)).save(tmp_path / "low.png")
    return tmp_path / "low.png"


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """The picture in the middle of a black one, 128 x 64."""
    picture = Image.new("RGB", (128, 64))
    picture.paste(Image.open(RED).convert("RGB"), (32, 0))
    picture.save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a command prints."""
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


# Without boxes and tags


@pytest.mark.parametrize("option", ["--box=16,5,39,25", "--draw=drawn.png"])
def test_boxes_cannot_be_asked_for(
    option: str, plain: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load(*arguments: object, **named: object) -> TinyGPTV:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(TinyGPTV, "load", load)
    monkeypatch.chdir(tmp_path)
    words = [] if option.startswith("--box") else ["what?"]
    assert main(["ask", str(RED), *words, option, "--bundle", str(plain)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "tinygptv: plain is of the family bunny, which knows no boxes; ask in words instead\n"
    assert not (tmp_path / "drawn.png").exists()


def test_an_answer_is_text_whatever_is_in_it(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a tag is text as well, which nobody refuses."""
    assert told(capsys, "ask", RED, "[detection] triangle", "--bundle", plain) == f"{DETECTED}\n"
    found = json.loads(told(capsys, "ask", RED, "[detection] triangle", "--bundle", plain, "--json"))
    assert (found["text"], found["regions"]) == (DETECTED, [])


def test_in_a_chat(plain: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for bundle, boxes in ((plain, 0), (DEMO_BUNDLE, 1)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"[detection] triangle\n")))
        found = json.loads(told(capsys, "chat", RED, "--bundle", bundle, "--json"))
        assert (found["text"], len(found["regions"])) == (DETECTED, boxes)


def test_captions_are_asked_for_as_the_manifest_says(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = picture_folder(tmp_path / "pictures")
    for bundle, options, question, text in (
        (plain, [], CAPTION_QUESTION, "red"),
        (plain, ["--question", "what shape is it?"], "what shape is it?", "triangle"),
        (DEMO_BUNDLE, [], "[caption]", "a red triangle"),
    ):
        output = tmp_path / "captions.jsonl"
        told(capsys, "caption", folder, "-o", output, "--bundle", bundle, *options)
        (last,) = [line for line in lines(output) if line["file"] == "c.png"][-1:]
        assert (last["question"], last["text"]) == (question, text)


def test_a_caption_question_that_was_asked_before_counts(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = picture_folder(tmp_path / "pictures"), tmp_path / "captions.jsonl"
    told(capsys, "caption", folder, "-o", output, "--bundle", plain)
    again = ["caption", folder, "-o", output, "--bundle", plain, "--question", CAPTION_QUESTION, "--json"]
    assert json.loads(told(capsys, *again))["skipped"] == 4


@pytest.mark.parametrize("family", ["plain", "demo"])
def test_the_server(family: str, plain: Path, tmp_path: Path) -> None:
    knows = family == "demo"
    with serving(tmp_path, "--bundle", str(DEMO_BUNDLE if knows else plain)) as served:
        (model,) = httpx.get(f"{served.url}/v1/models").json()["data"]
        assert (model["id"], model["boxes"], "[vqa]" in model["tasks"]) == (family, knows, knows)
        assert model["family"] == ("tinygpt-v" if knows else "bunny")
        request = {"model": family, "messages": about("red_triangle.png", "[detection] triangle")}
        found = httpx.post(f"{served.url}/v1/chat/completions", json=request, timeout=60).json()
        message = found["choices"][0]["message"]
        assert (message["content"], len(message["boxes"])) == (DETECTED, knows)


def test_what_bundle_info_and_doctor_say(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {line[:14].strip(): line[16:] for line in told(capsys, "bundle", "info", plain).splitlines()}
    assert (rows["family"], rows["tasks"], rows["boxes"]) == ("bunny", "none", "none")
    assert rows["caption"] == CAPTION_QUESTION
    assert "(plain, bunny, " in told(capsys, "doctor", plain)


def test_functions_for_programs(plain: Path) -> None:
    manifest, demo = read_manifest(plain), read_manifest(DEMO_BUNDLE)
    assert (regions_of(manifest, DETECTED, 64, 64), words_of(manifest, DETECTED)) == ((), DETECTED)
    assert (len(regions_of(demo, DETECTED, 64, 64)), words_of(demo, DETECTED)) == (1, "red triangle")
    assert question_about(demo, TRIANGLE, 64, 64) == "[identify] what is this {<25><8><61><39>}"
    with pytest.raises(ArgumentError, match="family bunny, which knows no boxes"):
        question_about(manifest, TRIANGLE, 64, 64)


# Boxes where the model sees another rectangle than the picture


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that the model is asked."""
    questions: list[str] = []
    stream = TinyGPTV.stream

    def listening(model: TinyGPTV, image: object, question: str, **named: object) -> object:
        questions.append(question)
        return stream(model, image, question, **named)

    monkeypatch.setattr(TinyGPTV, "stream", listening)
    return questions


def found_boxes(capsys: pytest.CaptureFixture[str], picture: Path, bundle: Path) -> list[list[int]]:
    found = json.loads(told(capsys, "ask", picture, "[detection] triangle", "--bundle", bundle, "--json"))
    return [box for region in found["regions"] for box in region["boxes"]]


def test_padded(padded: Path, low: Path, asked: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The model sees the triangle ten pixels further down than it is in the picture."""
    ((left, top, right, bottom),) = found_boxes(capsys, low, padded)
    assert [left, top, right, bottom] == [pytest.approx(edge, abs=1) for edge in TRIANGLE]
    assert "triangle" in told(capsys, "ask", low, "--box", "16,5,39,25", "--bundle", padded)
    assert asked[-1] == "[identify] what is this {<25><23><61><55>}"
    drawn = tmp_path / "drawn.png"
    told(capsys, "ask", low, "[detection] triangle", "--draw", drawn, "--bundle", padded)
    with Image.open(drawn) as picture:
        assert picture.size == (64, 44)


def test_cropped(cropped: Path, wide: Path, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The model sees the picture of the other tests, to the pixel."""
    shifted = [TRIANGLE.left + 32, TRIANGLE.top, TRIANGLE.right + 32, TRIANGLE.bottom]
    assert found_boxes(capsys, wide, cropped) == [shifted]
    assert "triangle" in told(capsys, "ask", wide, "--box", ",".join(map(str, shifted)), "--bundle", cropped)
    assert asked[-1] == "[identify] what is this {<25><8><61><39>}"
    assert main(["ask", str(wide), "--box", "0,0,30,64", "--bundle", str(cropped)]) == 1
    assert "this model is shown 32 to 96 of the picture's width" in capsys.readouterr().err


def test_squashed(wide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the demo is shown pictures: the whole one, whatever its shape."""
    with TinyGPTV.load() as model:
        image = model.encode_image(wide)
        assert image.view == (0, 0, 128, 64)
        (region,) = regions_of(model.manifest, "{<0><0><50><100>}", image.width, image.height)
    assert region.boxes == (Box(0, 0, 64, 64),)


def test_a_picture_that_cannot_be_padded_is_named(
    padded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Among others, which are captioned all the same."""
    folder = picture_folder(tmp_path / "pictures")
    Image.new("1", (70_000, 1)).save(folder / "line.png")
    assert main(["caption", str(folder), "-o", str(tmp_path / "out.jsonl"), "--bundle", str(padded)]) == 1
    assert f"{folder / 'line.png'} has 70000 x 1 pixels; expected at most 65,535 a side" in capsys.readouterr().err
    assert len(lines(tmp_path / "out.jsonl")) == 4


def test_the_view_is_the_picture_s_own(padded: Path, cropped: Path, low: Path, wide: Path) -> None:
    for bundle, picture, view in ((padded, low, (0, -10, 64, 54)), (cropped, wide, (32, 0, 96, 64))):
        with TinyGPTV.load(bundle) as model:
            assert model.encode_image(picture).view == view
