"""The Python of docs/embedding.md is what a strict type checker accepts in a program that embeds tinygptv."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "embedding.md"
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PREAMBLE = """
from typing import Any
from tinygptv import (
    AnswerOptions, ArgumentError, Cancellation, CancellationError, Chat, EncodedImage, Sampling, TinyGPTV, TinyGPTVError
)
def show(piece: str) -> None: ...
async def send(piece: str) -> None: ...
class Window:
    _cancellation = Cancellation()
    _ask: Any
model: TinyGPTV
image: EncodedImage
"""
"""What the page's text says is there, or leaves to the reader's program."""
SETTINGS = """
[mypy]
strict = True
follow_imports = silent
[mypy-numpy.*,PIL.*,onnxruntime.*,tokenizers.*,tqdm.*,filelock.*,google.*]
follow_imports = skip
ignore_missing_imports = True
"""


def check(blocks: list[str], folder: Path) -> str:
    """What mypy says about them, each as a function or a method of its own, against the package as it is installed."""
    (folder / "tinygptv").mkdir()
    for name in ("__init__.py", "py.typed"):
        shutil.copy(ROOT / "tinygptv" / name, folder / "tinygptv")
    code = shutil.ignore_patterns("demo", "__pycache__", "app", "server", "mcp", "commands")
    shutil.copytree(ROOT / "runtime", folder / "tinygptv" / "runtime", ignore=code)
    program = PREAMBLE
    for number, block in enumerate(blocks):
        if block.startswith("def ") and "(self" in block:
            head = f"class Window{number}(Window):\n"
        else:
            head = f"async def block_{number}(model: TinyGPTV, image: EncodedImage) -> None:\n"
        program += head + textwrap.indent(block, "    ")
    (folder / "program.py").write_text(program, encoding="utf-8")
    (folder / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "program.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120).stdout


def test_embedding_snippets(tmp_path: Path) -> None:
    blocks = [textwrap.dedent(match[2]) for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]
    assert len(blocks) >= 10
    wrong = 'answer: int = model.ask(image, "What is this?", max_new_token=40)\n'
    said = [line for line in check([*blocks, wrong], tmp_path).splitlines() if ": error:" in line]
    # The last block is wrong on purpose: the types are seen, and nothing else is amiss.
    assert len(said) == 2 and "max_new_token" in said[0] and '"Answer"' in said[1], said
