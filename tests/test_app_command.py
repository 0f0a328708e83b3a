"""``tinygptv app`` as a process: how it begins, how it ends, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path

import pytest
from app_user import USER
from conftest import plain_environment
from tinygptv.runtime.cli import main
from tinygptv.runtime.commands import options

pytest.importorskip("PySide6.QtWidgets", reason="Qt's libraries are not on this system", exc_type=ImportError)

RED = str(Path(__file__).parent / "images" / "red_triangle.png")
ASK = "lambda window: window.talk.ask('[detection] triangle')"
LEAVE = """
status = cli.main(["app", *sys.argv[1:]])
print(json.dumps({"status": status, "said": said, "events": events}), flush=True)
"""


@contextmanager
def x_screen() -> Iterator[str]:
    """The name of an X11 display that nobody sees."""
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            yield f":{server.stdout.readline().strip()}"
        finally:
            server.terminate()


def used(steps: str, *arguments: str, home: Path, **environment: str) -> dict:
    """What is reported of a process in which ``steps`` were done."""
    done = subprocess.run(
        [sys.executable, "-c", f"{USER}\nsteps = {steps}\n{LEAVE}", *arguments],
        capture_output=True,
        cwd=home,
        env=plain_environment(home, **{"QT_QPA_PLATFORM": "offscreen"} | environment),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stderr.decode().splitlines()
    assert [line for line in lines if not line.startswith("This plugin")] == []  # the offscreen platform's own remark
    return json.loads(done.stdout)


def test_it_is_used_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """No file, Qt's own notes on visited folders included; no connection."""
    ask, choose = ASK, "lambda window: window.files.choose_pictures(), choose"
    report = used(f"[{ask}, say, {choose}, {ask}, say, lambda window: window.close()]", RED, home=tmp_path)
    assert report == {"status": 0, "said": [["red triangle", 1]] * 2, "events": []}
    # Fonts are looked for by the system's library, whose cache is no business of a program.
    assert [path for path in tmp_path.rglob("*") if "fontconfig" not in path.parts and path.name != ".cache"] == []


@pytest.mark.skipif(
    shutil.which("Xvfb") is None or not all(map(find_library, ("xcb-cursor", "xcb-icccm", "xcb-keysyms"))),
    reason="Xvfb, or what Qt needs for it, is not installed",
)
def test_on_a_screen(tmp_path: Path) -> None:
    """Qt's own platform for X11 draws the window, and the box has its colour there."""
    steps = f"""None
def look(window):
    window.repaint()
    picture = window.screen().grabWindow(0).toImage()
    place = window.picture.mapToGlobal(window.picture._place().topLeft())
    near = [picture.pixelColor(place.x() + x, place.y() + y).name() for x in range(300) for y in range(300)]
    said.append([QApplication.platformName(), window.windowTitle(), near.count("#e69f00") > 500])

steps = [{ASK}, say, look, lambda window: window.close()]
"""
    with x_screen() as display:
        report = used(steps, RED, home=tmp_path, DISPLAY=display, QT_QPA_PLATFORM="xcb")
    assert report["said"] == [["red triangle", 1], ["xcb", "red_triangle.png - built-in demo - tinygptv", True]]


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_in_the_terminal(tmp_path: Path) -> None:
    kill = "lambda window: os.kill(os.getpid(), signal.SIGINT)"
    assert used(f"[{kill}]", home=tmp_path)["status"] == 130


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_ctrl_c_while_the_window_is_made(tmp_path: Path) -> None:
    begin = "ModelThread.start = lambda thread, start=ModelThread.start: (start(thread), os.kill(os.getpid(), 2))"
    module = "from tinygptv.runtime.app.model_thread import ModelThread"
    assert used(f"[]\n{module}\n{begin}", home=tmp_path)["status"] == 130


def test_a_bundle_and_a_picture_that_are_not_there(tmp_path: Path) -> None:
    """The window says so, and stays."""
    look = "lambda window: said.append(window.notice.text), lambda window: window.close()"
    report = used(f"[{look}]", "nothing.png", "--bundle", "nowhere", home=tmp_path)
    assert report["status"] == 0
    assert "nowhere is not" in report["said"][0] and "nothing.png does not exist" in report["said"][0]
    report = used(f"[{look}]", RED, "--bundle", "nowhere", home=tmp_path)
    assert report["said"][0].count("⚠") == 1 and "nowhere is not" in report["said"][0]


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["app"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    assert refusal(capsys) == (
        f'tinygptv: PySide6 and psutil not installed; run: pip install -e "{Path(__file__).resolve().parents[1]}[app]"'
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a screen")
def test_without_a_screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert "no screen" in refusal(capsys)


def test_without_the_libraries_that_qt_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    monkeypatch.setitem(sys.modules, "tinygptv.runtime.app.start", None)
    assert "Qt cannot be loaded" in refusal(capsys)
