"""``tinygptv caption``: every picture of a folder once, whatever interrupts it and whatever is wrong with some."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from captioned import CAPTIONS, IMAGES, PLACES, RED, TEAL, lines, picture_folder, texts, wanted
from conftest import heed_interrupts, plain_environment
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.bundle.manifest import FILE_NAME as MANIFEST
from tinygptv.runtime.cli import main
from tinygptv.runtime.commands.terminal import pace
from tinygptv.runtime.folder import sidecars
from tinygptv.runtime.language.batch import DecoderBatch
from tinygptv.runtime.loading import DEMO_BUNDLE

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return picture_folder(tmp_path / "Bilder é")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "captions.jsonl"


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
        "folder": str(folder),
        "size": found.st_size,
        "mtime": found.st_mtime,
        "model": "demo",
        "bundle": hashlib.sha256((DEMO_BUNDLE / MANIFEST).read_bytes()).hexdigest()[:12],
        "question": "[caption]",
        "text": "a teal circle",
        "finish_reason": "stop",
        "regions": [],
    }


def test_one_picture(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(TEAL, tmp_path / "one")
    assert main(["caption", str(tmp_path / "one"), "-o", str(output)]) == 0
    assert "1 picture: 1 captioned, 0 done before, 0 failed" in capsys.readouterr().err


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
    assert (
        f"{folder / 'a.txt'} was not written by this command, so it was kept; --overwrite replaces it" in captured.err
    )
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


def test_each_question_has_sidecars_of_its_own(folder: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever was asked last; what was edited is kept each time."""
    arguments = ["caption", str(folder), "-o", str(output), "--sidecar"]
    questions = ["what shape is in the image?", "What shape is in the image!", "??"]
    for question in questions * 2:
        assert main([*arguments, "--question", question, "--max-new-tokens", "3"]) == 0
        assert main(arguments) == 0
        assert (folder / "a.txt").read_text() == "a teal circle\n"
    assert (folder / "a.what-shape-is-in-the-image-b8b4c2.txt").read_text() == "circle\n"
    assert len(list(folder.glob("a.*txt"))) == 1 + len(questions)
    (folder / "c.txt").write_text("by me\n")
    capsys.readouterr()
    assert main([*arguments, "--question", "[caption]"]) == 0  # which is what is asked without any
    assert f"{folder / 'c.txt'} was not written by this command, so it was kept" in capsys.readouterr().err
    assert len(list(folder.glob("a.*txt"))) == 1 + len(questions)


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_pictures_of_one_name(
    overwrite: bool, folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has a text of its own, also where one of them was captioned before."""
    arguments = ["caption", str(folder), "-o", str(output), "--sidecar", *(["--overwrite"] if overwrite else [])]
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    shutil.copy(RED, folder / "a.webp")
    for _ in range(2):
        assert main(arguments) == 0
        assert "kept" not in capsys.readouterr().err
        assert not (folder / "a.txt").exists()
        assert (folder / "a.png.txt").read_text() == "a teal circle\n"
        assert (folder / "a.webp.txt").read_text() == "a red triangle\n"
        assert (folder / "c.txt").exists() and len(list(folder.rglob("*.txt"))) == 5


def test_names_of_sidecars() -> None:
    """No two pictures have the same, on systems that ignore case as well; folders that cannot be read do no harm."""
    alone = {"p.jpg": "p.txt", "b/p.jpg": "b/p.txt", "c.d/q.e.PNG": "c.d/q.e.txt"}
    assert sidecars([*alone, ".", "d/"]).items() >= alone.items()
    assert sidecars(["p.jpg", "P.png"]) == {"p.jpg": "p.jpg.txt", "P.png": "P.png.txt"}
    for names in (["p.jpg", "p.png", "p.jpg.png"], ["p.jpg", "p.jpg.png", "p.jpg.png.gif"]):
        assert len(set(sidecars(names).values())) == 3


@pytest.mark.parametrize("exists", [False, True])
def test_captions_that_would_be_a_sidecar(exists: bool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / "a.txt"
    if exists:
        assert main(["caption", str(folder), "-o", str(output)]) == 0
    before = output.read_bytes() if exists else b""
    capsys.readouterr()
    assert main(["caption", str(folder), "-o", str(output), "--sidecar", "--overwrite"]) == 1
    assert f"OUTPUT is {output}, where the caption of a.png would go" in capsys.readouterr().err
    assert (output.read_bytes() if output.exists() else b"") == before
    assert len(list(folder.rglob("*.txt"))) <= 1


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_sidecar_that_is_a_link(folder: Path, output: Path, tmp_path: Path) -> None:
    """Stays one, and what it leads to is written."""
    (tmp_path / "texts").mkdir()
    (folder / "a.txt").symlink_to(tmp_path / "texts" / "a.txt")
    assert main(["caption", str(folder), "-o", str(output), "--sidecar"]) == 0
    assert (folder / "a.txt").is_symlink()
    assert [path.name for path in (tmp_path / "texts").iterdir()] == ["a.txt"]
    assert (tmp_path / "texts" / "a.txt").read_text() == "a teal circle\n"


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


def at_a_terminal(command: list[str], home: Path, interrupt_at: bytes | None = None) -> tuple[int, str]:
    """Run a command with a terminal of 100 columns as its stderr: exit status, and what the terminal was sent."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *command],
        stderr=theirs,
        env=plain_environment(home, TERM="xterm"),
        preexec_fn=heed_interrupts,
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
        if interrupt_at is not None and interrupt_at in said:
            process.send_signal(signal.SIGINT)
            interrupt_at = None
    os.close(ours)
    return process.wait(60), said.decode()


def seen(said: str) -> list[str]:
    """The lines that are left on a terminal, without colours, by what was sent: a carriage return goes to the start."""
    left = []
    for line in re.sub(r"\x1b\[\d+m", "", said).replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        left.append(shown.rstrip())
    return left


CAPTION = ["-m", "tinygptv.runtime.cli", "caption"]
WITH_WARNINGS = """
import sys, warnings
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.cli import main
encode = TinyGPTV.encode_image
def warning(*arguments, **named):
    warnings.warn("look out")
    return encode(*arguments, **named)
TinyGPTV.encode_image = warning
sys.exit(main(sys.argv[1:]))
"""


@posix
def test_progress_at_a_terminal(folder: Path, output: Path, tmp_path: Path) -> None:
    """Shown while it lasts; what is said meanwhile has lines of its own."""
    (folder / "bad.png").touch()
    command = ["-c", WITH_WARNINGS, "caption", str(folder), "-o", str(output), "--batch-size", "2"]
    status, said = at_a_terminal(command, tmp_path)
    assert status == 1
    for text in ("looking for pictures ...", "loading the model ..."):
        assert f"\r{text}" in said
    for done in range(6):
        assert re.search(rf"\rcaptioning: +{done * 20}%.* {done}/5 \[", said)
    assert re.search(r" 5/5 \[\d\d:\d\d<00:00, +[\d.]+(img/s|s/img)\]", said)
    demo, *complaints, summary, end = seen(said)
    assert "demo" in demo and summary.startswith("5 pictures: 4 captioned, 0 done before, 1 failed; ") and end == ""
    (bad,) = (line for line in complaints if "bad.png" in line)
    assert bad.startswith("tinygptv: ")
    assert {*complaints} == {bad, "tinygptv: look out"}


@posix
def test_an_interrupt_at_a_terminal(folder: Path, output: Path, tmp_path: Path) -> None:
    for number in range(200):  # more than a busy machine captions before the signal comes
        shutil.copy(RED, folder / f"{number}.png")
    command = [*CAPTION, str(folder), "-o", str(output), "--batch-size", "1"]
    status, said = at_a_terminal(command, tmp_path, b" 1/204 [")
    assert status == 130
    _, summary, end = seen(said)
    told = r"interrupted \([1-9]\d* captioned, .*\); run the same command again to continue"
    assert re.fullmatch(told, summary) and end == ""


def test_no_progress_for_a_program(folder: Path, output: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, *CAPTION, str(folder), "-o", str(output)],
        capture_output=True,
        text=True,
        env=plain_environment(tmp_path),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    demo, summary = done.stderr.splitlines()
    assert "demo" in demo and summary.startswith("4 pictures: 4 captioned")


def test_rates() -> None:
    assert [pace(rate) for rate in (12.34, 1, 0.5, 0.01)] == [
        *("12.3 a second", "1.0 a second", "30.0 a minute", "0.6 a minute"),
    ]
