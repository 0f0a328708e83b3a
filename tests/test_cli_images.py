"""``tinygptv ask``: where its images come from, boxes in questions and answers, and how words are chosen."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import plain_environment
from PIL import Image, ImageGrab
from tinygptv.runtime import PUBLISHED_DEMO, TinyGPTV
from tinygptv.runtime.boxes import Box, Region
from tinygptv.runtime.bundle.manifest import read_manifest
from tinygptv.runtime.cli import main
from tinygptv.runtime.drawing import draw_regions
from tinygptv.runtime.loading import DEMO_BUNDLE

COMMAND = [sys.executable, "-m", "tinygptv.runtime.cli"]
IMAGES = Path(__file__).parent / "images"
TEAL, RED = str(IMAGES / "teal_circle.png"), str(IMAGES / "red_triangle.png")
TRIANGLE = Box(16, 5, 39, 25)
"""Of the red picture, as the demo answers to ``[detection] triangle``."""


@pytest.fixture
def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong must be found before seconds are spent on loading a model."""

    def load(*arguments: object, **named: object) -> TinyGPTV:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(TinyGPTV, "load", load)


def run(*arguments: str, home: Path, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        cwd=home,
        env=plain_environment(home, **environment),
        timeout=60,
        check=False,
    )


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr, which is all that was printed but for the demo's notice."""
    captured = capsys.readouterr()
    assert captured.out == ""
    *before, line = captured.err.splitlines()
    assert all("using the built-in demo model" in text for text in before)
    return line


# Images


def test_from_stdin(tmp_path: Path) -> None:
    done = run("ask", "-", "[caption]", home=tmp_path, stdin=Path(TEAL).read_bytes())
    assert (done.returncode, done.stdout.strip()) == (0, b"a teal circle")


@pytest.mark.parametrize(("stdin", "said"), [(b"", b"stdin is empty"), (b"GIF? no", b"is text, not a picture")])
def test_stdin_without_an_image(stdin: bytes, said: bytes, tmp_path: Path) -> None:
    done = run("ask", "-", "[caption]", home=tmp_path, stdin=stdin)
    assert (done.returncode, done.stdout) == (1, b"")
    assert said in done.stderr


