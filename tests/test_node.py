"""The bundle's contract from another language: Node's ONNX Runtime decodes the same tokens as this runtime."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from siblings import FAMILIES
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.language.prompt import Turn
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.vision.image import open_image, preprocess

EXAMPLE = Path(__file__).resolve().parents[1] / "docs" / "node"
PICTURES = Path(__file__).parent / "images"
TOKENS = 20
PRECISIONS = ("fp32", "int8")

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node and npm")


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its one dependency installed, from npm's registry."""
    folder = tmp_path_factory.mktemp("node") / "ein Beispiel"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules"))
    # Its install script would fetch CUDA libraries, which no CPU needs.
    command = [shutil.which("npm"), "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    return folder


def ask(example: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [shutil.which("node"), str(example / "ask.mjs"), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"},
    )


@pytest.mark.parametrize(
    ("bundle", "picture", "question"),
    [
        ("demo", "red_triangle.png", "[vqa] what color is the shape?"),
        ("demo", "teal_circle.png", "[detection] circle"),
        ("golden int8", "teal_circle.png", "what?"),
        ("golden fp32", "red_triangle.png", "what?"),
        *((f"{family} {precision}", "red_triangle.png", "what?") for family in FAMILIES for precision in PRECISIONS),
    ],
)
def test_the_same_tokens(
    bundle: str,
    picture: str,
    question: str,
    example: Path,
    golden_bundle: Callable[[int, str], Path],
    sibling_bundle: Callable[..., Path],
    tmp_path: Path,
) -> None:
    name, _, precision = bundle.partition(" ")
    made = {"demo": lambda: DEMO_BUNDLE, "golden": lambda: golden_bundle(4, precision)}
    folder = made.get(name, lambda: sibling_bundle(name, precision=precision))()
    with TinyGPTV.load(folder) as model:
        before, after = model._engine.segments([Turn(question)], 1, None)
        pixel_values = preprocess(open_image(PICTURES / picture), model.manifest.image)
        embeds = model.embed_prompt(model.encode_image(PICTURES / picture), question)
        wanted = list(model.generate_ids(embeds, TOKENS))
    assert wanted
    pixels, prompt = tmp_path / "pixels.bin", tmp_path / "prompt.json"
    pixels.write_bytes(pixel_values.astype("<f4").tobytes())
    prompt.write_text(json.dumps({"before": before, "after": after}), encoding="utf-8")
    done = ask(example, str(folder), str(pixels), str(prompt), str(TOKENS))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == wanted
    assert np.asarray(found).max() < 51200


def test_usage(example: Path) -> None:
    done = ask(example)
    assert done.returncode == 2 and "usage: node ask.mjs" in done.stderr
