"""The package for Node: from a picture file to the same pixels, tokens and text as this runtime's."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import bundle_with
from PIL import Image
from siblings import FAMILIES
from tinygptv.runtime import TinyGPTV
from tinygptv.runtime.bundle.manifest import ImagePreprocessing
from tinygptv.runtime.bundle.sessions import products_saturate
from tinygptv.runtime.loading import DEMO_BUNDLE
from tinygptv.runtime.vision.image import open_image, preprocess

PACKAGE = Path(__file__).resolve().parents[1] / "docs" / "node"
PAGE = PACKAGE.parent / "bundle.md"
PICTURES = Path(__file__).parent / "images"
PHOTO = Path(__file__).resolve().parents[1] / "export" / "calibration" / "cat.jpg"
BUNDLE_V1 = Path(__file__).parent / "bundle_v1"
TOKENS = 20
PRECISIONS = ("fp32", "int8")
USER = """
import { TinyGPTV } from "tinygptv";
const [folder, picture, question, options] = process.argv.slice(2);
const model = await TinyGPTV.load(folder);
const image = await model.encodeImage(picture);
const { after, ...rest } = JSON.parse(options);
const controller = new AbortController();
const pieces = [];
const stream = model.stream(image, question, { ...rest, signal: controller.signal });
let next = await stream.next();
for (; !next.done; next = await stream.next()) {
  pieces.push(next.value);
  if (pieces.length === after) controller.abort();
}
console.log(JSON.stringify({ pieces, ...next.value }));
"""
"""Another package, such as an Electron app, that has this one as a dependency."""
PIXELS = """
import { writeFile } from "node:fs/promises";
import { pixelValues } from "./pixels.mjs";
const [picture, image, output] = process.argv.slice(1);
await writeFile(output, new Uint8Array((await pixelValues(picture, JSON.parse(image))).buffer));
"""

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node and npm")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package in an app's folder, installed as docs/bundle.md says, with its dependencies from npm's registry."""
    app = tmp_path_factory.mktemp("node") / "eine App"
    app.mkdir()
    (app / "package.json").write_text("{}")
    (options,) = re.findall(r"^npm install (.+) ~/tinygptv/docs/node ", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    command = [shutil.which("npm"), "install", *options.split(), "--no-audit", "--no-fund", str(PACKAGE)]
    subprocess.run(command, cwd=app, check=True, capture_output=True, timeout=300)
    return app / "node_modules" / "tinygptv"


def node(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("node"), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"},
    )


def ask(package: Path, bundle: Path, picture: Path, question: str) -> dict[str, Any]:
    done = node("ask.mjs", "--json", str(bundle), str(picture), question, str(TOKENS), cwd=package)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def wanted(bundle: Path, picture: Path, question: str, **options: Any) -> dict[str, Any]:
    with TinyGPTV.load(bundle) as model:
        answer = model.ask(picture, question, **{"max_new_tokens": TOKENS} | options)
    assert answer.token_ids
    return {"text": answer.text, "tokenIds": [*answer.token_ids], "finishReason": answer.finish_reason}


@pytest.mark.parametrize(
    ("bundle", "picture", "question"),
    [
        ("demo", PICTURES / "red_triangle.png", "[vqa] what color is the shape?"),
        ("demo", PICTURES / "teal_circle.png", "[detection] circle"),
        ("v1", PICTURES / "teal_circle.png", "what?"),
        ("golden int8", PHOTO, "what?"),
        ("golden fp32", PICTURES / "red_triangle.png", "what?"),
        *((f"{family} {precision}", PHOTO, "what?") for family in FAMILIES for precision in PRECISIONS),
    ],
)
def test_the_same_answer(
    bundle: str,
    picture: Path,
    question: str,
    package: Path,
    golden_bundle: Callable[[int, str], Path],
    sibling_bundle: Callable[..., Path],
    tmp_path: Path,
) -> None:
    name, _, precision = bundle.partition(" ")
    made = {"demo": lambda: DEMO_BUNDLE, "v1": lambda: BUNDLE_V1, "golden": lambda: golden_bundle(4, precision)}
    folder = made.get(name, lambda: sibling_bundle(name, precision=precision))()
    if picture == PHOTO:  # another library may decode a JPEG file to other levels
        picture = tmp_path / "Foto é.png"
        Image.open(PHOTO).save(picture)
    if products_saturate() and "Scan" in (folder / "vision_encoder.onnx").read_text("latin1") and precision == "int8":
        done = node("ask.mjs", str(folder), str(picture), question, cwd=package)
        assert done.returncode == 1 and "cannot compute it exactly on this processor" in done.stderr
        return
    assert ask(package, folder, picture, question) == wanted(folder, picture, question)


@pytest.fixture
def app(package: Path) -> Path:
    """The app, with a program of its own."""
    folder = package.parents[1]
    (folder / "user.mjs").write_text(USER, encoding="utf-8")
    return folder


def use(app: Path, bundle: Path, question: str, **options: Any) -> dict[str, Any]:
    done = node("user.mjs", str(bundle), str(PICTURES / "red_triangle.png"), question, json.dumps(options), cwd=app)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert "".join(found["pieces"]) == found["text"] and all(found["pieces"])
    del found["pieces"]
    return found


def test_stop_strings(app: Path, tmp_path: Path) -> None:
    """The bundle's, and the caller's, also those that begin and end within tokens; nothing of them is shown."""
    picture, question = PICTURES / "red_triangle.png", "[detection] triangle"
    whole = wanted(DEMO_BUNDLE, picture, question)["text"]
    other = bundle_with(DEMO_BUNDLE, tmp_path / "other", stop_strings=("###", "d tri"))
    for bundle, stop in ((DEMO_BUNDLE, ["> {<2", "zzz"]), (DEMO_BUNDLE, ["ngle", "angle"]), (other, [])):
        expected = wanted(bundle, picture, question, stop=stop)
        assert use(app, bundle, question, stop=stop, maxNewTokens=TOKENS) == expected
        assert expected["finishReason"] == "stop" and len(expected["text"]) < len(whole)


def test_an_answer_ends_early(app: Path, golden_bundle: Callable[[int, str], Path]) -> None:
    bundle = golden_bundle(3, "fp32")
    found = use(app, bundle, "what?", after=2)
    assert found["finishReason"] == "cancelled" and len(found["tokenIds"]) < 20
    assert use(app, bundle, "what?", maxNewTokens=3)["finishReason"] == "length"


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
@pytest.mark.parametrize("kind", ["photo", "tall", "small", "grey", "transparent", "turned"])
def test_the_same_pixels(fit: str, kind: str, package: Path, tmp_path: Path) -> None:
    """To the last bit."""
    photo, path = Image.open(PHOTO).convert("RGB"), tmp_path / "a.png"
    exif = Image.Exif()
    if kind == "turned":
        exif[0x0112] = 6
    size = {"tall": (37, 200), "small": (9, 7)}.get(kind, (150, 101))
    picture = photo.resize(size).convert({"grey": "L", "transparent": "RGBA"}.get(kind, "RGB"))
    if kind == "transparent":
        picture.putalpha(Image.linear_gradient("L").resize(size))
    picture.save(path, exif=exif)
    image = ImagePreprocessing(32, (0.48, 0.45, 0.40), (0.26, 0.27, 0.28), "bicubic", fit, (12, 200, 7))
    fields = {"image_size": 32, "mean": image.mean, "std": image.std, "resample": "bicubic", "fit": fit}
    document = json.dumps(fields | {"pad_color": image.pad_color})
    output = tmp_path / "pixels"
    done = node("--input-type=module", "-e", PIXELS, "--", str(path), document, str(output), cwd=package)
    assert done.returncode == 0, done.stderr
    found = np.frombuffer(output.read_bytes(), "<f4").reshape(1, 3, 32, 32)
    assert np.array_equal(found, preprocess(open_image(path), image))


def test_what_goes_wrong_is_one_line(package: Path, tmp_path: Path) -> None:
    done = node("ask.mjs", cwd=package)
    assert done.returncode == 2 and "usage: node ask.mjs" in done.stderr
    red, heic = str(PICTURES / "red_triangle.png"), tmp_path / "a.heic"
    heic.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    for arguments, said in (
        ((str(tmp_path), red, "what?"), "manifest.json"),
        ((str(DEMO_BUNDLE), str(tmp_path / "nowhere.png"), "what?"), "nowhere.png does not exist; expected a JPEG"),
        ((str(DEMO_BUNDLE), str(heic), "what?"), "a.heic cannot be read; expected a JPEG"),
        ((str(DEMO_BUNDLE), red, " "), "question is empty"),
        ((str(DEMO_BUNDLE), red, "what?", "9999"), "has room for"),
    ):
        done = node("ask.mjs", *arguments, cwd=package)
        assert done.returncode == 1 and done.stdout == ""
        assert said in done.stderr and done.stderr.count("\n") == 1
