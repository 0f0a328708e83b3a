"""``tinygptv chat``: questions typed at a terminal, or read from a pipe."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import QUESTION, heed_interrupts, plain_environment
from PIL import Image
from tinygptv.runtime import Cancellation, TinyGPTV
from tinygptv.runtime.commands.chat import COMMANDS
from tinygptv.runtime.commands.completion import completions
from tinygptv.runtime.commands.terminal import interruptible

COMMAND = [sys.executable, "-m", "tinygptv.runtime.cli"]
IMAGES = Path(__file__).parent / "images"
TEAL, RED = str(IMAGES / "teal_circle.png"), str(IMAGES / "red_triangle.png")
SHAPE = "what shape is in the image?"
SLOWLY = """
import sys, time
from tinygptv.runtime.cli import main
from tinygptv.runtime.language.decoder import DecoderState
run = DecoderState.run
def slowly(*arguments, **named):
    time.sleep(0.05)
    return run(*arguments, **named)
DecoderState.run = slowly
sys.exit(main(sys.argv[1:]))
"""
"""The command, but an answer of 200 tokens takes 10 seconds."""
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs signals or pseudo-terminals")


@pytest.fixture
def bundle(golden_bundle: Callable[[int, str], Path]) -> str:
    """Of ``speaking_model``: long answers, and a context of 256."""
    return str(golden_bundle(3, "fp32"))


def piped(text: str | bytes, *arguments: str, home: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, "chat", *arguments],
        input=text if isinstance(text, bytes) else text.encode(),
        capture_output=True,
        cwd=home,
        env=plain_environment(home),
        timeout=60,
        check=False,
    )


def complaints(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """Lines on stderr but the demo's notice."""
    return [line for line in done.stderr.decode().splitlines() if "using the built-in demo" not in line]


# From a pipe


def test_questions_line_by_line(tmp_path: Path) -> None:
    done = piped(f"[caption]\n\n{SHAPE}\nis it red?", RED, home=tmp_path)
    assert (done.returncode, complaints(done)) == (0, [])
    with TinyGPTV.load() as model:
        chat = model.chat(RED)
        wanted = [chat.ask(question).text for question in ("[caption]", SHAPE, "is it red?")]
    assert done.stdout.decode().splitlines() == wanted
    assert wanted[0] == "a red triangle"


def test_json_lines(tmp_path: Path) -> None:
    done = piped(f"[detection] triangle\n{SHAPE}\n", RED, "--json", home=tmp_path)
    assert (done.returncode, complaints(done)) == (0, [])
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["question"], second["question"]) == ("[detection] triangle", SHAPE)
    assert first["regions"] == [{"phrase": "red triangle", "boxes": [[16, 5, 39, 25]]}]
    assert second["finish_reason"] == "stop"
    assert second["cached_tokens"] > first["prompt_tokens"]  # the conversation went on


def test_another_image_and_what_was_said_is_forgotten(tmp_path: Path) -> None:
    script = f"[caption]\n/image {TEAL}\n[caption]\n/save about teal.json\n/reset\n{SHAPE}\n/save after.txt\n"
    done = piped(script, RED, home=tmp_path)
    assert done.returncode == 0
    assert done.stdout.decode().splitlines() == ["a red triangle", "a teal circle", "circle"]
    assert complaints(done) == [
        f"new conversation about {TEAL}",
        f"saved in {tmp_path / 'about teal.json'}",
        "new conversation about the same image",
        f"saved in {tmp_path / 'after.txt'}",
    ]
    assert json.loads((tmp_path / "about teal.json").read_text())["turns"][0]["answer"] == "a teal circle"
    assert (tmp_path / "after.txt").read_text(encoding="utf-8") == f"> {SHAPE}\ncircle\n\n"


def test_a_closed_stdin_has_no_questions(tmp_path: Path) -> None:
    script = "import sys; sys.stdin = None; from tinygptv.runtime.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "chat", RED]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=plain_environment(tmp_path), timeout=60)
    assert (done.returncode, done.stdout, complaints(done)) == (0, b"", [])


