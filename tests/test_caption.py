"""``tinygptv caption``: every picture of a folder once, whatever interrupts it and whatever is wrong with some."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from conftest import plain_environment
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.batch import DecoderBatch
from tinygptv.runtime.cli import main
from tinygptv.runtime.commands.captions import Captions
from tinygptv.runtime.commands.terminal import duration, pace

IMAGES = Path(__file__).parent / "images"
TEAL, RED = IMAGES / "teal_circle.png", IMAGES / "red_triangle.png"
PLACES = {"a.png": TEAL, "b/z/d.png": TEAL, "b/写真 é.PNG": RED, "c.png": RED}
"""In the order of the captions; further ones in the fixture are not pictures, hidden, or reached twice."""
CAPTIONS = {TEAL: "a teal circle", RED: "a red triangle"}
SLOWLY = """
import sys, time
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.batch import DecoderBatch
from tinygptv.runtime.cli import main
from tinygptv.runtime.commands.captions import Captions
encode = TinyGPTV.encode_image
def slowly(*arguments, **named):
    time.sleep(0.1)
    return encode(*arguments, **named)
TinyGPTV.encode_image = slowly
sys.exit(main(sys.argv[1:]))
"""
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals or pseudo-terminals")


@pytest.fixture(autouse=True)
def _demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYGPTV_BUNDLE", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "Bilder é"
    for name, source in (*PLACES.items(), (".hidden.png", RED), (".git/e.png", RED), ("b/notes.md", RED)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, folder / name)
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "captions.jsonl"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number a run of the command: how many pictures were asked about."""
    counts: list[int] = []
    ask_each = TinyGPTV.ask_each

    def counting(model: TinyGPTV, questions: Iterable, **named: object) -> Iterator:
        def counted() -> Iterator:
            for question in questions:
                counts[-1] += 1
                yield question

        counts.append(0)
        return ask_each(model, counted(), **named)

    monkeypatch.setattr(TinyGPTV, "ask_each", counting)
    return counts


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many captions were written in step, one number a step."""
    counts: list[int] = []
    run = DecoderBatch.run

    def counting(batch: DecoderBatch, *arguments: object) -> object:
        counts.append(len(batch))
        return run(batch, *arguments)

    monkeypatch.setattr(DecoderBatch, "run", counting)
    return counts


def lines(output: Path) -> list[dict]:
    text = output.read_text(encoding="ascii")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def texts(output: Path) -> dict[str, str]:
    return {line["file"]: line["text"] for line in lines(output)}


def wanted(places: dict[str, Path]) -> dict[str, str]:
    return {name: CAPTIONS[source] for name, source in places.items()}


# All of them, once


@pytest.mark.parametrize("size", [1, 3, 8])
def test_every_picture(
    size: int, folder: Path, output: Path, rows: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(folder), "-o", str(output), "--batch-size", str(size)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(
        r"^4 pictures: 4 captioned, 0 done before, 0 failed; [\d.]+ a (second|minute)$", captured.err, re.M
    )
    assert texts(output) == wanted(PLACES)
    assert max(rows) == min(size, 4)
    if size == 1:  # otherwise in the order in which they become whole
        assert list(texts(output)) == list(PLACES)
    (first,) = (line for line in lines(output) if line["file"] == "a.png")
    found = (folder / "a.png").stat()
    assert first == {
        "file": "a.png",
        "size": found.st_size,
        "mtime": found.st_mtime,
        "question": "[caption]",
        "text": "a teal circle",
        "finish_reason": "stop",
    }


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links(folder: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A circle of them ends, and a folder that is linked is read."""
    (folder / "b" / "up").symlink_to("..")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(TEAL, elsewhere / "e.png")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "linked.png").symlink_to(elsewhere / "e.png")
    (folder / "nowhere.png").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    assert main(["caption", str(folder), "-o", str(output)]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("cannot be read") == 1 and "nowhere.png" in captured.err
    assert texts(output) == wanted(PLACES | {"linked/e.png": TEAL, "linked.png": TEAL})


def test_one_bad_file(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, told before the others of its batch are answered, which they are."""
    (folder / "b.jpg").write_bytes(b"no picture")
    (folder / "b" / "cut.png").write_bytes(RED.read_bytes()[:200])
    for captioned in (4, 0):  # the second time too: they may have been repaired
        assert main(["caption", str(folder), "-o", str(output), "--json"]) == 1
        captured = capsys.readouterr()
        summary = json.loads(captured.out)
        assert [fault["file"] for fault in summary["failed"]] == ["b/cut.png", "b.jpg"]
        assert captured.err.count("tinygptv: ") == 3  # with the demo's notice
        assert (summary["pictures"], summary["captioned"], summary["skipped"]) == (6, captioned, 4 - captioned)
        assert (summary["interrupted"], summary["output"]) == (False, str(output))
    assert texts(output) == wanted(PLACES)
    shutil.copy(TEAL, folder / "b.jpg")
    (folder / "b" / "cut.png").unlink()
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    assert texts(output) == wanted(PLACES | {"b.jpg": TEAL})
    assert len(lines(output)) == 5


def test_another_question(folder: Path, output: Path) -> None:
    """Is asked of all; answers to the first are kept, and need not be given again."""
    question = "what shape is in the image?"
    for arguments in ([], ["--question", question], [], ["--question", question]):
        assert main(["caption", str(folder), "-o", str(output), *arguments]) == 0
    assert [line["question"] for line in lines(output)] == ["[caption]"] * 4 + [question] * 4
    assert [line["text"] for line in lines(output)[4:]] == ["circle", "circle", "triangle", "triangle"]


def test_a_folder_without_pictures(tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for folder, place, said in (
        (tmp_path / "empty", output, "has no pictures"),
        (tmp_path / "nowhere", output, "is not a folder"),
        (IMAGES, tmp_path / "nowhere" / "captions.jsonl", "is not a folder"),
    ):
        assert main(["caption", str(folder), "-o", str(place)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert said in captured.err
    assert not output.exists()


# Going on


def test_nothing_left_to_do(
    folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    before = output.read_bytes()
    monkeypatch.setattr(TinyGPTV, "load", None)  # not even that
    capsys.readouterr()
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    assert capsys.readouterr().err == "4 pictures: 0 captioned, 4 done before, 0 failed\n"
    assert output.read_bytes() == before


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_picture_that_has_changed(change: str, folder: Path, output: Path, asked: list[int]) -> None:
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    path = folder / "a.png"
    found = path.stat()
    if change == "size":
        shutil.copy(RED, path)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    else:
        os.utime(path, (found.st_atime, found.st_mtime + 5))
    asked.clear()
    for _ in range(2):
        assert main(["caption", str(folder), "-o", str(output)]) == 0
        assert asked == [1]
    assert len(lines(output)) == 5
    assert texts(output)["a.png"] == CAPTIONS[RED if change == "size" else TEAL]  # the last line counts


@pytest.mark.parametrize("left", [1, 5, 40, -1])
def test_a_line_that_was_cut(left: int, folder: Path, output: Path, asked: list[int]) -> None:
    """A kill while a line was written costs that line."""
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    whole = output.read_bytes()
    *first, last = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(first) + last[:left])
    asked.clear()
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    assert output.read_bytes() == whole
    assert asked == [1]


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", b'{"file": 1}\n', b"[]\n", b"\n", b"\xff\n"])
def test_a_file_of_something_else_is_left_alone(
    content: bytes, folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.write_bytes(content)
    assert main(["caption", str(folder), "-o", str(output)]) == 1
    assert "line 1 is no caption" in capsys.readouterr().err
    assert output.read_bytes() == content


def test_interrupted_within_a_batch(
    folder: Path, output: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is whole is kept; the rest is done again."""
    keep = Captions.add

    def interrupting(captions: Captions, *arguments: object) -> None:
        keep(captions, *arguments)
        if len(lines(output)) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Captions, "add", interrupting)
        assert main(["caption", str(folder), "-o", str(output), "--batch-size", "3", "--json"]) == 130
    captured = capsys.readouterr()
    assert "interrupted (2 captioned, 0 done before, 0 failed; " in captured.err
    assert "the same command goes on from here" in captured.err
    assert json.loads(captured.out)["interrupted"] is True
    assert len(lines(output)) == 3
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    assert texts(output) == wanted(PLACES)
    assert asked == [3, 1]


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_as_a_process(number: signal.Signals, folder: Path, output: Path, tmp_path: Path) -> None:
    arguments = ["caption", str(folder), "-o", str(output), "--batch-size", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=plain_environment(tmp_path),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not output.exists() or b"\n" not in output.read_bytes():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == b""
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert b"the same command goes on from here" in err and b"Traceback" not in err
    done = len(lines(output))
    assert 1 <= done < 4
    assert main(arguments) == 0
    assert list(texts(output).items()) == list(wanted(PLACES).items())
    assert len(lines(output)) == 4


# Sidecars


def test_sidecars(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(folder), "-o", str(output), "--sidecar"]) == 0
    for name, source in PLACES.items():
        sidecar = (folder / name).with_suffix(".txt")
        assert sidecar.read_text(encoding="utf-8") == CAPTIONS[source] + "\n"
    assert len(list(folder.rglob("*.txt"))) == 4
    assert not list(folder.rglob("*.part"))


def test_sidecars_of_what_was_captioned_before(folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    assert list(folder.rglob("*.txt")) == []
    monkeypatch.setattr(TinyGPTV, "load", None)
    assert main(["caption", str(folder), "-o", str(output), "--sidecar"]) == 0
    assert (folder / "c.txt").read_text() == "a red triangle\n"
    assert len(list(folder.rglob("*.txt"))) == 4


def test_texts_of_other_people(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Are never overwritten unless that is asked for; the caption itself is not lost."""
    (folder / "a.txt").write_text("mine")
    arguments = ["caption", str(folder), "-o", str(output), "--sidecar"]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["sidecars_kept"] == 1
    assert f"{folder / 'a.txt'} is not this command's and was kept; --overwrite replaces it" in captured.err
    assert (folder / "a.txt").read_text() == "mine"
    assert texts(output) == wanted(PLACES)
    assert main([*arguments, "--overwrite"]) == 0
    assert (folder / "a.txt").read_text() == "a teal circle\n"


@pytest.mark.parametrize("edited", [False, True])
def test_an_own_sidecar_follows_its_picture(edited: bool, folder: Path, output: Path) -> None:
    arguments = ["caption", str(folder), "-o", str(output), "--sidecar"]
    assert main(arguments) == 0
    sidecar = folder / "a.txt"
    if edited:
        sidecar.write_text("a teal circle, by me\n")
    shutil.copy(RED, folder / "a.png")
    assert main(arguments) == 0
    assert texts(output)["a.png"] == "a red triangle"
    assert sidecar.read_text() == ("a teal circle, by me\n" if edited else "a red triangle\n")


def test_two_pictures_of_one_name(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(RED, folder / "a.webp")
    assert main(["caption", str(folder), "-o", str(output), "--sidecar", "--batch-size", "1"]) == 0
    assert "a.txt is not this command's and was kept" in capsys.readouterr().err
    assert (folder / "a.txt").read_text() == "a teal circle\n"


def test_a_sidecar_that_cannot_be_written(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a.txt").mkdir()
    arguments = ["caption", str(folder), "-o", str(output), "--sidecar"]
    assert main([*arguments, "--json"]) == 1
    captured = capsys.readouterr()
    assert f"{folder / 'a.txt'} cannot be written" in captured.err
    assert [fault["file"] for fault in json.loads(captured.out)["failed"]] == ["a.png"]
    assert texts(output) == wanted(PLACES)
    (folder / "a.txt").rmdir()
    assert main(arguments) == 0
    assert (folder / "a.txt").read_text() == "a teal circle\n"


# What a person sees


@posix
def test_progress_at_a_terminal(folder: Path, output: Path, tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tinygptv.runtime.cli", "caption", str(folder), "-o", str(output), "--batch-size", "2"],
        stderr=theirs,
        env=plain_environment(tmp_path, TERM="xterm", COLUMNS="100"),
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux' way to say that nobody is there any more
            piece = b""
        if not piece:
            break
        said += piece
    assert process.wait(60) == 0
    os.close(ours)
    text = said.decode()
    assert "\rcaptioning 0 of 4" in text
    for done in (1, 2, 3, 4):
        assert re.search(rf"\rcaptioning {done} of 4, [\d.]+ a (second|minute), \d+ s left", text)
    assert "0 s left" in text
    *_, last = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    shown = last.split("\r")[-1]
    assert re.search(r"4 pictures: 4 captioned", shown)


def test_rates_and_times() -> None:
    assert [pace(rate) for rate in (12.34, 1, 0.5, 0.01)] == [
        *("12.3 a second", "1.0 a second", "30.0 a minute", "0.6 a minute"),
    ]
    assert [duration(seconds) for seconds in (0.4, 8, 59.6, 125, 3609)] == ["0 s", "8 s", "1:00", "2:05", "1:00:09"]
