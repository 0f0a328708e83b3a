"""The ``tinygptv`` command, called in this process, and as a process of its own where that matters."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import QUESTION, bundle_with, export_arguments, heed_interrupts, plain_environment, spoil
from tinygptv.runtime import TinyGPTV, cli
from tinygptv.runtime.cli import main
from tinygptv.runtime.commands.options import BUNDLE_VARIABLE, TUNE_VARIABLE
from tinygptv.runtime.loading import DEMO_BUNDLE
from variants import published_files

COMMAND = [sys.executable, "-m", "tinygptv.runtime.cli"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="uses what Linux tells of its pipes, or /dev/full")


@pytest.fixture
def bundle(golden_bundle: Callable[[int, str], Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """The bundle of ``speaking_model``; its folder's name has a space and an accent."""
    monkeypatch.delenv(BUNDLE_VARIABLE, raising=False)
    folder = str(golden_bundle(3, "fp32"))
    assert " " in folder and "é" in folder
    return folder


@pytest.fixture
def text(speaking_model: TinyGPTV, photo: Path) -> str:
    """What the model answers to :data:`QUESTION`, in 12 tokens."""
    return speaking_model.ask(photo, QUESTION, max_new_tokens=12).text


def run(*arguments: str | bytes, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The command as a process of its own."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, cwd=cwd, env=plain_environment(cwd, **environment), timeout=60
    )


def only_line(err: str | bytes) -> str:
    """The one line of an error, without the command's name."""
    err = err if isinstance(err, str) else err.decode()
    assert re.fullmatch(r"tinygptv: [^\n]+\n", err), err
    return err.removeprefix("tinygptv: ").rstrip("\n")


# Answers


def test_stdout_has_only_the_answer(bundle: str, photo: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(photo), QUESTION, "--bundle", bundle, "--max-new-tokens", "12"]) == 0
    captured = capsys.readouterr()
    assert captured.out == text + "\n"
    assert captured.err == ""