def test_save(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    script = (
        f"[caption]\n/save 'our chat.json'\n{SHAPE}\n/save 'our chat.json'\n/save mine.txt\n/save no/where.txt\n/save"
    )
    done = piped(script, TEAL, home=tmp_path)
    assert done.returncode == 1
    saved = json.loads((tmp_path / "our chat.json").read_text(encoding="utf-8"))
    assert saved == {
        "model": "demo",
        "images": [TEAL],
        "turns": [{"question": "[caption]", "answer": "a teal circle"}, {"question": SHAPE, "answer": "circle"}],
    }
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert [line for line in complaints(done) if line.startswith("tinygptv: ")] == [
        f"tinygptv: {tmp_path / 'mine.txt'} exists already; expected a new file",
        *(line for line in complaints(done) if "where.txt cannot be written" in line),
        "tinygptv: expected /save FILE",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "our chat.json"]


def test_images_as_terminals_quote_them(tmp_path: Path) -> None:
    """As a file manager drops them on one."""
    for name in ("ein Bild é.png", "it's.png"):
        Image.open(TEAL).save(tmp_path / name)
    script = "/image ein Bild é.png\n[caption]\n/image 'ein Bild é.png'\n[caption]\n/image it\\'s.png\n[caption]\n"
    done = piped(script, RED, home=tmp_path)
    names = ("ein Bild é.png", "ein Bild é.png", "it's.png")
    assert (done.returncode, complaints(done)) == (0, [f"new conversation about {name}" for name in names])
    assert done.stdout.decode().splitlines() == ["a teal circle"] * 3


@posix
def test_dropped_images(tmp_path: Path) -> None:
    """A line that is a path, however the terminal wrote it, opens the picture; a question never does."""
    picture, other = tmp_path / "ein Bild é.png", tmp_path / "it's.png"
    for path in (picture, other):
        Image.open(TEAL).save(path)
    (tmp_path / "circle").touch()
    lines = [
        *(str(picture), f"'{picture}'", f'"{picture}"', shlex.quote(str(other))),
        *(
            str(picture).replace(" ", "\\ "),
            picture.as_uri(),
            f"{picture.as_uri()} {shlex.quote(str(other))}",
            "it's.png",
        ),
    ]
    done = piped("".join(f"{RED}\n[caption]\n{line}\n" for line in lines) + "circle\n", RED, home=tmp_path)
    told = complaints(done)[1::2]
    both = f"{picture} and {other}"
    wanted = [picture, picture, picture, other, picture, picture, both, "it's.png"]
    assert (done.returncode, told) == (0, [f"new conversation about {what}" for what in wanted])
    assert done.stdout.decode().splitlines()[:-1] == ["a red triangle"] * len(lines)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/image nowhere.png", "nowhere.png does not exist"),
        ("/image", "expected /image PATH"),
        ("/image 'open", "'open has a quotation mark that is not closed"),
        ("/no/where.png", "/no/where.png does not exist"),
        (str(IMAGES), f"{IMAGES} is a folder"),
        (f"/image {'x' * 5000}", "cannot be opened"),
        ("/tell me", "there is no command /tell; /help lists them"),
        ("look at <ImageHere>", "<ImageHere>"),
        (b"caf\xe9?", "not valid Unicode"),
        ("word " * 600, "context"),
    ],
)
def test_a_line_that_cannot_be_obeyed(line: str | bytes, said: str, tmp_path: Path) -> None:
    """Is one line on stderr; the chat goes on as before, and ends with status 1."""
    line = line if isinstance(line, bytes) else line.encode()
    done = piped(line + b"\n[caption]\n", RED, home=tmp_path)
    (complaint,) = complaints(done)
    assert complaint.startswith("tinygptv: ") and said in complaint
    assert (done.returncode, done.stdout) == (1, b"a red triangle\n")


def test_help_and_leaving(tmp_path: Path) -> None:
    done = piped("/help\n/quit\n[caption]\n", RED, home=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"")
    for command in ("/image", "/paste", "/reset", "/save", "/quit"):
        assert command in done.stderr.decode()


def test_without_an_image_and_with_several(tmp_path: Path) -> None:
    with TinyGPTV.load() as model:
        for images in ([], [TEAL, RED]):
            wanted = model.chat(images).ask(SHAPE, max_new_tokens=9).text
            done = piped(f"{SHAPE}\n", *images, "--max-new-tokens", "9", home=tmp_path)
            assert (done.returncode, done.stdout.decode()) == (0, wanted + "\n")