@pytest.mark.usefixtures("never_loaded")
def test_nobody_waits_for_a_terminal_to_send_an_image(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert main(["ask", "-", "[caption]"]) == 1
    assert "stdin is a terminal, or closed; expected an image" in complaint(capsys)
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["ask", "-", "[caption]"]) == 1
    assert "stdin is a terminal, or closed; expected an image" in complaint(capsys)
    assert main(["ask", "-", "-", "[caption]"]) == 1
    assert "named twice" in complaint(capsys)


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.skipif(sys.platform == "win32", reason="has no named pipes among files")
def test_nobody_waits_for_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Opening one would wait for its other end, and Ctrl-C would not help."""
    os.mkfifo(tmp_path / "pipe\x1b[2J.png")
    assert main(["ask", str(tmp_path / "pipe\x1b[2J.png"), "[caption]"]) == 1
    said = complaint(capsys)
    assert "is not a file" in said and "tinygptv ask -" in said
    assert "\x1b" not in said  # a name cannot command the terminal


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [([TEAL, RED], "expected a QUESTION behind the images"), ([TEAL, "what?", "--stop", ""], "expected some text")],
)
def test_what_was_forgotten(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["ask", *arguments])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize("position", [0, 1])
def test_a_missing_image_costs_no_load(position: int, capsys: pytest.CaptureFixture[str]) -> None:
    images = [TEAL, TEAL]
    images[position] = "nowhere.png"
    assert main(["ask", *images, "[caption]"]) == 1
    assert "nowhere.png does not exist" in complaint(capsys)


def test_several_images_and_options_between_them(capsys: pytest.CaptureFixture[str]) -> None:
    question = "what shape is in the image?"
    with TinyGPTV.load() as model:
        wanted = model.ask([TEAL, RED], question)
    assert main(["ask", TEAL, "--threads", "1", RED, "--json", question]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt_tokens"] == wanted.prompt_tokens
    assert (found["text"], found["regions"]) == (wanted.text, [])


def test_from_the_clipboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for copied in (Image.open(TEAL), [TEAL]):  # a picture, or a file
        monkeypatch.setattr(ImageGrab, "grabclipboard", lambda copied=copied: copied)
        assert main(["ask", "--clipboard", "[caption]"]) == 0
        assert capsys.readouterr().out == "a teal circle\n"


@pytest.mark.usefixtures("never_loaded")
def test_a_clipboard_without_an_image(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: None)
    assert main(["ask", "--clipboard", "[caption]"]) == 1
    assert "there is no image on the clipboard" in complaint(capsys)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Pillow asks the system itself")
def test_the_systems_clipboard(tmp_path: Path) -> None:
    """Through the real xclip's place: there is none, there is one that fails, and one that has a picture."""
    programs = tmp_path / "programs"
    programs.mkdir()
    variables = {"PATH": str(programs), "XDG_SESSION_TYPE": "x11"}
    done = run("ask", "--clipboard", "[caption]", home=tmp_path, **variables)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"it needs wl-paste or xclip" in done.stderr and b"name the file instead" in done.stderr
    program = programs / "xclip"
    for script, status, out in (
        ("#!/bin/sh\necho 'Error: Cannot open display' >&2\nexit 1\n", 1, b""),
        (f"#!/bin/sh\nexec {shutil.which('cat')} '{TEAL}'\n", 0, b"a teal circle\n"),
    ):
        program.write_text(script)
        program.chmod(0o755)
        done = run("ask", "--clipboard", "[caption]", home=tmp_path, **variables)
        assert (done.returncode, done.stdout) == (status, out)
        assert b"Traceback" not in done.stderr


# Boxes


