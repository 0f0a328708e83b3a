"""The file that ``tinygptv caption`` goes on from: each line once, whoever interrupts, and nothing of others lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from captioned import CAPTIONS, PLACES, RED, TEAL, lines, picture_folder, texts, wanted
from conftest import bundle_with, heed_interrupts, plain_environment
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.cli import main
from tinygptv.runtime.commands.captions import Captions
from tinygptv.runtime.loading import DEMO_BUNDLE

SLOWLY = """
import sys, time
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.cli import main
encode = TinyGPTV.encode_image
def slowly(*arguments, **named):
    time.sleep(0.1)
    return encode(*arguments, **named)
TinyGPTV.encode_image = slowly
sys.exit(main(sys.argv[1:]))
"""
LITTLE_ROOM = """
import resource, sys
from tinygptv.runtime.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
sys.exit(main(sys.argv[1:]))
"""
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals, pipes or limits")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return picture_folder(tmp_path / "Bilder é")


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


def wait_for_a_line(process: subprocess.Popen, output: Path) -> None:
    deadline = time.monotonic() + 60
    while not output.exists() or b"\n" not in output.read_bytes():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


# What counts as done


def test_another_question(folder: Path, output: Path) -> None:
    """Is asked of all; answers to the first are kept, and need not be given again."""
    question = "what shape is in the image?"
    for arguments in ([], ["--question", question], [], ["--question", question]):
        assert main(["caption", str(folder), "-o", str(output), *arguments]) == 0
    assert [line["question"] for line in lines(output)] == ["[caption]"] * 4 + [question] * 4
    assert [line["text"] for line in lines(output)[4:]] == ["circle", "circle", "triangle", "triangle"]


def test_nothing_left_to_do(
    folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    before = output.read_bytes()
    monkeypatch.setattr(TinyGPTV, "load", None)  # not even that
    capsys.readouterr()
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    notice, summary = capsys.readouterr().err.splitlines()
    assert "demo" in notice and summary == "4 pictures: 0 captioned, 4 done before, 0 failed"
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


def line_with(**fields: object) -> bytes:
    """A caption that is none of the folder's, with other fields; those that are None are not there."""
    texts = {"model": "demo", "bundle": "0" * 12, "question": "what?", "text": "it", "finish_reason": "stop"}
    caption = {"file": "z.png", "folder": "z", "size": 1, "mtime": 1.5, **texts, "regions": [], **fields}
    return json.dumps({name: value for name, value in caption.items() if value is not None}).encode() + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        *(b"my notes", b"my notes\n", b'{"file": 1}\n', b"[]\n", b"null\n", b"\xff\n", b"[" * 100_000 + b"\n"),
        *(line_with(file=[], question={}), line_with(file=1), line_with(question={}), line_with(text=["it"])),
        *(line_with(size=1.5), line_with(size=True), line_with(mtime="now"), line_with(finish_reason=0)),
        *(line_with(model=None), line_with(model=3), line_with(score=0.5), line_with(regions=[1])),
        *(line_with(regions={}), line_with(regions=[{"phrase": 1, "boxes": []}]), line_with(regions=[{"boxes": []}])),
        *(line_with(regions=[{"phrase": None, "boxes": [box]}]) for box in ([1, 2, 3], [1, 2, 3, 4.5], "box")),
        line_with(regions=[{"phrase": None, "boxes": [], "score": 1}]),
    ],
    ids=lambda content: content[:60].decode(errors="replace"),
)
def test_a_file_of_something_else_is_left_alone(
    content: bytes, folder: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output.write_bytes(b"\n" + line_with() + content)
    assert main(["caption", str(folder), "-o", str(output)]) == 1
    *_, said = capsys.readouterr().err.splitlines()
    assert f"{output}: line 3 is not a caption" in said
    assert output.read_bytes() == b"\n" + line_with() + content


@pytest.mark.parametrize("end", [b"", b"\n", b" \n\r\n", b"  "])
def test_blank_lines(end: bytes, folder: Path, output: Path, asked: list[int]) -> None:
    """Such as editors leave, or people who join two files."""
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    *first, last = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"\n" + b"\r\n".join(first) + end)
    asked.clear()
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    assert asked == [1]
    assert output.read_bytes() == b"\n" + b"\r\n".join(first) + end.rstrip(b" ") + last


def test_a_line_with_a_whole_number_of_seconds(folder: Path, output: Path, asked: list[int]) -> None:
    """As other programs write 1700000000.0."""
    os.utime(folder / "a.png", (1_700_000_000, 1_700_000_000))
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    output.write_bytes(output.read_bytes().replace(b"1700000000.0", b"1700000000"))
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    assert asked == [4]


def test_another_model(folder: Path, output: Path, tmp_path: Path, asked: list[int]) -> None:
    """Does not rest on the first one's captions, nor the first one on its."""
    other = bundle_with(DEMO_BUNDLE, tmp_path / "other", name="another")
    for arguments in ([], ["--bundle", str(other)], [], ["--bundle", str(other)]):
        assert main(["caption", str(folder), "-o", str(output), *arguments]) == 0
    assert asked == [4, 4]
    models = [(line["model"], line["bundle"]) for line in lines(output)]
    assert models == [models[0]] * 4 + [models[4]] * 4
    assert (models[0][0], models[4][0]) == ("demo", "another") and models[0][1] != models[4][1]