def test_a_missing_image(tmp_path: Path) -> None:
    done = piped("[caption]\n", "nowhere.png", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert "nowhere.png does not exist" in complaints(done)[0]


def test_turns_that_no_longer_fit_are_told(bundle: str, photo: Path, tmp_path: Path) -> None:
    arguments = [str(photo), "--bundle", bundle, "--max-new-tokens", "100"]
    done = piped(f"{QUESTION}\n" * 4, *arguments, home=tmp_path)
    assert done.returncode == 0
    with TinyGPTV.load(bundle) as model:
        chat = model.chat(photo)
        dropped = [chat.ask(QUESTION, max_new_tokens=100).truncated_turns for _ in range(4)]
    assert any(dropped)
    told = [f"the {count} oldest turns" if count > 1 else "the oldest turn" for count in dropped if count]
    assert complaints(done) == [f"{turns} no longer fit into the context and were left out" for turns in told]


# At a terminal


class Terminal:
    """The command on a pseudo-terminal, and what a person does there."""

    def __init__(self, command: list[str], home: Path, **environment: str) -> None:
        import fcntl
        import pty
        import termios

        self._ours, theirs = pty.openpty()

        def own_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C goes to the program that has it
            signal.signal(signal.SIGINT, signal.default_int_handler)

        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=home,
            env=plain_environment(home, TERM="xterm", NO_COLOR="1") | environment,
            start_new_session=True,
            preexec_fn=own_terminal,
        )
        os.close(theirs)
        self._screen = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def see(self, pattern: str) -> str:
        """Wait until the screen shows it; what came before is not looked at again."""
        deadline = time.monotonic() + 20
        while not (found := re.search(pattern.encode(), self._screen)):
            ready, _, _ = select.select([self._ours], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} is not in {self._screen!r}"
            try:
                self._screen += os.read(self._ours, 65536)
            except OSError as error:  # Linux' way to say that the program has ended
                raise AssertionError(f"{pattern!r} is not in {self._screen!r}") from error
        shown, self._screen = self._screen[: found.end()], self._screen[found.end() :]
        return shown.decode(errors="replace")

    def end(self) -> int:
        return self._process.wait(20)


PROMPT = r"> (?:\x1b\[\?2004h)?"


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    pytest.importorskip("readline")
    with Terminal([*COMMAND, "chat", RED], tmp_path) as terminal:
        terminal.see("Ctrl-D leaves")
        terminal.see(PROMPT)
        yield terminal


def questions(path: Path) -> list[str]:
    return [turn["question"] for turn in json.loads(path.read_text(encoding="utf-8"))["turns"]]