@pytest.mark.parametrize("name", ["drawn.png", "mit Rahmen é.PNG", "drawn.jpg", "drawn.webp"])
def test_draw(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", RED, "[detection] triangle", "--draw", str(tmp_path / name)]) == 0
    assert capsys.readouterr().out == "<p>red triangle</p> {<25><8><61><39>}\n"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with Image.open(tmp_path / name) as drawn:
        assert drawn.size == (64, 64)
        wanted = draw_regions(RED, [Region("red triangle", (TRIANGLE,))])
        difference = np.abs(np.asarray(drawn.convert("RGB"), float) - np.asarray(wanted, float)).mean()
    assert difference < (1e-9 if name.lower().endswith("png") else 20)
    with Image.open(RED) as plain:
        assert np.abs(np.asarray(plain.convert("RGB"), float) - np.asarray(wanted, float)).mean() > 1


def test_boxes_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", RED, "[detection] triangle", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["regions"] == [{"phrase": "red triangle", "boxes": [list(TRIANGLE)]}]


def test_an_answer_without_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an earlier answer left is not taken for this one's."""
    target = tmp_path / "drawn.png"
    target.write_bytes(b"before")
    assert main(["ask", RED, "[caption]", "--draw", str(target)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "a red triangle\n"
    assert f"the answer has no boxes; {target} was not written" in captured.err
    assert target.read_bytes() == b"before"


@pytest.mark.usefixtures("never_loaded")
def test_a_place_that_cannot_be_drawn_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = Path(shutil.copy(RED, tmp_path))
    (tmp_path / "folder.png").mkdir()
    for target, said in (
        (tmp_path / "nowhere" / "out.png", "is not a folder"),
        (tmp_path / "folder.png", "is not a regular file; expected"),
        (picture, "is the picture that is asked about"),
    ):
        assert main(["ask", str(picture), "[detection] triangle", "--draw", str(target)]) == 1
        assert said in complaint(capsys)
    assert picture.read_bytes() == Path(RED).read_bytes()


@pytest.mark.usefixtures("never_loaded")
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is noticed before the model runs."""

    def refused(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("tinygptv.runtime.commands.ask.check_writable", refused)
    target = tmp_path / "out.png"
    assert main(["ask", RED, "[detection] triangle", "--draw", str(target)]) == 1
    assert complaint(capsys).endswith(f"{target} cannot be written: Permission denied; choose another place")


def test_help_lists_the_task_tags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ask", "--help"])
    said = capsys.readouterr().out
    for tag in read_manifest(DEMO_BUNDLE).tasks:
        assert f"\n  {tag} " in said


def test_what_could_not_be_drawn_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(image: Image.Image, file: object, *more: object) -> None:
        if not isinstance(file, io.BytesIO):
            file.write(b"half")
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    target = tmp_path / "drawn.png"
    target.write_bytes(b"before")
    # Where something cannot be written stdout is given up for good, which here is pytest's.
    monkeypatch.setattr("tinygptv.runtime.cli._leave_stdout", lambda: None)
    assert main(["ask", RED, "[detection] triangle", "--draw", str(target)]) == 1
    assert capsys.readouterr().err.endswith(f"tinygptv: {target}: No space left on device\n")
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"before"


def test_a_box_in_the_question(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    stream = TinyGPTV.stream

    def listening(model: TinyGPTV, image: object, question: str, **named: object) -> object:
        asked.append(question)
        return stream(model, image, question, **named)

    monkeypatch.setattr(TinyGPTV, "stream", listening)
    assert main(["ask", RED, "--box", "16,5,39,25"]) == 0
    assert asked == ["[identify] what is this {<25><8><61><39>}"]
    assert capsys.readouterr().out.strip()


@pytest.mark.usefixtures("never_loaded")
def test_a_box_that_is_not_in_the_picture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", RED, "--box", "16,5,39,65"]) == 1
    assert "expected 0 <= top < bottom <= 64" in complaint(capsys)


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--clipboard"],
        ["--box", "1,2,3,4"],
        [RED, "what is this?", "--box", "1,2,3,4"],
        [RED, "--clipboard", "--box", "1,2,3,4"],
        [RED, TEAL, "what is this?", "--draw", "drawn.png"],
    ],
)
def test_what_is_about_one_image(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: Image.open(TEAL))
    with pytest.raises(SystemExit) as stopped:
        main(["ask", *arguments])
    assert stopped.value.code == 2
    assert "expected" in (said := capsys.readouterr().err) or "are about one image" in said


# Choosing words


def test_sampling_reaches_the_model(photo: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--temperature", "1", "--top-p", "0.9", "--top-k", "50", "--repetition-penalty", "1.05"]
    with TinyGPTV.load() as model:
        question = "what shape is in the image?"
        for seed in (1, 2, 3):
            wanted = model.ask(photo, question, sampling=replace(PUBLISHED_DEMO, top_k=50, seed=seed))
            assert main(["ask", str(photo), question, *arguments, "--seed", str(seed), "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["token_ids"] == list(wanted.token_ids)


def test_stop(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", TEAL, "[caption]", "--stop", "circle", "--stop", "square", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["text"].strip(), found["finish_reason"]) == ("a teal", "stop")


# Colours


def test_no_colours_but_at_a_terminal(tmp_path: Path) -> None:
    for environment in ({"TERM": "xterm"}, {"TERM": "xterm", "NO_COLOR": "1"}):
        done = run("ask", "nowhere.png", "[caption]", home=tmp_path, **environment)
        assert done.stderr.startswith(b"tinygptv: ") and b"\x1b" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_at_a_terminal(environment: dict[str, str], coloured: bool, tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "ask", "nowhere.png", "[caption]"], stderr=theirs, env=plain_environment(tmp_path) | environment
    )
    os.close(theirs)
    said = os.read(ours, 1000)
    assert process.wait(60) == 1
    os.close(ours)
    assert (b"\x1b[31mtinygptv:\x1b[0m " in said) == coloured
    assert (b"\x1b" in said) == coloured