def test_no_model_at_all(folder: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(folder), "-o", str(output), "--bundle", str(tmp_path)]) == 1
    assert "has no manifest.json" in capsys.readouterr().err
    assert not output.exists()


# Odd files, two runs at once, a full disk


@posix
@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_no_regular_file(
    kind: str, folder: Path, tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"device": Path("/dev/null"), "pipe": tmp_path / "pipe", "folder": tmp_path}
    os.mkfifo(tmp_path / "pipe")
    assert main(["caption", str(folder), "-o", str(places[kind])]) == 1
    assert f"{places[kind]} is not a regular file; expected" in capsys.readouterr().err


def test_two_runs_at_once(
    folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is refused before it has done anything; as a run in between cannot lose the lines of the first."""
    arguments = ["caption", str(folder), "-o", str(output)]
    load, statuses = TinyGPTV.load, []

    def during_another(*given: object, **named: object) -> TinyGPTV:
        statuses.append(main(arguments))
        return load(*given, **named)

    monkeypatch.setattr(TinyGPTV, "load", during_another)
    assert main(arguments) == 0
    assert statuses == [1]
    refusal = f"another caption run is writing to {output}; wait for it, or choose another OUTPUT"
    assert capsys.readouterr().err.count(refusal) == 1
    assert texts(output) == wanted(PLACES) and len(lines(output)) == 4
    assert sorted(path.name for path in output.parent.iterdir()) == sorted([folder.name, output.name])
    shutil.copy(RED, folder / "e.png")
    monkeypatch.setattr(TinyGPTV, "load", load)
    assert main(arguments) == 0  # nothing is locked any more


@posix
def test_another_process(folder: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is refused too, and let in as soon as the first is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "caption", str(folder), "-o", str(output), "--batch-size", "1"],
        stderr=subprocess.DEVNULL,
        env=plain_environment(tmp_path),
    )
    wait_for_a_line(process, output)
    assert main(["caption", str(folder), "-o", str(output)]) == 1
    assert "another caption run is writing to" in capsys.readouterr().err
    process.kill()
    process.wait(60)
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    assert texts(output) == wanted(PLACES) and len(lines(output)) == 4
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, output.name}  # nor is a lock left


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_two_runs_at_once_through_a_link(
    folder: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is one file, also before it is there."""
    link = tmp_path / "elsewhere" / "link.jsonl"
    link.parent.mkdir()
    link.symlink_to(output)
    load, statuses = TinyGPTV.load, []

    def during_another(*given: object, **named: object) -> TinyGPTV:
        statuses.append(main(["caption", str(folder), "-o", str(link)]))
        return load(*given, **named)

    monkeypatch.setattr(TinyGPTV, "load", during_another)
    assert main(["caption", str(folder), "-o", str(output)]) == 0
    assert statuses == [1]
    assert f"another caption run is writing to {link}" in capsys.readouterr().err
    monkeypatch.setattr(TinyGPTV, "load", load)
    assert main(["caption", str(folder), "-o", str(link)]) == 0
    assert link.is_symlink() and texts(output) == wanted(PLACES) and len(lines(output)) == 4


def test_nothing_came_of_it(folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No empty file is left, unless it was there before."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TinyGPTV, "load", interrupted)
    assert main(["caption", str(folder), "-o", str(output)]) == 130
    assert [path.name for path in output.parent.iterdir()] == [folder.name]
    output.touch()
    assert main(["caption", str(folder), "-o", str(output)]) == 130
    assert output.exists()


@posix
def test_a_full_disk(folder: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs the line that has no room, and says so as well as what was done; a limit of the process stands for it."""
    monkeypatch.chdir(tmp_path)
    arguments = ["caption", folder.name, "-o", str(output), "--batch-size", "1"]
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_ROOM, *arguments, "--json"],
        capture_output=True,
        env=plain_environment(tmp_path),
        timeout=60,
        check=False,
    )
    said, summary = done.stderr.decode().splitlines()[-2:]
    assert done.returncode == 1
    assert said == f"tinygptv: {output} cannot be written: {os.strerror(errno.EFBIG)}"
    assert summary.startswith("stopped (2 captioned, 0 done before, 1 failed; ")
    assert summary.endswith("run the same command again to continue")
    document = json.loads(done.stdout)
    assert (document["pictures"], document["captioned"], document["interrupted"]) == (4, 2, False)
    assert [fault["file"] for fault in document["failed"]] == ["b/写真 é.PNG"]
    assert output.stat().st_size == 600 and not output.read_bytes().endswith(b"\n")
    assert main(arguments) == 0
    assert list(texts(output).items()) == list(wanted(PLACES).items()) and len(lines(output)) == 4


# Going on


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
    assert "run the same command again to continue" in captured.err
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
        preexec_fn=heed_interrupts,
    )
    wait_for_a_line(process, output)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == b""
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert b"run the same command again to continue" in err and b"Traceback" not in err
    done = len(lines(output))
    assert 1 <= done < 4
    assert main(arguments) == 0
    assert list(texts(output).items()) == list(wanted(PLACES).items())
    assert len(lines(output)) == 4