@posix
def test_arrow_keys_and_leaving(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("[caption]\n")
    terminal.see("a red triangle")
    terminal.type(f"{SHAPE}\n")
    terminal.see("\rtriangle")
    terminal.see(PROMPT)
    terminal.type("\x1b[A\x1b[A\n")  # up, up: the first question again
    terminal.see("a red triangle\r\n")
    terminal.see(PROMPT)
    terminal.type("xs it red?\x1b[H\x1b[3~i\n")  # home, delete
    terminal.type("/save chat.json\n")
    terminal.see("saved in")
    terminal.see(PROMPT)
    terminal.type("\x04")
    assert terminal.end() == 0
    assert questions(tmp_path / "chat.json") == ["[caption]", SHAPE, "[caption]", "is it red?"]


@posix
def test_tab(terminal: Terminal, tmp_path: Path) -> None:
    """Completes a command, a path with a blank in it, and a task tag."""
    Image.open(TEAL).save(tmp_path / "ein Bild.png")
    terminal.type("/im\tein\t\n")
    terminal.see("new conversation about ein Bild.png")
    terminal.see(PROMPT)
    terminal.type("[cap\t\n")
    terminal.see("a teal circle")
    terminal.see(PROMPT)
    terminal.type(f"{tmp_path}/ein\t\n")  # a path alone
    terminal.see(f"new conversation about {tmp_path}/ein Bild.png")
    terminal.see(PROMPT)
    terminal.type("/res\t\n")
    terminal.see("new conversation about the same image")
    terminal.see(PROMPT)
    terminal.type("\x04")
    assert terminal.end() == 0


def test_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my pictures").mkdir()
    for name in ("my cat.png", "my dog's.png", ".hidden.png", "my pictures/a.png"):
        (tmp_path / name).touch()

    def found(typed: str) -> list[str]:
        return completions(typed, COMMANDS, ["[vqa]", "[caption]"])

    assert found("/") == [f"{name} " for name in COMMANDS] and found("/sa") == ["/save "]
    assert found("[v") == ["[vqa] "] and found("") == found("what") == found("what is") == []
    assert found("/reset x") == []
    if sys.platform != "win32":
        assert found("/image my") == [
            *("/image my\\ cat.png", "/image my\\ dog\\'s.png", f"/image my\\ pictures{os.sep}"),
        ]
        assert found("/image my\\ c") == ["/image my\\ cat.png"]
        assert found("/image my\\ cat.png my\\ d") == ["/image my\\ cat.png my\\ dog\\'s.png"]
        assert found("/image my\\ pictures/") == ["/image my\\ pictures/a.png"]
    assert found("/image .h") == ["/image .hidden.png"] and found("/save nowhere/") == []


@posix
def test_ctrl_c_at_the_prompt_clears_the_line(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("half a que")
    terminal.see("half a que")
    time.sleep(0.1)  # readline notices what comes while it shows a key at the next one only: no person is that fast
    terminal.type("\x03")
    terminal.see(PROMPT)
    terminal.type("[caption]\n")
    terminal.see("a red triangle")
    terminal.type("/image nowhere.png\n")
    terminal.see("nowhere.png does not exist")
    terminal.type("/save chat.json\n")
    terminal.see("saved in")
    terminal.type("/quit\n")
    assert terminal.end() == 0  # a person has seen what went wrong
    assert questions(tmp_path / "chat.json") == ["[caption]"]


@posix
def test_ctrl_c_cancels_the_answer(bundle: str, photo: Path, tmp_path: Path) -> None:
    pytest.importorskip("readline")
    command = [sys.executable, "-c", SLOWLY, "chat", str(photo), "--bundle", bundle, "--max-new-tokens", "200"]
    with TinyGPTV.load(bundle) as model:
        whole = model.ask(photo, QUESTION, max_new_tokens=200).text
    with Terminal(command, tmp_path) as terminal:
        terminal.see("Ctrl-D leaves")
        terminal.see(PROMPT)
        terminal.type(f"{QUESTION}\n")
        terminal.see(r"what\?.*\r\n")
        terminal.see(r"[A-Za-z]{4}")  # the answer has begun
        terminal.type("\x03")
        terminal.see("cancelled")
        terminal.see(PROMPT)
        terminal.type("/save cut.json\n")
        terminal.see("saved in")
        terminal.see(PROMPT)  # what is typed earlier is echoed twice
        terminal.type(f"{QUESTION}\n")  # the chat goes on
        terminal.see(r"what\?.*\r\n")
        terminal.see(r"[A-Za-z]{4}")
        terminal.type("\x03")
        terminal.see("cancelled")
        terminal.see(PROMPT)
        terminal.type("\x04")
        assert terminal.end() == 0
    (turn,) = json.loads((tmp_path / "cut.json").read_text(encoding="utf-8"))["turns"]
    assert turn["question"] == QUESTION
    assert whole.startswith(turn["answer"].rstrip("\N{REPLACEMENT CHARACTER}"))
    assert 0 < len(turn["answer"]) < len(whole) / 2


@posix
def test_answers_into_a_file(tmp_path: Path) -> None:
    """Typed questions, but stdout is none of the terminal: it has answers only."""
    with Terminal(["/bin/sh", "-c", f'"{sys.executable}" -m tinygptv.runtime.cli chat "{RED}" > out'], tmp_path) as it:
        it.see("> ")
        it.type("[caption]\n")
        it.see("\r> ")
        it.type("\x04")
        assert it.end() == 0
    assert (tmp_path / "out").read_text() == "a red triangle\n"


@posix
def test_ctrl_c_ends_a_script(bundle: str, photo: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "chat", str(photo), "--bundle", bundle, "--max-new-tokens", "200"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=plain_environment(tmp_path),
        preexec_fn=heed_interrupts,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{QUESTION}\n{QUESTION}\n".encode())
    process.stdin.flush()
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b"\n"
    assert len(out) < 500


# What Ctrl-C interrupts


@posix
def test_what_cannot_be_interrupted_is_cancelled() -> None:
    """The main thread is not the one that computes, so it notices at once, and waits for the end."""
    cancellation = Cancellation()
    told = threading.Event()
    ended = []

    def work() -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        assert told.wait(5)
        ended.append(cancellation.requested)

    def cancel() -> None:
        cancellation.cancel()
        told.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interruptible(work, cancel)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == [True]


def test_what_work_says_is_passed_on() -> None:
    assert interruptible(lambda: 3, lambda: None) == 3
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 / 0, lambda: None)
