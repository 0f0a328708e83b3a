"""A program that embeds the runtime, frozen by PyInstaller, answers without Python and without this folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from app_user import USER
from conftest import plain_environment

FROZEN = Path(__file__).resolve().parents[1] / "docs" / "frozen"
REPORT = """(lambda status: print(json.dumps({"status": status, "said": said, "events": events})))("""
"""Tells what was said in the place of what ends the program."""
PICTURES = Path(__file__).parent / "images"


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel holds: an editable install has no files to collect."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def frozen(spec: Path, site: Path, folder: Path) -> Path:
    """The program that a spec describes, built below ``folder``."""
    build = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR"]
    places = ["--distpath", str(folder / "dist"), "--workpath", str(folder / "work")]
    subprocess.run(
        [*build, *places, str(spec)],
        check=True,
        timeout=600,
        cwd=folder,  # Python would find the checkout's modules before those of the wheel
        env=plain_environment(folder) | {"PYTHONPATH": str(site)},
    )
    (made,) = (path for path in (folder / "dist").iterdir() if path.suffix != ".app")
    return made / (f"{made.name}.exe" if sys.platform == "win32" else made.name)


@pytest.fixture(scope="module")
def program(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return frozen(FROZEN / "look.spec", site, tmp_path_factory.mktemp("frozen é"))


def run(program: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = plain_environment(home) | ({} if sys.platform == "win32" else {"PATH": "/nowhere"})
    return subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env=environment | {"QT_QPA_PLATFORM": "offscreen"},
    )


@pytest.mark.slow
def test_the_frozen_program_answers(program: Path, tmp_path: Path) -> None:
    done = run(program, tmp_path, str(PICTURES / "red_triangle.png"), "[vqa] what color is the shape?")
    assert (done.returncode, done.stdout) == (0, "red\n"), done.stderr
    assert not list(tmp_path.iterdir())  # nothing was written at home
    files = {path.name for path in program.parent.rglob("*")}
    assert not {"torch", "onnx", "transformers", "PySide6", "hf_xet"} & files
    size = sum(path.stat().st_size for path in program.parent.rglob("*") if path.is_file())
    assert size < 300e6


@pytest.mark.slow
def test_its_errors_are_one_line(program: Path, tmp_path: Path) -> None:
    done = run(program, tmp_path, "no such picture.png", "what?")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "no such picture.png" in done.stderr


@pytest.mark.slow
def test_the_frozen_app_is_used(site: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The program of app.spec, with a user inside: asks about a sample, about a picture of its own, and leaves."""
    pytest.importorskip("PySide6.QtWidgets", reason="Qt's libraries are not on this system", exc_type=ImportError)
    folder, home = tmp_path_factory.mktemp("app é"), tmp_path_factory.mktemp("home")
    copy = shutil.copytree(FROZEN, folder / "source")
    main = (copy / "app.py").read_text(encoding="utf-8")
    steps = """[
        lambda window: window.start_page.samples[0].click(), say,
        lambda window: window.talk.ask("is it red?"), say, lambda window: window.close(),
    ]"""
    (copy / "app.py").write_text(f"{USER}\nsteps = {steps}\n{main}".replace("sys.exit(", REPORT), encoding="utf-8")
    program = frozen(copy / "app.spec", site, folder)
    done = run(program, home, str(PICTURES / "red_triangle.png"))
    report = json.loads(done.stdout)
    assert report == {"status": 0, "said": [["red triangle", 1], ["red triangle", 1], ["yes", 0]], "events": []}
    assert not [path for path in home.rglob("*") if "fontconfig" not in path.parts and path.name != ".cache"]
    files = {path.name for path in program.parent.rglob("*")}
    assert {"tinygptv.png", "red_triangle.png", "decoder.onnx"} <= files
    assert not {"torch", "onnx", "transformers", "hf_xet"} & files
    size = sum(path.stat().st_size for path in program.parent.rglob("*") if path.is_file())
    assert size < 500e6  # links counted as files; 26 MB of it reads a phone's HEIC