def test_as_a_process(bundle: str, photo: Path, text: str, tmp_path: Path) -> None:
    done = run("ask", str(photo), QUESTION, "--bundle", bundle, "--max-new-tokens", "12", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == text + os.linesep


def test_json_is_one_object(
    bundle: str, photo: Path, speaking_model: TinyGPTV, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", str(photo), QUESTION, "--bundle", bundle, "--max-new-tokens", "12", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1 and captured.err == ""
    document = json.loads(captured.out)
    answer = speaking_model.ask(photo, QUESTION, max_new_tokens=12)
    timings = document.pop("timings")
    peak, anonymous = document.pop("peak_rss_bytes"), document.pop("anonymous_bytes")
    assert peak > 10e6
    assert anonymous is None if sys.platform != "linux" else 10e6 < anonymous < peak
    assert document == {
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "finish_reason": "length",
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": 0,
        "truncated_turns": 0,
        "regions": [],
    }
    assert list(timings) == [
        *("preprocess", "image_encode", "projector", "prefill", "time_to_first_token"),
        *("decode", "decode_tokens_per_second", "load"),
    ]
    assert all(type(value) is float and value > 0 for value in timings.values())


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_stats_go_to_stderr(bundle: str, photo: Path, form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ask", str(photo), QUESTION, "--bundle", bundle, "--max-new-tokens", "12"]
    assert main([*arguments, *form, "--stats"]) == 0
    captured = capsys.readouterr()
    names = [line[:20].strip() for line in captured.err.splitlines()]
    assert names == [
        *("load", "preprocess", "image encode", "projector", "prefill", "time to first token", "decode", "peak RSS"),
    ]
    assert re.search(r"prefill  \d+\.\d{3} s \(35 tokens\)", captured.err)
    assert re.search(r"decode  \d+\.\d tokens/s \(12 tokens, finished by length\)", captured.err)
    assert re.search(r"peak RSS  \d\.\d\d GB(, \d\.\d\d GB at the end not backed by files)?$", captured.err, re.M)
    assert captured.out.count("\n") == 1


def test_a_rate_of_one_token_is_not_invented(bundle: str, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(photo), QUESTION, "--bundle", bundle, "--max-new-tokens", "1", "--stats"]) == 0
    assert re.search(r"decode  - \(1 tokens", capsys.readouterr().err)


def test_template_and_threads(
    bundle: str, photo: Path, speaking_model: TinyGPTV, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ask", str(photo), QUESTION, "--bundle", bundle, "--max-new-tokens", "5", "--json"]
    assert main([*arguments, "--template", "inst", "--threads", "1"]) == 0
    answer = speaking_model.ask(photo, QUESTION, max_new_tokens=5, template="inst")
    assert json.loads(capsys.readouterr().out)["token_ids"] == list(answer.token_ids)


# Which bundle


def test_the_variable_names_the_bundle(
    bundle: str, photo: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BUNDLE_VARIABLE, bundle)
    assert main(["ask", str(photo), QUESTION, "--max-new-tokens", "12"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (text + "\n", "")


def test_the_option_wins_over_the_variable(
    bundle: str, photo: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BUNDLE_VARIABLE, "no such folder")
    assert main(["ask", str(photo), QUESTION, "--bundle", bundle, "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out == text + "\n"
    assert main(["ask", str(photo), QUESTION]) == 1
    assert only_line(capsys.readouterr().err).startswith("no such folder is not a folder")


# Errors


@pytest.mark.parametrize("form", [[], ["--json"], ["--stats"]])
def test_a_missing_image(bundle: str, tmp_path: Path, form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "fehlt ü.png")
    assert main(["ask", missing, QUESTION, "--bundle", bundle, *form]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert only_line(captured.err).startswith(f"{missing} does not exist")


def test_a_prompt_that_does_not_fit(bundle: str, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(photo), QUESTION, "--bundle", bundle, "--max-new-tokens", "999"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.match(r"the prompt has 35 tokens.* 999 .* context is 256", only_line(captured.err))


@pytest.mark.parametrize("arguments", [[" "], [QUESTION, "--template", "chatml"], ["look: <ImageHere>"]])
def test_a_wrong_question_or_template(
    bundle: str, photo: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", str(photo), *arguments, "--bundle", bundle]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert only_line(captured.err)


def test_a_damaged_bundle(bundle: str, photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also what native code prints is none of stdout's, hence ``capfd``."""
    damaged = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    spoil(damaged, "projector.onnx", lambda data: data.replace(b"LayerNormalization", b"LayerNormalizatio\xff"))
    assert main(["ask", str(photo), QUESTION, "--bundle", str(damaged)]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert only_line(captured.err).startswith(f"{damaged / 'projector.onnx'}: onnxruntime")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["aks"],
        ["ask"],
        ["ask", "photo.png"],
        ["ask", "photo.png", "--box", "1,2,3"],
        ["ask", "photo.png", "--box", "1,2,3,x"],
        ["ask", "photo.png", "other.png", "--box", "1,2,3,4", "--clipboard", "--draw", "drawn"],
        *(["ask", "photo.png", "what?", "--draw", wrong] for wrong in ("drawn", "drawn.txt", "drawn.psd", ".png")),
        ["ask", "photo.png", "what?", "--temperature", "-1"],
        ["ask", "photo.png", "what?", "--temperature", "warm"],
        ["ask", "photo.png", "what?", "--top-p", "0"],
        ["ask", "photo.png", "what?", "--top-k", "1.5"],
        ["ask", "photo.png", "what?", "--repetition-penalty", "0"],
        ["ask", "photo.png", "what?", "--seed", "-1"],
        ["chat", "-"],
        ["caption"],
        ["caption", "."],
        ["caption", ".", "-o", "captions.jsonl", "--batch-size", "0"],
        ["caption", ".", "-o", "captions.jsonl", "--overwrite"],
        ["bundle"],
        ["bundle", "check"],
        ["bundle", "verify", "one", "two"],
        ["ask", "photo.png", "what?", "--verbose"],
        *(["ask", "photo.png", "what?", "--max-new-tokens", wrong] for wrong in ("0", "-1", "x", "1.5", "")),
        *(["ask", "photo.png", "what?", "--threads", wrong] for wrong in ("0", "-1", "x")),
        ["ask", "photo.png", "what?", "--memory", "high"],
        ["tune", "one", "two"],
        ["tune", "--cache", "--undo"],
        ["doctor", "one", "two"],
    ],
)
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: tinygptv")


@pytest.mark.parametrize("name", ["ask", "chat", "app", "caption", "serve", "mcp", "bundle", "tune", "doctor"])
def test_examples_in_the_help_are_commands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = re.findall(r"^  (?:.* \| )?tinygptv (.*)$", capsys.readouterr().out, re.M)
    assert shown
    for line in shown:
        assert cli._parser().parse_args(shlex.split(re.split(" [<|] ", line)[0])).command == name


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, wanted in (
        (["--help"], r"\bask\b[\s\S]*\btune\b[\s\S]*\bdoctor\b"),
        (["ask", "--help"], r'examples:\n  tinygptv ask photo\.jpg "What is in this picture\?" --bundle'),
        (["--version"], r"\Atinygptv \d+\.\d+\.\d+\n\Z"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        captured = capsys.readouterr()
        assert re.search(wanted, captured.out)
        assert captured.err == ""


# Tuning


def test_tune_ask_and_undo(
    bundle: str, photo: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    before = sorted(folder.rglob("*"))
    assert main(["tune", str(folder)]) == 0
    assert re.fullmatch(r".* tuned in \d+ s: 0\.\d\d GB of weights, .*\n", capsys.readouterr().out)
    assert main(["tune", str(folder)]) == 0
    assert "was tuned already, and is undamaged" in capsys.readouterr().out
    for memory in ("default", "low"):
        arguments = ["ask", str(photo), QUESTION, "--bundle", str(folder), "--max-new-tokens", "12"]
        assert main([*arguments, "--memory", memory]) == 0
        assert capsys.readouterr().out == text + "\n"
    assert main(["tune", str(folder), "--undo"]) == 0
    assert capsys.readouterr().out == f"removed what tuning had saved in {folder}\n"
    assert sorted(folder.rglob("*")) == before
    assert main(["tune", str(folder), "--undo"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("option", "variables", "tuned"),
    [
        ([], {}, False),
        (["--tune"], {}, True),
        ([], {TUNE_VARIABLE: "1"}, True),
        ([], {TUNE_VARIABLE: "0"}, False),
        ([], {TUNE_VARIABLE: ""}, False),
    ],
)
def test_tuning_on_first_use(
    bundle: str, photo: Path, text: str, tmp_path: Path, option: list[str], variables: dict[str, str], tuned: bool
) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    arguments = ("ask", str(photo), QUESTION, "--bundle", str(folder), "--max-new-tokens", "12", *option)
    done = run(*arguments, cwd=tmp_path, **variables)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, text + os.linesep, b"")
    assert (folder / "tuned" / "index.json").is_file() == tuned


def test_a_warning_is_one_line(
    bundle: str, photo: Path, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    arguments = ["ask", str(photo), QUESTION, "--bundle", bundle, "--max-new-tokens", "12", "--tune"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == text + "\n"
    assert only_line(captured.err).startswith("loaded without tuning: ")


def test_the_demo_is_tuned_in_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.delenv(BUNDLE_VARIABLE, raising=False)
    before = sorted(DEMO_BUNDLE.rglob("*"))
    assert main(["tune"]) == 0
    assert f"packed, in {tmp_path}" in capsys.readouterr().out
    assert sorted(DEMO_BUNDLE.rglob("*")) == before
    assert main(["tune", "--undo"]) == 0
    assert list(tmp_path.rglob("*.data")) == []


# Names and characters


def test_any_name_and_any_question(bundle: str, photo: Path, speaking_model: TinyGPTV, tmp_path: Path) -> None:
    question = "Qu'est-ce que c'est ? 这是什么 🐈\n(deux lignes)"
    folder = Path(shutil.copytree(bundle, tmp_path / "модель 模型 🐈"))
    picture = Path(shutil.copy(photo, tmp_path / "-ein Bild, 写真 'x' \"y\".png"))
    done = run(
        "ask", "--bundle", folder.name, "--max-new-tokens", "12", "--json", "--", picture.name, question, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["text"] == speaking_model.ask(photo, question, max_new_tokens=12).text


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"PYTHONIOENCODING": "cp1252"}]
)
def test_a_console_without_the_characters(
    bundle: str, photo: Path, text: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    assert not text.isascii()
    arguments = ("ask", str(photo), QUESTION, "--bundle", bundle, "--max-new-tokens", "12")
    done = run(*arguments, cwd=tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    assert done.stdout.decode(encoding).splitlines()[0] == text.encode(encoding, "replace").decode(encoding)
    done = run(*arguments, "--json", cwd=tmp_path, **environment)
    assert json.loads(done.stdout)["text"] == text  # JSON loses nothing
    done = run("ask", "写真.png", QUESTION, "--bundle", bundle, cwd=tmp_path, **environment)
    assert done.returncode == 1
    assert done.stderr.startswith(b"tinygptv: ") and done.stderr.count(b"\n") == 1


def test_an_export_at_a_console_without_the_characters(tmp_path: Path) -> None:
    """It says where the bundle is, and must not fail at that when all is done."""
    done = subprocess.run(
        [sys.executable, "-m", "tinygptv.export", *export_arguments(published_files(3), tmp_path / "模型")],
        capture_output=True,
        env=plain_environment(tmp_path, PYTHONIOENCODING="cp1252"),
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"{tmp_path / '??'}".encode())


@linux
def test_arguments_that_are_not_unicode(bundle: str, photo: Path, text: str, tmp_path: Path) -> None:
    name = b"caf\xe9.png"
    (tmp_path / os.fsdecode(name)).write_bytes(photo.read_bytes())
    done = run("ask", name, QUESTION, "--bundle", bundle, "--max-new-tokens", "12", cwd=tmp_path)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, text + "\n", b"")
    done = run("ask", b"th\xe9.png", QUESTION, "--bundle", bundle, cwd=tmp_path)
    assert done.returncode == 1
    assert "does not exist" in only_line(done.stderr)
    done = run("ask", str(photo), b"caf\xe9?", "--bundle", bundle, cwd=tmp_path)
    assert done.returncode == 1
    assert "not valid Unicode" in only_line(done.stderr)


# Pipes and interruption


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_who_leaves(bundle: str, photo: Path, tmp_path: Path, form: list[str]) -> None:
    """As ``tinygptv ask ... | head -c0``: no traceback, and nothing about it at all."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [*COMMAND, "ask", str(photo), QUESTION, "--bundle", bundle, *form],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=plain_environment(tmp_path),
    )
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, b"")


@linux
def test_a_reader_who_leaves_after_the_first_byte(bundle: str, photo: Path, tmp_path: Path) -> None:
    script = '"$@" | head -c1; echo "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", script, "-", *COMMAND, "ask", str(photo), QUESTION, "--bundle", bundle],
        capture_output=True,
        env=plain_environment(tmp_path),
        timeout=60,
    )
    assert done.stderr == b""
    assert done.stdout.splitlines()[0][1:] in (b"0", b"1")  # it may have been done before head was


@linux
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_full_disk(bundle: str, photo: Path, tmp_path: Path, form: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "ask", str(photo), QUESTION, "--bundle", bundle, *form],
            stdout=full,
            stderr=subprocess.PIPE,
            env=plain_environment(tmp_path),
            timeout=60,
        )
    assert done.returncode == 1
    assert "No space left" in only_line(done.stderr)


@linux
def test_ctrl_c(bundle: str, photo: Path, tmp_path: Path) -> None:
    """Interrupted in the middle of an answer, which a small and nearly full pipe holds up there."""
    import fcntl
    import termios

    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * (size - 16))
    process = subprocess.Popen(
        [*COMMAND, "ask", str(photo), QUESTION, "--bundle", bundle],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=plain_environment(tmp_path),
        preexec_fn=heed_interrupts,
    )
    os.close(writer)
    deadline = time.monotonic() + 60
    while int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, b"\0" * 4), sys.byteorder) <= size - 16:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    with open(reader, "rb") as rest:
        written = rest.read()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b"\n"  # the next prompt of the shell begins on a line of its own
    assert 0 < len(written.lstrip(b"x")) < 100  # the answer was not finished


def test_stop_strings_end_the_printed_answer(
    bundle: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundle_with(Path(bundle), tmp_path / "stopping", stop_strings=("e<in",))
    assert main(["ask", str(photo), QUESTION, "--bundle", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.endswith("d\n") and len(out) < 10
