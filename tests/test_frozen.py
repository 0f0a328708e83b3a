"""A program that embeds the runtime, frozen by PyInstaller, answers without Python and without this folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import plain_environment

ROOT = Path(__file__).resolve().parents[1]
PICTURES = Path(__file__).parent / "images"


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what the wheel holds: an editable install has no files to collect."""
    folder = tmp_path_factory.mktemp("frozen é")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    build = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR"]
    places = ["--distpath", str(folder / "dist"), "--workpath", str(folder / "work")]
    subprocess.run(
        [*build, *places, str(ROOT / "docs" / "frozen" / "look.spec")],
        check=True,
        timeout=600,
        cwd=folder,  # Python would find the checkout's modules before those of the wheel
        env=plain_environment(folder) | {"PYTHONPATH": str(site)},
    )
    return folder / "dist" / "look" / ("look.exe" if sys.platform == "win32" else "look")


def run(program: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = plain_environment(home) | ({} if sys.platform == "win32" else {"PATH": "/nowhere"})
    return subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, encoding="utf-8", timeout=120, env=environment
    )


@pytest.mark.slow
def test_the_frozen_program_answers(program: Path, tmp_path: Path) -> None:
    done = run(program, tmp_path, str(PICTURES / "red_triangle.png"), "[vqa] what color is the shape?")
    assert (done.returncode, done.stdout) == (0, "red\n"), done.stderr
    assert not list(tmp_path.iterdir())  # nothing was written at home
    files = {path.name for path in program.parent.rglob("*")}
    assert not {"torch", "onnx", "transformers", "PySide6"} & files
    size = sum(path.stat().st_size for path in program.parent.rglob("*") if path.is_file())
    assert size < 300e6


@pytest.mark.slow
def test_its_errors_are_one_line(program: Path, tmp_path: Path) -> None:
    done = run(program, tmp_path, "no such picture.png", "what?")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "no such picture.png" in done.stderr
